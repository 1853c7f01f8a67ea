"""
Timing of things side by side, and what is said of the times.
"""

import gc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

Seconds = Mapping[str, Sequence[float]]
Name = TypeVar("Name", bound=Hashable)


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """
    A contender: what is timed, and what goes on around it.

    :param run: what is timed
    :param prepare: brings about the state that ``run`` starts from; not timed
    :param after: looks at what ``run`` left behind; not timed
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing
    after: Callable[[], object] = nothing


@dataclass(frozen=True)
class Spread:
    """
    A median and its quartiles.

    :param median: of several repetitions
    :param low: the first quartile
    :param high: the third
    """

    median: float
    low: float
    high: float


def alternate(contenders: Mapping[Name, Contender], repetitions: int, warm_up: int = 1) -> dict[Name, list[float]]:
    """
    Time contenders in turns, so that whatever slows the machine down for a while slows all of them down. Each is the
    first of its turn equally often.

    :param contenders: by name
    :param repetitions: of each, timed
    :param warm_up: turns before these, which are thrown away
    :return: seconds of each repetition, by name
    """
    seconds: dict[Name, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    # What is there already needs no look at each collection, which then takes no time.
    gc.collect()
    gc.freeze()
    for i in range(warm_up + repetitions):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            contender = contenders[name]
            contender.prepare()
            gc.collect()
            start = time.perf_counter()
            contender.run()
            elapsed = time.perf_counter() - start
            if i >= warm_up:
                contender.after()
                seconds[name].append(elapsed)
    gc.unfreeze()
    return seconds


def spread(values: ArrayLike) -> Spread:
    """
    Summarise repetitions.

    :param values: at least one
    """
    low, median, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """
    Divide two contenders' times.

    :param numerators: one for each repetition
    :param denominators: of the same repetitions
    :return: the quotient of the medians, and the quartiles of the repetitions' quotients
    """
    quotients = spread(np.divide(numerators, denominators))
    return Spread(spread(numerators).median / spread(denominators).median, quotients.low, quotients.high)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """
    Fit a power law.

    :param x: positive numbers, at least two different ones
    :param y: positive numbers
    :return: k of the fit y ≈ c xᵏ, by least squares of the logarithms
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
