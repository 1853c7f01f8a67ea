"""
Checks of single values that the user gave: one sentence that names the argument, its value and what is allowed.
"""

import difflib
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
from stable_baselines3.common.utils import LinearSchedule


class UserError(ValueError):
    """Something that the user gave is not allowed; the message is one sentence that says what is."""


# Between a warning of ours and the line of the user's that it is about; abc makes SB3's classes.
LIBRARIES = ("sb3_trpo", "stable_baselines3", "sb3_contrib", "rl_zoo3", "abc", "contextlib")

# The largest size that an array can have, which bounds counts and sizes.
MAX_INTEGER = 2**63 - 1

# The largest seed that NumPy's generator takes.
MAX_SEED = 2**32 - 1


def warn_user(message: str) -> None:
    """
    Warn at the line of the user's that led here, however many lines of ours and of Stable-Baselines3 are between.

    :param message: the warning
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def check_integer(name: str, value: object, minimum: int) -> None:
    """
    Check a whole number.

    :param name: the argument's name
    :param value: the argument
    :param minimum: the least allowed value
    :raises UserError: if it is not an integer, or less
    """
    as_integer(name, value, minimum)


def as_integer(name: str, value: Any, minimum: int) -> int:
    """
    Check a whole number, which may be a float such as 1.0.

    :param name: the argument's name
    :param value: the argument
    :param minimum: the least allowed value
    :return: the number
    :raises UserError: if it is not an integer, or less
    """
    is_whole = isinstance(value, Integral) or (isinstance(value, Real) and _is_finite(value) and float(value) % 1 == 0)
    if isinstance(value, (bool, np.bool_)) or not is_whole or not minimum <= int(value) <= MAX_INTEGER:
        allowed = f"an integer of at least {minimum}" if minimum > -MAX_INTEGER else "an integer"
        raise UserError(f"{name} is {short(value)}, but must be {allowed}{_explain_text(value)}.")
    return int(value)


def check_real(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    Check a number.

    :param name: the argument's name
    :param value: the argument
    :param allowed: the allowed numbers, in words that follow "must be"
    :param is_allowed: a function that tells whether a finite number is allowed
    :raises UserError: if it is not a finite number, or not allowed
    """
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not (is_number and _is_finite(value) and is_allowed(float(value))):
        raise UserError(f"{name} is {short(value)}, but must be {allowed}{_explain_text(value)}.")


def _explain_text(value: object) -> str:
    """
    Explain how a number has become a text.

    :param value: what was given in the place of a number
    :return: the end of a sentence; empty if it is no text with a number
    """
    try:
        is_number = isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        is_number = False
    return " and not a text (in YAML 1e-5 is a text, 1.0e-5 a number)" if is_number else ""


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # The number is whole, and larger than any float.
        return False


def short(value: object) -> str:
    """
    Write a value in one short line.

    :param value: the value
    :return: the line
    """
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"a whole number of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_schedule(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    Check a number, or a schedule by the number that it starts with.

    :param name: the argument's name
    :param value: the argument: a number, or a schedule
    :param allowed: the allowed numbers, in words that follow "must be a number"
    :param is_allowed: a function that tells whether a finite number is allowed
    :raises UserError: if it is not allowed
    """
    if callable(value):
        try:
            number = value(1.0)
        except Exception as error:
            raise UserError(
                f"{name} is {short(value)}, which fails at the start of training ({type(error).__name__}: {error}), "
                "but must be a number, or a function of the remaining progress, which goes from 1 to 0."
            ) from error
        check_real(f"{name} at the start of training", number, f"a number {allowed}", is_allowed)
    else:
        check_real(name, value, f"a number {allowed}, or a schedule", is_allowed)


def read_schedule(name: str, value: Any) -> Any:
    """
    Read a schedule from a text, as hyperparameter files have them.

    :param name: the argument's name
    :param value: the argument: ``lin_START`` or ``lin_START_END``, or anything but a text
    :return: the schedule from START to END, or to 0; the value itself if it is no text
    :raises UserError: if a text is in neither form
    """
    if not isinstance(value, str):
        return value
    kind, *numbers = value.split("_")
    try:
        ends = [float(number) for number in numbers]
    except ValueError:
        ends = []
    if kind != "lin" or len(ends) not in (1, 2) or not all(math.isfinite(end) and end >= 0 for end in ends):
        raise UserError(
            f"{name} is {short(value)}, but must be a number, a schedule, lin_START (falls to 0) or lin_START_END, "
            "with numbers of at least 0."
        )
    return LinearSchedule(ends[0], ends[1] if len(ends) == 2 else 0.0, 1.0)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """
    Check a choice.

    :param name: the argument's name
    :param value: the argument
    :param choices: the allowed values
    :raises UserError: if it is none of them
    """
    try:
        is_known = value in choices
    except (ValueError, RuntimeError):
        # An array or a tensor of several elements is compared with each choice element by element.
        is_known = False
    if not is_known:
        raise UserError(f"{name} is {short(value)}, but must be one of {', '.join(map(repr, choices))}.")


def suggest_names(name: str, names: Iterable[str]) -> str:
    """
    Suggest names that are like one that does not exist.

    :param name: the name that does not exist
    :param names: the names that do
    :return: the suggestion, as the end of a sentence
    """
    matches = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(matches)}?" if matches else "nothing has a similar name."
