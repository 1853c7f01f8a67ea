"""
The format of a tree (``tree.py``): what its writer and its reader have in common.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Arrays of numbers, and of texts and bytes of fixed length.
DTYPE_KINDS = "biufcSU"
TEXT_KINDS = "SU"
# Deeper trees would come near Python's limit on recursion, of which the user's code needs a part.
MAX_DEPTH = 50
# Functions, classes and the like say how a program is built, not where it stands.
BUILT_IN = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, np.dtype, np.ufunc)


class NotSavableError(Exception):
    """The state of an object can't be read, or can't be written back."""


@dataclass(frozen=True)
class Codec:
    """
    How objects of one sort are saved.

    :param name: the sort's name in the file
    :param matches: a function that tells whether an object is of that sort
    :param save: a function that turns an object into plain data, and objects of other sorts
    :param restore: a function of such data and of the present object (or None) that gives the object to use
    :param is_in_place: whether the present object is changed, rather than replaced
    :param needs_trust: whether the data may do harm
    :param has_state: a function that tells whether anything of an object changes at all
    """

    name: str
    matches: Callable[[Any], bool]
    save: Callable[[Any], Any]
    restore: Callable[[Any, Any], Any]
    is_in_place: bool = True
    needs_trust: bool = False
    has_state: Callable[[Any], bool] = lambda _: True


def class_path(value: object) -> str:
    """
    Name the class of an object.

    :param value: the object
    :return: the name of its class, with the module
    """
    return f"{type(value).__module__}.{type(value).__qualname__}"
