"""
The objects that a saved model may hold besides its weights: a short list, each made by its own constructor.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import policies, torch_layers
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.policies.policies import (
    BetaCnnPolicy,
    BetaMultiInputPolicy,
    BetaPolicy,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from sb3_trpo.saved_models.budget import Budget, check_integer_size
from sb3_trpo.saved_models.pickle_reader import Call, Name, read_pickle
from sb3_trpo.saved_models.refused import RefusedModelError

SIMPLE_DTYPE = re.compile(r"[biuf][1248]")
TEXT_DTYPE = re.compile(r"U[1-9]\d{0,4}")
MAKE_FUNCTION = "cloudpickle.cloudpickle._make_function"


def read_object(pickled: bytes, budget: Budget | None = None) -> Any:
    """
    Read one object of those that a saved model may hold.

    :param pickled: an entry of a saved model
    :param budget: the budget of the file that the entry is part of; None if it is a file of its own
    :return: the object
    :raises RefusedModelError: if it holds anything that is not on the list
    """
    budget = Budget(len(pickled)) if budget is None else budget
    return _Builder(budget).build(read_pickle(pickled, budget))


def read_episodes(pickled: bytes, budget: Budget) -> Any:
    """
    Read a queue of episode statistics.

    ``Monitor`` puts into them what it is asked for, of any class. What is not on the list is left out of an episode:
    nothing in training reads it.

    :param pickled: the pickled queue
    :param budget: the budget of the file
    :return: the queue
    :raises RefusedModelError: if it is something else
    """
    builder = _Builder(budget)
    call = read_pickle(pickled, budget)
    if not (isinstance(call, Call) and isinstance(call.function, Name) and str(call.function) == "collections.deque"):
        return builder.build(call)
    episodes = [_known(builder, item) if isinstance(item, dict) else builder.build(item) for item in call.items]
    maxlen = builder.build(call.args[1]) if isinstance(call.args, tuple) and len(call.args) > 1 else None
    return deque(episodes, maxlen if isinstance(maxlen, int) and 0 < maxlen < 2**31 else None)


def _known(builder: "_Builder", episode: dict[Any, Any]) -> dict[str, Any]:
    known = {}
    for name, node in episode.items():
        try:
            known[builder.build(name)] = builder.build(node)
        except RefusedModelError:
            # Where the budget is exhausted, this raises once more.
            builder.budget.spend(0)
            if name in ("r", "l", "t"):
                raise
    return known


class _Builder:
    """
    A builder of the objects on the list.

    :param budget: the budget of the file
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def build(self, node: Any) -> Any:
        """
        Make the object that a node stands for.

        :param node: the node, from ``read_pickle``
        :return: the object
        :raises RefusedModelError: if it is not on the list
        """
        self.budget.spend_on_object(node)
        if isinstance(node, (list, tuple, set, frozenset)):
            return type(node)(map(self.build, node))
        if isinstance(node, dict):
            return {self.build(key): self.build(value) for key, value in node.items()}
        if isinstance(node, Name):
            return _find_class(node)
        if isinstance(node, Call):
            return self._make(node)
        if isinstance(node, int):
            return check_integer_size(node)
        if node is None or isinstance(node, (float, str, bytes, bytearray)):
            return node
        raise RefusedModelError(f"it holds a {type(node).__name__}")

    def _make(self, call: Call) -> Any:
        name = _name(call.function)
        if name in FORGOTTEN:
            return None
        if name == MAKE_FUNCTION:
            return self._closure(call)
        if name not in CONSTRUCTORS:
            raise RefusedModelError(f"it holds {name}, which is not allowed")
        # NumPy pickles the type of an array as an argument.
        args = tuple(None if _name(node) == "numpy.ndarray" else self.build(node) for node in call.args)
        state = self.build(call.state)
        items = self.build(call.items)
        pairs = self.build(call.pairs)
        try:
            make = CONSTRUCTORS[name]
            return make(*args, **({} if state is None else {"state": state}), **_contents(items, pairs))
        except RefusedModelError:
            raise
        except Exception as error:
            raise RefusedModelError(f"its {name} is damaged ({type(error).__name__}: {error})") from error

    def _closure(self, call: Call) -> Any:
        """
        Make a schedule that does what one of SB3's own inner functions does.

        The function's code is in the file, too, and is neither run nor compared: what counts is the name, and the
        numbers that it has closed over.

        :param call: the call of cloudpickle, with names and values in its state
        :return: the schedule
        :raises RefusedModelError: if it is another function
        """
        try:
            state = call.state[1]
            path = f"{state['__module__']}.{state['__qualname__']}"
            cells = [cell.args[0] for cell in state["__closure__"] or ()]
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise RefusedModelError(f"it holds {MAKE_FUNCTION}, which is not allowed") from error
        if path not in CLOSURES:
            raise RefusedModelError(f"it holds {MAKE_FUNCTION} for {path}, which is not allowed")
        try:
            return CLOSURES[path](*map(self.build, cells))
        except (TypeError, ValueError) as error:
            raise RefusedModelError(f"its {path} is damaged ({type(error).__name__}: {error})") from error


def _contents(items: list[Any], pairs: list[Any]) -> dict[str, Any]:
    return {name: value for name, value in (("items", items), ("pairs", pairs)) if value}


def _name(node: Any) -> str:
    return str(node) if isinstance(node, Name) else "a name that is computed"


def _find_class(name: Name) -> type:
    """
    Find a class on the list.

    :param name: the name of the class
    :return: the class
    :raises RefusedModelError: if it is not on the list
    """
    if str(name) not in CLASSES:
        raise RefusedModelError(f"it holds {name}, which is not allowed")
    return CLASSES[str(name)]


def _dtype(name: str, _: bool, __: bool, state: tuple[Any, ...]) -> np.dtype[Any]:
    is_known = SIMPLE_DTYPE.fullmatch(name) or TEXT_DTYPE.fullmatch(name)
    if not is_known or state[1] not in ("<", "|") or state[2:5] != (None, None, None):
        raise RefusedModelError(f"it holds an array of type {name!r}")
    return np.dtype(name)


def _array(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.array(np.frombuffer(buffer, dtype).reshape(shape, order=order), order="C")


def _old_array(_: None, __: tuple[int, ...], ___: bytes, state: tuple[Any, ...]) -> np.ndarray:
    _, shape, dtype, is_fortran, buffer = state
    return _array(buffer, dtype, shape, "F" if is_fortran else "C")


def _scalar(dtype: np.dtype, buffer: bytes) -> Any:
    (value,) = np.frombuffer(buffer, dtype)
    return value.item()


def _deque(start: tuple[()], maxlen: int | None = None, items: list[Any] | None = None) -> deque[Any]:
    return deque([*start, *(items or [])], maxlen)


def _ordered_dict(pairs: list[Any] | None = None) -> OrderedDict[Any, Any]:
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
    is_finite = all(np.isfinite(x).all() for x in (statistics.mean, statistics.var, statistics.count))
    if not is_finite or np.any(statistics.var < 0.0) or statistics.count < 0.0:
        raise RefusedModelError("its statistics are not finite, or have a negative variance")
    return statistics


def _state(state: dict[str, Any]) -> dict[str, Any]:
    return state


def allow_in_files(*classes: type) -> None:
    """
    Allow classes as arguments in saved models.

    A module calls this for the policies and buffers that its algorithm has and TRPO has not.

    :param classes: the classes
    """
    CLASSES.update((_path(item), item) for item in classes)


def _path(item: type) -> str:
    return f"{item.__module__}.{item.__qualname__}"


# Classes that may be arguments, mostly of the policy.
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
        th.nn.Identity,
        *(getattr(th.nn, name) for name in th.nn.modules.activation.__all__),
        *(item for item in vars(th.optim).values() if isinstance(item, type) and issubclass(item, th.optim.Optimizer)),
    )
}
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
    "builtins.range": range,
}
# A space's random numbers: they play no part in what a policy does, and start anew. Their arguments are not read.
FORGOTTEN = {
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
}
_UTILS = "stable_baselines3.common.utils"
# SB3's schedules from before they were classes: made of the values that they close over, by the order of their names.
CLOSURES: dict[str, Callable[..., Any]] = {
    f"{_UTILS}.get_linear_fn.<locals>.func": lambda end, fraction, start: LinearSchedule(
        float(start), float(end), float(fraction)
    ),
    f"{_UTILS}.constant_fn.<locals>.func": lambda value: ConstantSchedule(float(value)),
    f"{_UTILS}.get_schedule_fn.<locals>.<lambda>": lambda schedule: _float_schedule({"value_schedule": schedule}),
}
