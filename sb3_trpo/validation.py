"""
Checks of hyperparameters: one sentence that names the argument, its value and what is allowed.
"""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from gymnasium import spaces

SUPPORTED_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param minimum: the least that is allowed
    :raises ValueError: if it is not an integer, or less
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name} is {value!r}, but must be an integer of at least {minimum}.")


def check_real(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param allowed: in words, after "must be"
    :param is_allowed: the same as a test, for finite numbers
    :raises ValueError: if it is not a finite number, or not allowed
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and is_allowed(float(value))):
        raise ValueError(f"{name} is {value!r}, but must be {allowed}.")


def check_schedule(name: str, value: Any) -> None:
    """
    :param name: the argument's name
    :param value: a positive number, or a schedule that starts with one
    :raises ValueError: if it is neither
    """
    if callable(value):
        check_real(f"{name} at the start of training", value(1.0), "a number above 0", lambda x: x > 0)
    else:
        check_real(name, value, "a number above 0, or a schedule", lambda x: x > 0)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param choices: what is allowed
    :raises ValueError: if it is none of them
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")


def check_action_space(action_space: spaces.Space) -> None:
    """
    :param action_space: the environment's
    :raises ValueError: if no action distribution covers it
    """
    if not isinstance(action_space, SUPPORTED_ACTION_SPACES):
        names = ", ".join(space.__name__ for space in SUPPORTED_ACTION_SPACES)
        raise ValueError(f"The action space is {action_space}, but must be one of {names}.")
