"""
Combinations of many values: each value once by default, all of them together in the slow suite.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def each_once(*axes: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    """
    Combine the values of several axes.

    The quick suite goes through all axes at once, through shorter ones again and again, so that each value occurs. All
    other combinations are slow.

    :param axes: the values, by name or as they are
    :return: the parameters of a test, one for each axis
    """
    named = [list(axis.items()) if isinstance(axis, Mapping) else [(str(x), x) for x in axis] for axis in axes]
    quick = {tuple(i % len(axis) for axis in named) for i in range(max(map(len, named)))}
    parameters = []
    for places in itertools.product(*(range(len(axis)) for axis in named)):
        chosen = [axis[place] for axis, place in zip(named, places, strict=True)]
        parameters.append(
            pytest.param(
                *(value for _, value in chosen),
                id="-".join(name for name, _ in chosen),
                marks=() if places in quick else pytest.mark.slow,
            )
        )
    return parameters
