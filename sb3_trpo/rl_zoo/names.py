"""
Names in RL Zoo's modules that mean something else for a while.

Some of RL Zoo's functions take a class or a function from a name of their module, and offer no other way to choose it.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def use_names(module: ModuleType, **values: Any) -> Iterator[None]:
    """
    Let names of a module, in the block, mean other things. At the end they get their values back.

    :param module: the module, whose functions look the names up when they are called
    :param values: for each name what it means
    """
    originals = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(originals)
