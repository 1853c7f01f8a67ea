"""
The state of a MuJoCo simulation.
"""

import hashlib
from typing import Any, Protocol

from sb3_trpo.checkpoints.tree_format import Codec, NotSavableError, class_path


class _Model(Protocol):
    """The part of ``mujoco.MjModel`` that is used here."""

    def __getstate__(self) -> bytes: ...


class _Data(Protocol):
    """The part of ``mujoco.MjData`` that is used here; MuJoCo is an extra and need not be installed."""

    model: _Model

    def __getstate__(self) -> bytes: ...

    def __setstate__(self, memory: bytes) -> None: ...


def _is_simulation(value: object) -> bool:
    return class_path(value) == "mujoco._structs.MjData"


def _save(data: _Data) -> dict[str, Any]:
    """
    Read a simulation's memory.

    The state alone would not be enough: tasks read positions, forces and contacts that lag one step behind it, so that
    computing them anew would give others.

    :param data: the simulation
    :return: all of its memory but the robot's model, of which there is a digest
    """
    memory, model = data.__getstate__(), data.model.__getstate__()
    start = memory.find(model)
    before, after = (memory[:start], memory[start + len(model) :]) if start >= 0 else (memory, b"")
    return {"model": _digest(model), "before": before, "after": after, "is_apart": start >= 0}


def _restore(saved: dict[str, Any], existing: _Data | None) -> _Data:
    """
    Write a simulation's memory.

    :param saved: the memory, from ``_save``
    :param existing: a simulation of the same model
    :return: this simulation, as the saved one was
    :raises NotSavableError: if its model is another, for tasks may change masses or frictions at each reset
    """
    # Where there is a simulation, MuJoCo is installed.
    import mujoco  # type: ignore[import-untyped]  # It has no types.

    if existing is None or _digest(existing.model.__getstate__()) != saved["model"]:
        raise NotSavableError("the simulation's model is not the one that was saved")
    model = existing.model.__getstate__() if saved["is_apart"] else b""
    copy = mujoco.MjData.__new__(mujoco.MjData)
    copy.__setstate__(saved["before"] + model + saved["after"])
    # In place, for tasks hold views of the simulation's memory.
    mujoco.mj_copyData(existing, existing.model, copy)
    return existing


def _digest(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()


# The simulation does not check what is in its memory.
MUJOCO = Codec("MuJoCo", _is_simulation, _save, _restore, needs_trust=True)
