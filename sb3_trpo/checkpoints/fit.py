"""
Checks that the values of a file fit the places that they go to.
"""

from collections import deque
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from sb3_trpo.validation.values import UserError

T = TypeVar("T")


def part(saved: Any, name: str, kind: type[T]) -> T:
    """
    Take a part of what a file holds.

    :param saved: the content of the file, a dictionary if the file is not damaged
    :param name: the part's name
    :param kind: the part's type
    :return: the part
    :raises UserError: if there is no such part
    """
    value = saved.get(name) if isinstance(saved, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"The state of the training is damaged: its {name} is no {kind.__name__}.")
    return value


def check_fits(name: str, value: Any, present: Any) -> Any:
    """
    Compare a value with the one that it replaces.

    :param name: the value's name, for the message
    :param value: the value from a file
    :param present: the present value; None if there is none yet
    :return: the value from the file
    :raises UserError: if it is of another type or shape
    """
    if present is None or value is None or value is present or (is_number(present) and is_number(value)):
        return value
    if isinstance(present, dict) and isinstance(value, dict):
        if list(value) != list(present):
            _refuse(name, f"has the entries {list(value)}", f"{list(present)}")
        for key in value:
            check_fits(f"{name}[{key!r}]", value[key], present[key])
    elif isinstance(present, np.ndarray) and isinstance(value, np.ndarray):
        # An empty array stands for what has not been seen yet.
        if present.size > 0 and (value.shape, value.dtype) != (present.shape, present.dtype):
            _refuse(name, f"is {value.dtype} of shape {value.shape}", f"{present.dtype} of shape {present.shape}")
    elif type(value) is not type(present):
        _refuse(name, f"is a {type(value).__name__}", f"a {type(present).__name__}")
    return value


def is_number(value: object) -> bool:
    """
    Tell whether a value is one number.

    :param value: any value
    :return: whether it is a number of Python's or NumPy's
    """
    return isinstance(value, (Real, np.number, np.bool_))


def check_count(name: str, value: Any) -> int:
    """
    Check a count.

    :param name: the count's name, for the message
    :param value: the value from a file
    :return: the value
    :raises UserError: if it is no whole number, or below 0
    """
    if type(value) is not int or value < 0:
        _refuse(name, f"is {value!r:.50}", "a whole number of at least 0")
    return int(value)


def check_numbers(name: str, value: Any) -> Any:
    """
    Check that there are only numbers in a value, at any depth: no text, which could be a path or a name.

    :param name: the value's name, for the message
    :param value: the value from a file
    :return: the value
    :raises UserError: if it holds anything else
    """
    if isinstance(value, (list, tuple, deque)):
        for item in value:
            check_numbers(name, item)
    elif not (is_number(value) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")):
        _refuse(name, f"holds a {type(value).__name__}", "numbers")
    return value


def _refuse(name: str, found: str, wanted: str) -> None:
    raise UserError(f"The checkpoint does not fit this training: {name} {found}, but should be {wanted}.")
