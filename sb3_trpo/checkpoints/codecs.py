"""
The objects of environments and wrappers that checkpoints know: random numbers, spaces, simulations.
"""

import hashlib
import importlib
import random
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo.checkpoints.tree import Kind, NotSavableError, class_path

# Windows, clocks and fonts, as far as Python objects hold them: they show a state, and have none.
DISPLAYS = ("pygame.", "gymnasium.envs.mujoco.mujoco_rendering.")
# Arrays of a simulation that belong to the contacts of the moment: computed anew at each step, of any length.
OF_CONTACTS = ("efc_", "iefc_", "island_")


def _save_generator(generator: np.random.Generator) -> dict[str, Any]:
    return dict(generator.bit_generator.state)


def _restore_generator(state: dict[str, Any], existing: np.random.Generator | None) -> np.random.Generator:
    name = state["bit_generator"]
    if existing is None or type(existing.bit_generator).__name__ != name:
        if name not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
            raise NotSavableError(f"random numbers come from {name!r}")
        existing = np.random.Generator(getattr(np.random, name)(0))
    existing.bit_generator.state = state
    return existing


def _save_random_state(generator: np.random.RandomState) -> dict[str, Any]:
    return dict(generator.get_state(legacy=False))


def _restore_random_state(state: dict[str, Any], existing: np.random.RandomState | None) -> np.random.RandomState:
    generator = np.random.RandomState() if existing is None else existing
    generator.set_state(state)
    return generator


def _save_random(generator: random.Random) -> Any:
    return generator.getstate()


def _restore_random(state: Any, existing: random.Random | None) -> random.Random:
    generator = random.Random() if existing is None else existing
    generator.setstate(state)
    return generator


def _parts_of_space(space: spaces.Space) -> list[spaces.Space]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple) else []


def _save_space(space: spaces.Space) -> dict[str, Any]:
    # Not the property, which would make random numbers that are not there yet.
    return {"random": space._np_random, "parts": _parts_of_space(space)}


def _restore_space(state: dict[str, Any], existing: spaces.Space | None) -> spaces.Space:
    if existing is None:
        raise NotSavableError("a space was saved where now is none")
    existing._np_random = state["random"]
    return existing


def _mujoco() -> Any:
    # Needed only where there is a simulation, and then installed.
    return importlib.import_module("mujoco")


def _is_simulation(value: Any) -> bool:
    return class_path(value) == "mujoco._structs.MjData"


def _save_simulation(data: Any) -> dict[str, Any]:
    """
    :param data: a simulation, of type ``MjData``
    :return: its state, and what was computed from it: tasks read positions and forces that lag one step behind the
        state, so that computing them anew would give others
    """
    mujoco = _mujoco()
    state = np.empty(mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {"model": _digest(data.model), "state": state, "computed": {k: v.copy() for k, v in _arrays(data).items()}}


def _restore_simulation(saved: dict[str, Any], existing: Any) -> Any:
    mujoco = _mujoco()
    if existing is None or _digest(existing.model) != saved["model"]:
        raise NotSavableError("the simulation's model is not the one that was saved")
    mujoco.mj_setState(existing.model, existing, saved["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, array in _arrays(existing).items():
        if name in saved["computed"] and saved["computed"][name].shape == array.shape:
            array[...] = saved["computed"][name]
    return existing


def _arrays(data: Any) -> dict[str, np.ndarray]:
    names = [name for name in dir(data) if not name.startswith(("_", *OF_CONTACTS))]
    values = ((name, getattr(data, name)) for name in names)
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


def _digest(model: Any) -> str:
    """
    :param model: that a task may change, as it changes masses or frictions at each reset
    :return: of all its numbers
    """
    mujoco = _mujoco()
    content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.sha256(content.tobytes()).hexdigest()


def _save_statistics(statistics: RunningMeanStd) -> dict[str, Any]:
    return {name: vars(statistics)[name] for name in ("mean", "var", "count")}


def _restore_statistics(state: dict[str, Any], existing: RunningMeanStd | None) -> RunningMeanStd:
    statistics = RunningMeanStd() if existing is None else existing
    vars(statistics).update(state)
    return statistics


def _save_results(writer: ResultsWriter) -> int:
    return writer.file_handler.tell()


def _restore_results(length: int, existing: ResultsWriter | None) -> ResultsWriter | None:
    # What was written after the checkpoint will be written once more. A file that was begun anew stays.
    if existing is not None:
        file = existing.file_handler
        file.seek(0, 2)
        if file.tell() > length:
            file.truncate(length)
            file.seek(length)
    return existing


def _is_fixed(value: Any) -> bool:
    return isinstance(value, EnvSpec) or class_path(value).startswith(("mujoco._structs.MjModel", *DISPLAYS))


def _keep(_: Any, existing: Any) -> Any:
    return existing


KINDS = (
    Kind("generator", lambda x: type(x) is np.random.Generator, _save_generator, _restore_generator),
    Kind("RandomState", lambda x: type(x) is np.random.RandomState, _save_random_state, _restore_random_state),
    Kind("random", lambda x: type(x) is random.Random, _save_random, _restore_random),
    Kind("space", lambda x: isinstance(x, spaces.Space), _save_space, _restore_space),
    Kind("MuJoCo", _is_simulation, _save_simulation, _restore_simulation),
    Kind("statistics", lambda x: type(x).__name__ == "RunningMeanStd", _save_statistics, _restore_statistics),
    Kind("results", lambda x: isinstance(x, ResultsWriter), _save_results, _restore_results),
    Kind("fixed", _is_fixed, lambda _: None, _keep),
)
