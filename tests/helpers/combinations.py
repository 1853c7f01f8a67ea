"""
Combinations of many values: each value once by default, all of them together in the slow suite.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest


def each_once(*axes: Mapping[str, Any]) -> list[Any]:
    """
    Combine the values of several axes.

    The quick suite goes through all axes at once, through shorter ones again and again, so that each value occurs. All
    other combinations are slow.

    :param axes: the values, by name
    :return: the parameters of a test, one for each axis
    """
    quick = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    parameters = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        chosen = [list(axis.items())[place] for axis, place in zip(axes, places, strict=True)]
        parameters.append(
            pytest.param(
                *(value for _, value in chosen),
                id="-".join(name for name, _ in chosen),
                marks=() if places in quick else pytest.mark.slow,
            )
        )
    return parameters
