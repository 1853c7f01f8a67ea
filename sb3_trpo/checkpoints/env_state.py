"""
The state of one environment, wrapper by wrapper.

Of each layer every attribute is saved. An environment whose attributes are all data, or of a known kind
(``kinds.py``), goes on exactly where it was: classic control, toy text and MuJoCo tasks, with Gymnasium's wrappers. One
that keeps its state elsewhere (Box2D, an emulator, a server) may offer it as plain data, with two methods of its class:
``get_checkpoint_state()``, and ``set_checkpoint_state(state)``, which takes what the first has returned. Its random
numbers (``np_random``) need not be in it.
"""

import random
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_trpo.checkpoints.kinds import KINDS
from sb3_trpo.checkpoints.tree import NotSavableError, class_path, pack, unpack

# The next layer; arguments that a layer was made with.
NO_STATE = ("env", "_saved_kwargs")
OFFERS_STATE = ("get_checkpoint_state", "set_checkpoint_state")


def save_env(env: gym.Env) -> bytes:
    """
    :param env: with its wrappers
    :return: its state
    :raises NotSavableError: naming the attribute that can't be saved
    """
    states = []
    for layer in _layers(env):
        try:
            states.append(pack(_attributes(layer), KINDS))
        except NotSavableError as error:
            raise NotSavableError(f"{type(layer).__name__}{error}") from error
    return pack({"layers": list(map(class_path, _layers(env))), "states": states})


def restore_env(env: gym.Env, content: bytes) -> None:
    """
    :param env: made as the one that was saved
    :param content: of ``save_env``
    :raises ValueError: if it is another environment, or has other wrappers
    :raises NotSavableError: if something in it is not as it was
    """
    saved = unpack(content)
    layers = _layers(env)
    names = list(map(class_path, layers))
    if names != saved["layers"]:
        raise ValueError(f"The checkpoint is of an environment {saved['layers']}, but this one is {names}.")
    for layer, state in zip(layers, saved["states"], strict=True):
        _set_attributes(layer, unpack(state, _attributes(layer), KINDS))


def _layers(env: gym.Env) -> list[gym.Env]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _offers_state(layer: Any) -> bool:
    return all(callable(getattr(type(layer), name, None)) for name in OFFERS_STATE)


def _attributes(layer: Any) -> dict[str, Any]:
    if isinstance(layer, Checkpointable):
        return {}
    if _offers_state(layer):
        return {"offered": layer.get_checkpoint_state(), "random": vars(layer).get("_np_random")}
    return {name: value for name, value in vars(layer).items() if name not in NO_STATE}


def _set_attributes(layer: Any, attributes: dict[str, Any]) -> None:
    if isinstance(layer, Checkpointable):
        return
    if _offers_state(layer):
        layer.set_checkpoint_state(attributes["offered"])
        attributes = {"_np_random": attributes["random"]}
    vars(layer).update({name: value for name, value in attributes.items() if name not in NO_STATE})


class Checkpointable(gym.Wrapper):
    """
    Lets checkpoints reach an environment in another process; to be the outermost wrapper (``wrapper_class`` of
    ``make_vec_env``). Environments in ``DummyVecEnv`` do without.

    :param env: with its other wrappers
    """

    # Set from outside, on the outermost wrapper.
    is_outermost = False

    def save_state(self) -> bytes | str:
        """
        :return: the environment's state, with the random numbers of its process; or why it can't be saved
        """
        if not vars(self).get("is_outermost", False):
            return "a wrapper lies around Checkpointable, which has to be the outermost"
        try:
            return pack({"env": save_env(self.env), "process": process_random()}, KINDS)
        except NotSavableError as error:
            return str(error)

    def restore_state(self, content: bytes) -> tuple[str, str]:
        """
        An exception would end the process.

        :param content: of ``save_state``
        :return: why the state can't be restored, and why it is not this environment's; empty if all went well
        """
        try:
            saved = unpack(content, {"process": process_random()}, KINDS)
            restore_env(self.env, saved["env"])
        except NotSavableError as error:
            return str(error), ""
        except ValueError as error:
            return "", str(error)
        return "", ""


def process_random() -> dict[str, Any]:
    """
    :return: the generators that Python and NumPy keep for the whole process
    """
    return {"python": random._inst, "numpy": np.random.mtrand._rand}
