"""
Saved models from strangers.

SB3's ``load`` unpickles the attributes that a file holds, and a pickle may run any code. Here the file is read as data,
made into objects of a short list (``objects.py``) and tensors that are covered by their data (``weights.py``), and
compared with the policy that it describes before any memory is taken for that. What SB3's ``load`` then gets is a new
archive without a pickled attribute, and the attributes themselves as ``custom_objects``.
"""

import base64
import contextlib
import io
import json
import math
import pathlib
from collections import deque
from collections.abc import Iterator
from types import NoneType
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.save_util import open_path

from sb3_trpo.saved_models.archive import read_archive, write_archive
from sb3_trpo.saved_models.objects import read_object
from sb3_trpo.saved_models.pickle_reader import RefusedModelError
from sb3_trpo.saved_models.weights import read_weights
from sb3_trpo.update.transaction import skip_distribution_checks
from sb3_trpo.validation import check_real

WEIGHTS = ("policy.pth", "policy.optimizer.pth")
VARIABLES = "pytorch_variables.pth"
# What a checkpoint holds besides the model; not read here.
TRAINING_STATE = "training_state"
NOTES = ("_stable_baselines3_version", "system_info.txt")
REQUIRED = ("policy_class", "policy_kwargs", "observation_space", "action_space", "lr_schedule", "n_steps", "n_envs")
INTEGERS = ("verbose", "num_timesteps", "n_steps", "n_envs", "_n_updates", "_stats_window_size", "_episode_num")
QUEUES = ("ep_info_buffer", "ep_success_buffer")
# What an attribute may be besides a number, text or container of such.
KINDS: dict[str, type] = {"policy_class": ActorCriticPolicy, "rollout_buffer_class": RolloutBuffer}
# Of the rollout buffer that comes with a model. It is taken from the system page by page as it is filled.
MAX_BUFFER_BYTES = 2**33
BYTES_PER_NUMBER = 4

ModelPath = str | pathlib.Path | io.BufferedIOBase


@contextlib.contextmanager
def model_file(
    algorithm_class: type, path: ModelPath, custom_objects: dict[str, Any] | None, is_trusted: bool
) -> Iterator[tuple[ModelPath, dict[str, Any] | None]]:
    """
    :param algorithm_class: of which the file is to be a model
    :param path: of the file, or an open file
    :param custom_objects: attributes to be used in the place of the file's; these are trusted
    :param is_trusted: whether the file is, too; then it stays as it is
    :return: a file, and the attributes to be used in the place of its own, for SB3's ``load``
    :raises RefusedModelError: if the file holds what it should not, or loading it fails in the block
    """
    if is_trusted:
        yield path, custom_objects
        return
    try:
        yield _read(algorithm_class, path, custom_objects or {})
    except RefusedModelError as error:
        raise RefusedModelError(f"{path} was refused: {error}.") from error
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise RefusedModelError(f"{path} does not fit together ({type(error).__name__}: {error}).") from error


def _read(algorithm_class: type, path: ModelPath, custom_objects: dict[str, Any]) -> tuple[io.BytesIO, dict[str, Any]]:
    file = open_path(path, "r", suffix="zip")
    try:
        members = read_archive(file)
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
    members.pop(TRAINING_STATE, None)
    unknown = members.keys() - {"data", VARIABLES, *WEIGHTS, *NOTES}
    missing = {"data", *WEIGHTS} - members.keys()
    if unknown or missing:
        names = ", ".join(repr(name[:100]) for name in sorted(unknown or missing)[:5])
        raise RefusedModelError(f"its members are not those of a model: {names} {'too many' if unknown else 'missing'}")

    attributes = _read_attributes(algorithm_class, members["data"], custom_objects)
    weights = {name: _named(name, read_weights, members[name]) for name in (*WEIGHTS, VARIABLES) if name in members}
    if not weights.get(VARIABLES):
        weights.pop(VARIABLES, None)
    _check_variables(weights.get(VARIABLES, {}))
    _check_policy(attributes, weights, custom_objects.keys() & attributes.keys())
    clean = {"data": json.dumps(dict.fromkeys(attributes)).encode()}
    clean.update((name, _saved(value)) for name, value in weights.items())
    clean.update((name, _printable(members[name])) for name in NOTES if name in members)
    return io.BytesIO(write_archive(clean)), attributes


def _named(name: str, read: Any, *args: Any) -> Any:
    """
    :param name: of a part of the file
    :param read: reads it
    :param args: of ``read``
    :return: what it gives; its refusals say which part it was
    """
    try:
        return read(*args)
    except RefusedModelError as error:
        raise RefusedModelError(f"{name}: {error}") from error
    except RecursionError as error:
        raise RefusedModelError(f"{name}: it is nested too deeply") from error


def _read_attributes(algorithm_class: type, content: bytes, custom_objects: dict[str, Any]) -> dict[str, Any]:
    """
    :param algorithm_class: of the model
    :param content: JSON
    :param custom_objects: attributes that need not be read
    :return: the model's attributes
    """
    try:
        data = json.loads(content)
        items = dict(data).items()
    except (ValueError, TypeError, RecursionError) as error:
        raise RefusedModelError(f"its attributes are no JSON ({type(error).__name__})") from error
    attributes: dict[str, Any] = {}
    for name, item in items:
        if hasattr(algorithm_class, name) or not name.isidentifier():
            raise RefusedModelError(f"it has an attribute {name[:100]!r}, which no model saves")
        if name in custom_objects:
            attributes[name] = custom_objects[name]
        elif isinstance(item, dict) and ":serialized:" in item:
            attributes[name] = _named(f"attribute {name!r}", _read_serialized, item[":serialized:"])
        else:
            attributes[name] = item
    _check_attributes(attributes)
    # Training starts with a reset, and writes nothing to where the file says.
    attributes.update(dict.fromkeys(attributes.keys() & {"_last_obs", "_last_original_obs", "_last_episode_starts"}))
    if "tensorboard_log" not in custom_objects:
        attributes["tensorboard_log"] = None
    return attributes


def _read_serialized(text: Any) -> Any:
    try:
        pickled = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise RefusedModelError("it is no base64") from error
    return read_object(pickled)


def _check_attributes(attributes: dict[str, Any]) -> None:
    """
    What the constructor takes is checked by ``sb3_trpo.validation`` as always.

    :param attributes: of the model
    :raises RefusedModelError: if one is not of its kind
    """
    for name in REQUIRED:
        if name not in attributes:
            raise RefusedModelError(f"it has no {name}")
    for name in ("env", "policy", "device", "rollout_buffer", "_logger", "_custom_logger", "_vec_normalize_env"):
        if name in attributes:
            raise RefusedModelError(f"it has an attribute {name!r}, which no model saves")
    if not isinstance(attributes["policy_kwargs"], dict) or not callable(attributes["lr_schedule"]):
        raise RefusedModelError("its policy_kwargs are no dictionary, or its lr_schedule is no schedule")
    _check_types(attributes)


def _check_types(attributes: dict[str, Any]) -> None:
    for name in INTEGERS:
        if name in attributes and (type(attributes[name]) is not int or attributes[name] < 0):
            raise RefusedModelError(f"its {name} is no whole number")
    for name in QUEUES:
        if not isinstance(attributes.get(name), (deque, NoneType)):
            raise RefusedModelError(f"its {name} is no queue")
    check_real("kl_scale", attributes.get("kl_scale", 1.0), "above 0", lambda x: x > 0)
    for name, kind in KINDS.items():
        value = attributes.get(name)
        if value is not None and not (isinstance(value, type) and issubclass(value, kind)):
            raise RefusedModelError(f"its {name} is no {kind.__name__}")


def _check_variables(variables: Any) -> None:
    """
    :param variables: the model's tensors that belong to no module
    :raises RefusedModelError: if SB3 would write them to another place
    """
    if not isinstance(variables, dict) or variables.keys() - {"cg_direction"}:
        raise RefusedModelError(f"{VARIABLES}: it holds others than cg_direction")
    if not all(isinstance(tensor, th.Tensor) and tensor.dim() == 1 for tensor in variables.values()):
        raise RefusedModelError(f"{VARIABLES}: cg_direction is no vector")


def _check_policy(attributes: dict[str, Any], weights: dict[str, Any], replaced: set[str]) -> None:
    """
    Compare the policy that the attributes describe with the weights that there are, without taking memory for it.

    :param attributes: of the model
    :param weights: contents of the files of tensors
    :param replaced: names of the attributes that are the user's, who may have a policy of any kind
    :raises RefusedModelError: if they do not fit
    """
    _check_buffer(attributes)
    state, optimizer = weights["policy.pth"], weights["policy.optimizer.pth"]
    if not isinstance(state, dict) or not isinstance(optimizer, dict):
        raise RefusedModelError("its weights are no dictionaries")
    if replaced & {"policy_class", "policy_kwargs"}:
        return
    if _count(attributes["policy_kwargs"]) > 1000 + len(state):
        raise RefusedModelError("its policy_kwargs describe more layers than there are weights")
    policy = _policy_without_memory(attributes)
    expected = {name: tensor.shape for name, tensor in policy.state_dict().items()}
    if {name: getattr(tensor, "shape", None) for name, tensor in state.items()} != expected:
        raise RefusedModelError("its weights are not those of the policy that it describes")
    parameters = list(policy.parameters())
    for i, moments in optimizer.get("state", {}).items():
        for tensor in moments.values():
            if isinstance(tensor, th.Tensor) and tensor.numel() > parameters[i].numel():
                raise RefusedModelError("its optimizer's state is not that of its policy")


def _check_buffer(attributes: dict[str, Any]) -> None:
    shapes = get_obs_shape(attributes["observation_space"])
    n_numbers = sum(map(math.prod, shapes.values())) if isinstance(shapes, dict) else math.prod(shapes)
    # Actions; rewards, returns, episode starts, values, log-probabilities, advantages.
    n_numbers += get_action_dim(attributes["action_space"]) + 6
    n_bytes = int(n_numbers) * attributes["n_steps"] * attributes["n_envs"] * BYTES_PER_NUMBER
    if n_bytes > MAX_BUFFER_BYTES:
        raise RefusedModelError(f"its rollout buffer would take {n_bytes:.3g} bytes")


def _policy_without_memory(attributes: dict[str, Any]) -> ActorCriticPolicy:
    policy_class = type("Shapes", (attributes["policy_class"],), {"device": property(lambda _: th.device("meta"))})
    with th.device("meta"), skip_distribution_checks():
        return policy_class(
            attributes["observation_space"],
            attributes["action_space"],
            attributes["lr_schedule"],
            use_sde=attributes.get("use_sde", False),
            **{name: value for name, value in attributes["policy_kwargs"].items() if name != "device"},
        )


def _count(node: Any) -> int:
    if isinstance(node, dict):
        node = list(node.values())
    return sum(map(_count, node)) if isinstance(node, (list, tuple)) else 1


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


def _printable(content: bytes) -> bytes:
    """
    :param content: text that SB3 may print
    :return: without what a terminal would obey
    """
    text = content[:10_000].decode(errors="replace")
    return "".join(character for character in text if character.isprintable() or character == "\n").encode()
