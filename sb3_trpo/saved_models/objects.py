"""
The objects that a saved model may hold besides its weights: a short list, each made by its own constructor.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import policies, torch_layers
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.policies import (
    BetaCnnPolicy,
    BetaMultiInputPolicy,
    BetaPolicy,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from sb3_trpo.saved_models.pickle_reader import Call, Name, RefusedModelError, read_pickle

SIMPLE_DTYPE = re.compile(r"[biuf][1248]")


def read_object(pickled: bytes) -> Any:
    """
    :param pickled: an entry of a saved model
    :return: the object
    :raises RefusedModelError: if it holds anything that is not on the list
    """
    return _Builder(len(pickled)).build(read_pickle(pickled))


class _Builder:
    """
    :param size: of the pickle, in bytes
    """

    def __init__(self, size: int) -> None:
        # What is honest comes out about as large as it went in; references to one list in another, and so on, grow
        # without end.
        self.budget = 4 * size + 10_000

    def build(self, node: Any) -> Any:
        self._spend(1 + (len(node) if isinstance(node, (str, bytes, bytearray)) else 0))
        if isinstance(node, (list, tuple)):
            return type(node)(map(self.build, node))
        if isinstance(node, dict):
            return {self.build(key): self.build(value) for key, value in node.items()}
        if isinstance(node, Name):
            return _look_up(CLASSES, node)
        if isinstance(node, Call):
            return self._make(node)
        if node is None or isinstance(node, (bool, int, float, str, bytes, bytearray)):
            return node
        raise RefusedModelError(f"it holds a {type(node).__name__}")

    def _make(self, call: Call) -> Any:
        make = _look_up(CONSTRUCTORS, call.function)
        # NumPy pickles the type of an array as an argument.
        args = tuple(None if str(node) == "numpy.ndarray" else self.build(node) for node in call.args)
        state = self.build(call.state)
        items = self.build(call.items)
        pairs = self.build(call.pairs)
        try:
            return make(*args, **({} if state is None else {"state": state}), **_contents(items, pairs))
        except RefusedModelError:
            raise
        except Exception as error:
            raise RefusedModelError(f"its {call.function} is damaged ({type(error).__name__}: {error})") from error

    def _spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise RefusedModelError("it holds an object that grows when it is unpacked")


def _contents(items: list[Any], pairs: list[Any]) -> dict[str, Any]:
    return {name: value for name, value in (("items", items), ("pairs", pairs)) if value}


def _look_up(table: dict[str, Any], name: Any) -> Any:
    if not isinstance(name, Name) or str(name) not in table:
        what = str(name) if isinstance(name, Name) else "a name that is computed"
        raise RefusedModelError(f"it holds {what}, which is not allowed")
    return table[str(name)]


def _dtype(name: str, _: bool, __: bool, state: tuple[Any, ...]) -> np.dtype:
    if not SIMPLE_DTYPE.fullmatch(name) or state[1] not in ("<", "|") or state[2:5] != (None, None, None):
        raise RefusedModelError(f"it holds an array of type {name!r}")
    return np.dtype(name)


def _array(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _old_array(_: None, __: tuple[int, ...], ___: bytes, state: tuple[Any, ...]) -> np.ndarray:
    _, shape, dtype, is_fortran, buffer = state
    return _array(buffer, dtype, shape, "F" if is_fortran else "C")


def _scalar(dtype: np.dtype, buffer: bytes) -> Any:
    (value,) = np.frombuffer(buffer, dtype)
    return value


def _deque(start: tuple[()], maxlen: int | None = None, items: list[Any] | None = None) -> deque:
    return deque([*start, *(items or [])], maxlen)


def _ordered_dict(pairs: list[Any] | None = None) -> OrderedDict:
    return OrderedDict(pairs or [])


def _box(state: dict[str, Any]) -> spaces.Box:
    shape = tuple(state["_shape"])
    if not state["low"].shape == state["high"].shape == shape:
        raise RefusedModelError(f"it holds a Box of shape {shape} whose bounds have other shapes")
    return spaces.Box(state["low"], state["high"], shape, state["dtype"].type)


def _discrete(state: dict[str, Any]) -> spaces.Discrete:
    return spaces.Discrete(int(state["n"]), start=int(state["start"]))


def _multi_discrete(state: dict[str, Any]) -> spaces.MultiDiscrete:
    return spaces.MultiDiscrete(state["nvec"], dtype=state["dtype"].type, start=state.get("start"))


def _multi_binary(state: dict[str, Any]) -> spaces.MultiBinary:
    n = state["n"]
    return spaces.MultiBinary(n if isinstance(n, (tuple, list, np.ndarray)) else int(n))


def _dict(state: dict[str, Any]) -> spaces.Dict:
    return spaces.Dict(state["spaces"])


def _linear_schedule(state: dict[str, Any]) -> LinearSchedule:
    return LinearSchedule(*(float(state[name]) for name in ("start", "end", "end_fraction")))


def _constant_schedule(state: dict[str, Any]) -> ConstantSchedule:
    return ConstantSchedule(float(state["val"]))


def _float_schedule(state: dict[str, Any]) -> FloatSchedule:
    schedule = state["value_schedule"]
    if not isinstance(schedule, (LinearSchedule, ConstantSchedule, FloatSchedule)):
        raise RefusedModelError(f"it holds a schedule made of a {type(schedule).__name__}")
    return FloatSchedule(schedule)


def _running_mean_std(state: dict[str, Any]) -> RunningMeanStd:
    statistics = RunningMeanStd()
    statistics.mean, statistics.var = (np.asarray(state[name], np.float64) for name in ("mean", "var"))
    statistics.count = float(state["count"])
    return statistics


def _state(state: dict[str, Any]) -> dict[str, Any]:
    return state


def _forget(*_: Any, **__: Any) -> None:
    """A space's random numbers: they play no part in what a policy does, and start anew."""


def _path(item: type) -> str:
    return f"{item.__module__}.{item.__qualname__}"


# Classes that are arguments: of the policy, mostly.
CLASSES: dict[str, type] = {
    _path(item): item
    for item in (
        policies.ActorCriticPolicy,
        policies.ActorCriticCnnPolicy,
        policies.MultiInputActorCriticPolicy,
        MlpPolicy,
        CnnPolicy,
        MultiInputPolicy,
        BetaPolicy,
        BetaCnnPolicy,
        BetaMultiInputPolicy,
        torch_layers.FlattenExtractor,
        torch_layers.NatureCNN,
        torch_layers.CombinedExtractor,
        RolloutBuffer,
        DictRolloutBuffer,
        RMSpropTFLike,
        *(getattr(th.nn, name) for name in th.nn.modules.activation.__all__),
        *(item for item in vars(th.optim).values() if isinstance(item, type) and issubclass(item, th.optim.Optimizer)),
    )
}
CLASSES["numpy.random._pcg64.PCG64"] = type(None)
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "numpy._core.numeric._frombuffer": _array,
    "numpy._core.multiarray._reconstruct": _old_array,
    "numpy._core.multiarray.scalar": _scalar,
    "collections.deque": _deque,
    "collections.OrderedDict": _ordered_dict,
    _path(spaces.Box): _box,
    _path(spaces.Discrete): _discrete,
    _path(spaces.MultiDiscrete): _multi_discrete,
    _path(spaces.MultiBinary): _multi_binary,
    _path(spaces.Dict): _dict,
    _path(LinearSchedule): _linear_schedule,
    _path(ConstantSchedule): _constant_schedule,
    _path(FloatSchedule): _float_schedule,
    _path(RunningMeanStd): _running_mean_std,
    _path(VecNormalize): _state,
    "numpy.random._pickle.__generator_ctor": _forget,
    "numpy.random._pickle.__bit_generator_ctor": _forget,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _forget,
}
CLASSES["numpy.random.bit_generator.SeedSequence"] = type(None)
# What NumPy 1 pickled by name.
CLASSES["numpy.random._pickle.__bit_generator_ctor"] = type(None)
