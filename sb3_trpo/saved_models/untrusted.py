"""
Saved models from strangers.

SB3's ``load`` unpickles the attributes that a file holds, and a pickle may run any code. Here the file is read as data,
made into objects of a short list (``objects.py``) and tensors of bytes that are there (``weights.py``), and compared
with the policy that it describes before any memory is taken for that (``checks.py``). What SB3's ``load`` then gets is
a new archive without a pickled attribute, and the attributes themselves as ``custom_objects``.
"""

import base64
import contextlib
import io
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.utils import FloatSchedule

from sb3_trpo.saved_models.archive import check_is_file, read_archive, write_archive
from sb3_trpo.saved_models.budget import Budget, check_integer_size
from sb3_trpo.saved_models.checks import QUEUES, check_attributes, check_buffer, check_policy
from sb3_trpo.saved_models.limits import COUNTS, check_limits
from sb3_trpo.saved_models.objects import read_episodes, read_object
from sb3_trpo.saved_models.origin import ModelPath
from sb3_trpo.saved_models.refused import RefusedModelError, printable
from sb3_trpo.saved_models.weights import read_weights

POLICY, OPTIMIZER, VARIABLES = "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"
# The member that a checkpoint has besides the model; it is not read here.
TRAINING_STATE = "training_state"
NOTES = ("_stable_baselines3_version", "system_info.txt")
NOTE_CHARACTERS = 10_000
# A model has some hundred attributes.
MAX_JSON_ITEMS = 200_000
# Training starts with a reset, and writes nothing to where the file says.
LEFT_OUT = ("_last_obs", "_last_original_obs", "_last_episode_starts", "tensorboard_log")
# The arguments that may be functions of the remaining progress, and the attributes that are made of them.
SCHEDULES = {
    "learning_rate": "learning_rate",
    "lr_schedule": "learning_rate",
    "target_kl": "target_kl",
    "min_std": "min_std",
    "max_std": "max_std",
}

Attributes = dict[str, Any]
# A function of the attributes in the file that gives the attributes to use in the place of some of them.
Replace = Callable[[Mapping[str, object]], Attributes]
T = TypeVar("T")


@contextlib.contextmanager
def read_untrusted(algorithm_class: type, path: ModelPath, replace: Replace) -> Iterator[tuple[io.BytesIO, Attributes]]:
    """
    Read a model from a stranger, for SB3's ``load``, which is called in the block.

    :param algorithm_class: the class of the model
    :param path: the file's path, or an open file
    :param replace: a function of the attributes in the file that gives those to use in their place, which are trusted
    :return: a file, and the attributes to use in the place of its own
    :raises RefusedModelError: if the file holds what it should not, or loading it fails in the block
    """
    try:
        yield _read(algorithm_class, path, replace)
    except RefusedModelError as error:
        raise RefusedModelError(f"{path} was refused: {error}.") from error
    except OSError:
        raise
    except ValueError as error:
        # Checks of arguments, and SB3's, repeat what the file holds.
        raise RefusedModelError(f"{path} can't be loaded: {str(error).rstrip('.')}.") from error
    except Exception as error:
        raise RefusedModelError(f"{path} does not fit together ({type(error).__name__}: {error}).") from error


def _read(algorithm_class: type, path: ModelPath, replace: Replace) -> tuple[io.BytesIO, Attributes]:
    if isinstance(path, (str, pathlib.Path)):
        for candidate in (pathlib.Path(path), pathlib.Path(f"{path}.zip")):
            check_is_file(candidate)
    file = open_path(path, "r", suffix="zip")
    try:
        budget = Budget(file.seek(0, io.SEEK_END))
        members = read_archive(file, budget)
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
    members.pop(TRAINING_STATE, None)
    data = _read_json(members.get("data", b"{}"))
    replaced = replace(data)
    _check_names(members)
    attributes = _read_attributes(algorithm_class, data, replaced, budget)
    check_attributes(algorithm_class, attributes)
    check_limits(attributes, replaced.keys())
    names = [name for name in (POLICY, OPTIMIZER, VARIABLES) if name in members]
    weights = {name: _name_refusals(name, read_weights, members[name], budget) for name in names}
    if weights.pop(VARIABLES, {}) != {}:
        raise RefusedModelError(f"{VARIABLES}: it holds something")
    check_buffer(attributes)
    # A policy that the user gives may be of any kind.
    if not {"policy_class", "policy_kwargs"} & replaced.keys():
        check_policy(attributes, weights[POLICY], weights[OPTIMIZER])
    clean = {"data": json.dumps(dict.fromkeys(attributes)).encode()}
    clean.update((name, _save(value)) for name, value in weights.items())
    clean.update((name, _print_note(members[name])) for name in NOTES if name in members)
    return io.BytesIO(write_archive(clean)), attributes


def _check_names(members: dict[str, bytes]) -> None:
    unknown = members.keys() - {"data", VARIABLES, POLICY, OPTIMIZER, *NOTES}
    missing = {"data", POLICY, OPTIMIZER} - members.keys()
    if unknown or missing:
        names = ", ".join(repr(name[:100]) for name in sorted(unknown or missing)[:5])
        raise RefusedModelError(f"its members are not those of a model: {names} {'too many' if unknown else 'missing'}")


def _name_refusals(name: str, read: Callable[[Any, Budget], T], content: object, budget: Budget) -> T:
    """
    Read a part of the file, and let a refusal name the part.

    :param name: the name of the part
    :param read: the function that reads it
    :param content: the part
    :param budget: the budget of the file
    :return: the result of the function
    """
    try:
        return read(content, budget)
    except RefusedModelError as error:
        raise RefusedModelError(f"{name}: {error}") from error
    except RecursionError as error:
        raise RefusedModelError(f"{name}: it is nested too deeply") from error


def _read_json(content: bytes) -> dict[str, object]:
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_ITEMS:
        raise RefusedModelError(f"its attributes are more than {MAX_JSON_ITEMS}")
    try:
        return dict(json.loads(content, parse_int=lambda text: check_integer_size(int(text))).items())
    except RefusedModelError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedModelError(f"its attributes are no JSON ({type(error).__name__})") from error


def _read_attributes(
    algorithm_class: type, data: Mapping[str, object], replaced: Attributes, budget: Budget
) -> Attributes:
    """
    Make a model's attributes.

    :param algorithm_class: the class of the model
    :param data: the attributes, as they are in the file
    :param replaced: the attributes that need not be read
    :param budget: the budget of the file
    :return: the attributes
    """
    attributes: Attributes = {}
    for name, item in data.items():
        if hasattr(algorithm_class, name) or not name.isidentifier():
            raise RefusedModelError(f"it has an attribute {name[:100]!r}, which no model saves")
        if name in replaced:
            attributes[name] = replaced[name]
        elif isinstance(item, dict) and ":serialized:" in item:
            read = _read_episodes if name in QUEUES else _read_object
            where, text = f"attribute {name!r}", item[":serialized:"]
            attributes[name] = _explain_schedules(name, partial(_name_refusals, where, read, text, budget))
        else:
            attributes[name] = item
    attributes.update(dict.fromkeys((attributes.keys() & LEFT_OUT) - replaced.keys()))
    return attributes


def given_in_place(given: Attributes) -> Attributes:
    """
    Take the schedules and counts that the user gives, so that those of the file need be neither read nor limited.

    :param given: the attributes that the user gives in the place of the file's
    :return: those that are schedules or counts, and those that are made of them
    """
    in_place = {name: given[name] for name in SCHEDULES if name in given}
    # Others are no counts, and refused as arguments.
    in_place |= {name: int(given[name]) for name in COUNTS if isinstance(given.get(name), Integral)}
    rate = in_place.get("learning_rate")
    if callable(rate):
        in_place["lr_schedule"] = FloatSchedule(rate)
    elif isinstance(rate, Real) and float(rate) >= 0.0:
        in_place["lr_schedule"] = FloatSchedule(float(rate))
    return in_place


def _explain_schedules(name: str, read: Callable[[], Any]) -> Any:
    """
    Read an attribute, and let a refusal say what can take the place of a schedule.

    :param name: the attribute's name
    :param read: the function that reads it
    :return: the result of the function
    """
    try:
        return read()
    except RefusedModelError as error:
        if name not in SCHEDULES:
            raise
        raise RefusedModelError(
            f"{error}; a schedule that is its author's function can be given anew: load(..., trusted=False, "
            f"{SCHEDULES[name]}=...)"
        ) from error


def _read_object(text: object, budget: Budget) -> Any:
    return read_object(_decode(text, budget), budget)


def _read_episodes(text: object, budget: Budget) -> Any:
    return read_episodes(_decode(text, budget), budget)


def _decode(text: object, budget: Budget) -> bytes:
    try:
        # Anything but a text raises a TypeError.
        pickled = base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise RefusedModelError("it is no base64") from error
    budget.spend(len(pickled))
    return pickled


def _save(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


def _print_note(content: bytes) -> bytes:
    """
    Make a text printable that SB3 may print.

    :param content: the text
    :return: the text without the characters that a terminal would obey
    """
    text = content[:NOTE_CHARACTERS].decode(errors="replace")
    return printable(text, keep="\n", max_characters=NOTE_CHARACTERS).encode()
