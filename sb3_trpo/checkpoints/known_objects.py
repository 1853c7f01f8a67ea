"""
The objects of environments and wrappers that checkpoints know: random numbers, spaces, simulations.
"""

import random
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo.checkpoints.simulations import MUJOCO
from sb3_trpo.checkpoints.tree_format import Codec, NotSavableError, class_path

# Windows, clocks and fonts, as far as Python objects hold them: they show a state, but have none.
DISPLAYS = ("pygame.", "gymnasium.envs.mujoco.mujoco_rendering.")
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
# NumPy reads at these positions without a check: the generator's name, the position's name, the last allowed position.
POSITIONS = {"MT19937": ("pos", 624), "Philox": ("buffer_pos", 4)}
MAX_POOL = 64
# What the children of a sequence of seeds are made from, and their number.
SEEDS = ("entropy", "spawn_key", "pool_size", "n_children_spawned")


def _save_seeds(sequence: np.random.SeedSequence) -> dict[str, Any]:
    return {name: getattr(sequence, name) for name in SEEDS}


def _restore_seeds(saved: dict[str, Any], existing: Any) -> np.random.SeedSequence:
    if saved["pool_size"] > MAX_POOL:
        raise NotSavableError("a sequence of seeds is too large")
    return np.random.SeedSequence(**{name: saved[name] for name in SEEDS})


def _is_bit_generator(value: object) -> bool:
    return isinstance(value, np.random.BitGenerator) and type(value).__name__ in BIT_GENERATORS


def _save_bit_generator(generator: np.random.BitGenerator) -> dict[str, Any]:
    return {"state": dict(generator.state), "seeds": generator.seed_seq}


def _restore_bit_generator(saved: dict[str, Any], existing: Any) -> np.random.BitGenerator:
    name = saved["state"]["bit_generator"]
    if name not in BIT_GENERATORS or not isinstance(saved["seeds"], np.random.SeedSequence):
        raise NotSavableError(f"random numbers come from {name!r}")
    _check_position(saved["state"])
    # A new one, for its seeds can't be changed.
    generator: np.random.BitGenerator = getattr(np.random, name)(saved["seeds"])
    generator.state = saved["state"]
    return generator


def _save_generator(generator: np.random.Generator) -> np.random.BitGenerator:
    return generator.bit_generator


def _restore_generator(bit_generator: np.random.BitGenerator, existing: Any) -> np.random.Generator:
    return np.random.Generator(bit_generator)


def _check_position(state: dict[str, Any]) -> None:
    """
    Check the place in the generator's memory where it reads next.

    :param state: the state of a bit generator
    :raises NotSavableError: if there is no such place
    """
    if state["bit_generator"] in POSITIONS:
        name, last = POSITIONS[state["bit_generator"]]
        position = state["state"].get(name, state.get(name))
        if type(position) not in (int, np.int64) or not 0 <= position <= last:
            raise NotSavableError("a random generator reads from outside of its memory")


def _save_random_state(generator: np.random.RandomState) -> dict[str, Any]:
    return dict(generator.get_state(legacy=False))


def _restore_random_state(state: dict[str, Any], existing: np.random.RandomState | None) -> np.random.RandomState:
    if state["bit_generator"] != "MT19937":
        raise NotSavableError(f"random numbers come from {state['bit_generator']!r}")
    _check_position(state)
    generator = np.random.RandomState() if existing is None else existing
    generator.set_state(state)
    return generator


def _save_random(generator: random.Random) -> Any:
    return generator.getstate()


def _restore_random(state: Any, existing: random.Random | None) -> random.Random:
    generator = random.Random() if existing is None else existing
    generator.setstate(state)
    return generator


def _is_seeded(value: Any) -> bool:
    """
    Tell whether a space has a random generator.

    :param value: a space, or a part of one
    :return: whether it, or a space in it, has been asked for random numbers
    """
    if isinstance(value, spaces.Space):
        return any(map(_is_seeded, vars(value).values()))
    if isinstance(value, np.random.Generator):
        return True
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(map(_is_seeded, parts))


def _save_space(space: spaces.Space[Any]) -> dict[str, Any]:
    # ``_np_random``, not the property, which would make random numbers that are not there yet.
    random_numbers, rest = space._np_random, {k: v for k, v in vars(space).items() if k != "_np_random"}
    return {"random": random_numbers, "rest": rest}


def _restore_space(saved: dict[str, Any], existing: spaces.Space[Any] | None) -> spaces.Space[Any]:
    if existing is None:
        raise NotSavableError("a space was saved, but there is none now")
    # The policy was made for the space's bounds, so that they have to be the same.
    present = {k: v for k, v in vars(existing).items() if k != "_np_random"}
    if not _is_same(saved["rest"], present):
        raise NotSavableError(f"a {class_path(existing)} is not the space that was saved")
    existing._np_random = saved["random"]
    return existing


def _is_same(a: Any, b: Any) -> bool:
    """
    Compare what spaces are made of.

    :param a: a part of a space, from a file
    :param b: the same part of the present space
    :return: whether they are equal; spaces within spaces have been compared before, and are the same objects
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return isinstance(b, (np.ndarray, np.generic)) and bool(a.dtype == b.dtype and np.array_equal(a, b))
    return a is b or (not isinstance(a, spaces.Space) and bool(a == b))


def _save_tensor(tensor: th.Tensor) -> np.ndarray:
    if tensor.requires_grad or tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
        raise NotSavableError("a tensor has a gradient, or is a part of another")
    numbers: np.ndarray = tensor.cpu().numpy().copy()
    return numbers


def _restore_tensor(saved: np.ndarray, existing: th.Tensor | None) -> th.Tensor:
    if not isinstance(saved, np.ndarray):
        raise NotSavableError("a tensor was saved without its numbers")
    tensor = th.from_numpy(saved)
    if existing is None:
        return tensor
    if (tensor.shape, tensor.dtype) != (existing.shape, existing.dtype):
        raise NotSavableError(f"a tensor of shape {tuple(tensor.shape)} was saved, and now is {tuple(existing.shape)}")
    return tensor.to(existing.device)


def _save_statistics(statistics: RunningMeanStd) -> dict[str, Any]:
    return {name: vars(statistics)[name] for name in ("mean", "var", "count")}


def _restore_statistics(saved: dict[str, Any], existing: RunningMeanStd | None) -> RunningMeanStd:
    if existing is None:
        raise NotSavableError("statistics were saved, but there are none now")
    for name in ("mean", "var", "count"):
        new, present = np.asarray(saved[name]), np.asarray(vars(existing)[name])
        if new.shape != present.shape or new.dtype.kind not in "fiu":
            raise NotSavableError(
                f"the {name} of statistics has the shape {new.shape}, and should have {present.shape}"
            )
    vars(existing).update({name: saved[name] for name in ("mean", "var", "count")})
    return existing


def _save_results(writer: ResultsWriter) -> int:
    return writer.file_handler.tell()


def _restore_results(length: int, existing: ResultsWriter | None) -> ResultsWriter | None:
    # Lines from after the checkpoint will be written once more. A file that was begun anew stays.
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


CODECS = (
    Codec("seeds", lambda x: type(x) is np.random.SeedSequence, _save_seeds, _restore_seeds, is_in_place=False),
    Codec("bit generator", _is_bit_generator, _save_bit_generator, _restore_bit_generator, is_in_place=False),
    Codec(
        "generator", lambda x: type(x) is np.random.Generator, _save_generator, _restore_generator, is_in_place=False
    ),
    Codec("RandomState", lambda x: type(x) is np.random.RandomState, _save_random_state, _restore_random_state),
    Codec("random", lambda x: type(x) is random.Random, _save_random, _restore_random),
    Codec("space", lambda x: isinstance(x, spaces.Space), _save_space, _restore_space, has_state=_is_seeded),
    MUJOCO,
    Codec("statistics", lambda x: type(x).__name__ == "RunningMeanStd", _save_statistics, _restore_statistics),
    Codec("tensor", lambda x: type(x) is th.Tensor, _save_tensor, _restore_tensor, is_in_place=False),
    Codec("results", lambda x: isinstance(x, ResultsWriter), _save_results, _restore_results),
    Codec("fixed", _is_fixed, lambda _: None, _keep, has_state=lambda _: False),
)
