"""
The state of environments, wrapper by wrapper.

Of each layer every attribute is saved. An environment goes on exactly where it was if its attributes are all data, or
of a sort that is known (``known_objects.py``): classic control, toy text and MuJoCo tasks do, with Gymnasium's
wrappers. An environment that keeps its state elsewhere (Box2D, an emulator, a server, its class, its module) may offer
it (``OffersState``); that a class or a module changes is said (``shared_state``). Its random numbers (``np_random``)
need not be in it.
"""

import random
import re
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_trpo.checkpoints.fit import part
from sb3_trpo.checkpoints.known_objects import CODECS
from sb3_trpo.checkpoints.offered_state import offered_by, offers_state
from sb3_trpo.checkpoints.shared_state import find_changes
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.checkpoints.tree_format import NotSavableError, class_path
from sb3_trpo.saved_models.refused import printable
from sb3_trpo.validation.values import UserError

# These hold the next layer, and the arguments that a layer was made with.
NO_STATE = ("env", "_saved_kwargs")


def save_envs(envs: Sequence[gym.Env]) -> bytes:
    """
    Save environments as one graph of objects, so that what they share stays shared.

    :param envs: the environments of one process, with their wrappers
    :return: the state of all
    :raises NotSavableError: at an attribute that can't be saved
    """
    layers = _layers(envs)
    states = pack([_attributes(layer) for layer in layers], CODECS, layers)
    doubts = find_changes([layer for layer in layers if not offers_state(layer)])
    names = list(map(class_path, layers))
    return pack({"layers": names, "made_with": _made_with(envs), "states": states, "doubts": doubts})


def restore_envs(envs: Sequence[gym.Env], content: bytes, *, trusted: bool = True) -> list[str]:
    """
    Let environments go on where others were.

    :param envs: the environments, made as those that were saved
    :param content: the state, from ``save_envs``
    :param trusted: whether texts may be set
    :return: a sentence for each thing that is not as it was
    :raises UserError: if they are other environments, or have other wrappers
    :raises NotSavableError: if something in them is not as it was
    """
    saved = unpack(content)
    layers = _layers(envs)
    names = list(map(class_path, layers))
    if names != saved["layers"]:
        raise UserError(f"The checkpoint is of an environment {saved['layers']}, but this one is {names}.")
    present = [_attributes(layer) for layer in layers]
    states = unpack(saved["states"], present, CODECS, layers, trusted=trusted)
    for layer, state in zip(layers, states, strict=True):
        _set_attributes(layer, state)
    doubts = [printable(str(doubt)) for doubt in part(saved, "doubts", list)]
    for i, (old, new) in enumerate(zip(part(saved, "made_with", list), _made_with(envs), strict=True)):
        if old != new:
            doubts.append(
                f"environment {i} was made with {printable(str(old))}, and is made with {new} now: what it keeps in "
                "its attributes is that of the checkpoint"
            )
            break
    find_changes(layers)
    return doubts


def _made_with(envs: Sequence[gym.Env]) -> list[str]:
    """
    Describe the arguments that environments were made with, as far as Gymnasium knows.

    :param envs: the environments
    :return: a text for each; how an environment is shown makes no difference
    """
    texts = []
    for env in envs:
        kwargs = {} if env.unwrapped.spec is None else dict(env.unwrapped.spec.kwargs)
        kwargs.pop("render_mode", None)
        # Objects may print their address in memory.
        texts.append(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(kwargs)))
    return texts


def _layers(envs: Sequence[gym.Env]) -> list[gym.Env]:
    layers = []
    for env in envs:
        layers.append(env)
        while isinstance(layers[-1], gym.Wrapper):
            layers.append(layers[-1].env)
    return layers


def _attributes(layer: gym.Env) -> dict[str, Any]:
    if isinstance(layer, Checkpointable):
        return {}
    if offers_state(layer):
        return {"offered": offered_by(layer), "random": vars(layer).get("_np_random")}
    attributes = {name: value for name, value in vars(layer).items() if name not in NO_STATE}
    # Classes with ``__slots__`` keep attributes elsewhere.
    slots = (name for kind in type(layer).__mro__ for name in _slots(kind))
    attributes.update({name: getattr(layer, name) for name in slots if hasattr(layer, name)})
    return attributes


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    # Python's own slots are no attributes, and names that are private to the class are mangled.
    own = [name for name in names if name not in ("__dict__", "__weakref__")]
    return [f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name for name in own]


def _set_attributes(layer: gym.Env, attributes: dict[str, Any]) -> None:
    if isinstance(layer, Checkpointable):
        return
    if offers_state(layer):
        layer.set_checkpoint_state(attributes["offered"])
        vars(layer)["_np_random"] = attributes["random"]
        return
    # Attributes that came later have to go: tasks ask whether they have an attribute.
    for name in _attributes(layer).keys() - attributes.keys():
        object.__delattr__(layer, name)
    for name, value in attributes.items():
        if name not in NO_STATE:
            # Not ``setattr``, which wrappers may pass on to the layers below.
            object.__setattr__(layer, name, value)


class Checkpointable(gym.Wrapper):
    """
    A wrapper through which checkpoints reach an environment in another process.

    It has to be the outermost wrapper (``wrapper_class`` of ``make_vec_env``). Environments in ``DummyVecEnv`` do not
    need it.

    :param env: the environment, with its other wrappers
    """

    # SB3's ``set_attr`` sets it on the outermost wrapper.
    is_outermost = False

    def save_state(self) -> bytes | str:
        """
        Save the environment, with the random numbers of its process.

        :return: the state, or the reason why it can't be saved
        """
        if not vars(self).get("is_outermost", False):
            return "a wrapper lies around Checkpointable, which has to be the outermost"
        try:
            return pack({"env": save_envs([self.env]), "process": process_random()}, CODECS)
        except NotSavableError as error:
            return str(error)

    def restore_state(self, content: bytes, trusted: bool = True) -> tuple[str, str, list[str]]:
        """
        Let the environment go on where another was.

        Errors are returned, for an exception would end the process.

        :param content: the state, from ``save_state``
        :param trusted: whether texts may be set
        :return: the reason why the state can't be restored, and the reason why it is not this environment's, both empty
            if all went well; a sentence for each thing that is not as it was
        """
        try:
            saved = unpack(content, {"process": process_random()}, CODECS)
            return "", "", restore_envs([self.env], saved["env"], trusted=trusted)
        except NotSavableError as error:
            return str(error), "", []
        except Exception as error:
            return "", str(error), []


def process_random() -> dict[str, Any]:
    """
    Give the generators that Python and NumPy keep for the whole process.

    :return: the generators themselves
    """
    # These names are private, but there is no other way to the objects that ``random.random`` and ``np.random.rand``
    # use.
    return {"python": random._inst, "numpy": np.random.mtrand._rand}
