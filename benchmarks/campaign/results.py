"""
A run's two files: ``seed-3.json`` (configuration, scores, times) and ``seed-3.npz`` (arrays, with the names that
SB3's ``EvalCallback`` uses for its ``evaluations.npz``).

The arrays are in place before the JSON is, which carries their checksum; each is written beside its final name and
then renamed. So a run is finished when its JSON can be read and agrees with its arrays, and whatever was killed,
truncated or mixed up is found out by the reader.
"""

import dataclasses
import enum
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from campaign.specification import RunSpecification

FORMAT = 1
# Classes that a record names by where they stood when it was made.
RENAMED = {
    "sb3_trpo.policy_average.PolicyAverage": "sb3_trpo.PolicyAverage",
    "sb3_trpo.growing_horizon.GrowingHorizon": "sb3_trpo.GrowingHorizon",
}


class ResultError(Exception):
    """
    A result file that cannot be used; the message says why.
    """


@dataclass(frozen=True)
class Result:
    """
    What a run has measured.

    :param run: what was run
    :param values: the JSON's contents
    :param arrays: the contents of the ``.npz``
    """

    run: RunSpecification
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Status(enum.Enum):
    """What is known of a run from its files."""

    FINISHED = "finished"
    MISSING = "missing"
    BROKEN = "broken"
    DIFFERENT = "made with other settings"


def write(path: Path, run: RunSpecification, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """
    Write a run's result, its JSON last.

    :param path: of the JSON
    :param run: what was run
    :param values: what was measured; JSON-serializable
    :param arrays: what was measured, over time
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    header = {
        "format": FORMAT,
        "configuration": run.to_dict(),
        "configuration_hash": run.configuration_hash,
        "settings_hash": run.settings_hash,
        "arrays_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    # One line for each key: readable, and short in a diff.
    lines = [f"{json.dumps(key)}: {json.dumps(_finite(value))}" for key, value in {**header, **values}.items()]
    _replace(path.with_suffix(".npz"), buffer.getvalue())
    _replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read(path: Path) -> Result:
    """
    Read a run's result.

    :param path: of the JSON
    :return: its contents and the arrays beside it
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultError("no such file") from None
    except ValueError as error:
        raise ResultError(f"not JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ResultError(f"not a result in format {FORMAT}")
    try:
        run = RunSpecification.from_dict(values["configuration"])
        checksum, configuration_hash = values["arrays_sha256"], values["configuration_hash"]
    except (KeyError, TypeError) as error:
        raise ResultError(f"incomplete ({error})") from error
    if configuration_hash != run.configuration_hash:
        raise ResultError("the configuration does not have the hash that it was saved with")
    run = dataclasses.replace(run, hyperparams=_renamed(run.hyperparams), label=_renamed_label(run.label))
    result = Result(run, values, _read_arrays(path.with_suffix(".npz"), checksum))
    try:
        CHECKS[run.kind](result)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"incomplete ({error!r})") from error
    return result


def status(path: Path, run: RunSpecification) -> tuple[Status, str]:
    """
    Tell whether a run's result is there and can be used.

    :param path: where the run's result should be
    :param run: what should have been run
    :return: whether it is there, and the reason if it cannot be used
    """
    if not path.exists():
        if path.with_suffix(".npz").exists():
            return Status.BROKEN, "arrays without a JSON file"
        return Status.MISSING, ""
    try:
        result = read(path)
    except ResultError as error:
        return Status.BROKEN, str(error)
    if result.run.configuration_hash != run.configuration_hash:
        return Status.DIFFERENT, run.differences(result.run) or "another seed"
    return Status.FINISHED, ""


def _renamed(value: Any) -> Any:
    """
    Give classes in a record's settings the names that they have today.
    """
    if isinstance(value, dict):
        return {RENAMED.get(key, key): _renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_renamed, value))
    return RENAMED.get(value, value) if isinstance(value, str) else value


def _renamed_label(label: str) -> str:
    key, equals, value = label.partition("=")
    return f"{key}{equals}{_renamed(value)}"


def _read_arrays(path: Path, checksum: str) -> dict[str, np.ndarray]:
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        raise ResultError(f"{path.name} is missing") from None
    if hashlib.sha256(contents).hexdigest() != checksum:
        raise ResultError(f"{path.name} does not have the checksum that the JSON names")
    with np.load(io.BytesIO(contents)) as arrays:
        return dict(arrays)


def _check_learning(result: Result) -> None:
    protocol, arrays = result.run.protocol, result.arrays
    n_evaluations = len(arrays["timesteps"])
    if n_evaluations == 0 or (np.diff(arrays["timesteps"]) <= 0).any():
        raise ValueError("timesteps do not increase")
    if arrays["timesteps"][-1] < result.run.n_timesteps:
        raise ValueError(f"ends at step {arrays['timesteps'][-1]} of {result.run.n_timesteps}")
    for name in ("results", "ep_lengths"):
        if arrays[name].shape != (n_evaluations, protocol["n_eval_episodes"]) or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite and of shape (evaluations, episodes)")
    returns = np.array(result.values["final_returns"], dtype=float)
    if returns.shape != (protocol["n_final_episodes"],) or not np.isfinite(returns).all():
        raise ValueError("final_returns are not finite numbers, one for each episode")
    if not math.isclose(result.values["score"], returns.mean(), rel_tol=1e-6, abs_tol=1e-6):
        raise ValueError("score is not the mean of final_returns")


def _check_improvement(result: Result) -> None:
    protocol, arrays = result.run.protocol, result.arrays
    shape = (len(protocol["stages"]) * protocol["n_updates"], protocol["n_episodes"])
    for name in ("returns_before", "returns_after"):
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite and of shape {shape}")
    if arrays["timesteps"].shape != shape[:1]:
        raise ValueError(f"timesteps is not of shape {shape[:1]}")


# What a result of each kind must hold.
CHECKS = {"learning": _check_learning, "improvement": _check_improvement}


def _finite(value: Any) -> Any:
    """Return the value with None for what JSON cannot say: NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _replace(path: Path, contents: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
