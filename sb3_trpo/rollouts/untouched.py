"""
Whether an object does what its class says: the condition under which another way of doing the same may be taken.
"""

import sys
from collections.abc import Iterator
from types import FunctionType


def is_untouched(instance: object, *kinds: type) -> bool:
    """
    Tell whether an object is of one of these classes, with every method as its class was written.

    Users replace methods, on an object or on a class of Stable-Baselines3, to time, to capture, to correct. Then the
    method has to be called, and what does the same by other means does not do.

    :param instance: the object
    :param kinds: the classes, of which the object's own class has to be one; a subclass is not enough
    :return: whether no method is replaced, neither on the object nor on its class or the classes below it
    """
    kind = type(instance)
    if kind not in kinds:
        return False
    own = vars(instance)
    for base in kind.__mro__[:-1]:
        for name, function in _functions(base):
            # 1. A method that is set on the object hides the class's.
            # 2. One that is set on the class comes from another file. Its name and module say less: decorators copy
            #    them (functools.wraps).
            if name in own or function.__code__.co_filename != _file(base):
                return False
    return True


def _functions(kind: type) -> Iterator[tuple[str, FunctionType]]:
    for name, value in vars(kind).items():
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        if isinstance(value, FunctionType):
            yield name, value


def _file(kind: type) -> str | None:
    return getattr(sys.modules.get(kind.__module__), "__file__", None)
