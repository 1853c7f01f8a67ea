"""
What environments keep outside of themselves: in their class, or in their module.

It is not part of a checkpoint, for other objects may use it. That it changes during a training is seen, and said.
"""

import hashlib
import itertools
import random
import types
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# What these packages keep in their classes does not change.
PACKAGES = ("gymnasium", "stable_baselines3", "sb3_trpo", "typing", "builtins", "abc")
# Larger things are not looked at: a data set, say, which is read and not changed.
MAX_PARTS = 10_000
MAX_BYTES = 2**20

# For each class the digests of what it and its module held when they were first seen.
_first_seen: "weakref.WeakKeyDictionary[type, dict[str, str]]" = weakref.WeakKeyDictionary()


def find_changes(layers: Sequence[gym.Env]) -> list[str]:
    """
    Find what has changed in the classes and modules of environments since they were first seen by this function.

    :param layers: environments and wrappers
    :return: a sentence for each thing that has changed
    """
    changes = []
    for kind in dict.fromkeys(kind for layer in layers for kind in type(layer).__mro__):
        if kind.__module__.partition(".")[0] in PACKAGES:
            continue
        present = {name: _digest(value) for name, value in _kept_by(kind)}
        first = _first_seen.setdefault(kind, present)
        changes += [
            f"{name} changes during training, and is kept outside of the environments, where no checkpoint saves it"
            for name, digest in present.items()
            if first.get(name, digest) != digest
        ]
    return changes


def _kept_by(kind: type) -> Iterator[tuple[str, Any]]:
    """
    List the data of a class, and those of its module that its methods name.

    :param kind: the class
    :return: pairs of a name and a value
    """
    for name, value in list(vars(kind).items()):
        if not name.startswith("__"):
            yield f"{kind.__name__}.{name}", value
    seen: set[str] = set()
    for function in filter(None, map(_function, list(vars(kind).values()))):
        # A list in the place of a default, and what is attached to a method, last as long as the class.
        kept = (function.__defaults__, function.__kwdefaults__, vars(function))
        yield f"what {function.__qualname__} holds in its defaults or attributes", kept
        for name in _names(function.__code__) & function.__globals__.keys() - seen:
            seen.add(name)
            yield f"{kind.__module__}.{name}", function.__globals__[name]


def _function(value: Any) -> types.FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _digest(value: Any) -> str:
    """
    Make a short text of data, which is another for other data.

    :param value: any value
    :return: the text; empty for what is no data, or too large
    """
    parts = list(itertools.islice(_parts(value, 0), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS or sum(map(len, parts)) > MAX_BYTES:
        return ""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _parts(value: Any, depth: int) -> Iterator[bytes]:
    """
    List what a value is made of, without running any code of the user's.

    :param value: any value
    :param depth: the number of containers around it
    :return: the parts as bytes
    """
    if type(value) in (int, bool, float, complex, str, bytes, type(None), itertools.count):
        yield _text(value)
    elif isinstance(value, (np.ndarray, np.generic)):
        yield value.tobytes() if value.dtype.kind != "O" and value.nbytes <= MAX_BYTES else b"array"
    elif isinstance(value, np.random.Generator):
        yield from _parts(dict(value.bit_generator.state), depth)
    elif isinstance(value, np.random.RandomState):
        yield from _parts(dict(value.get_state(legacy=False)), depth)
    elif isinstance(value, random.Random):
        yield _text(value.getstate())
    elif isinstance(value, spaces.Space):
        yield from _parts(value._np_random, depth)
    elif isinstance(value, (dict, list, tuple, deque, set, frozenset)) and depth < 20:
        yield type(value).__name__.encode()
        for item in list(value.items()) if isinstance(value, dict) else list(value):
            yield from _parts(item, depth + 1)
    else:
        yield b"something"


def _text(value: object) -> bytes:
    if type(value) is int:
        # Python writes no thousands of decimal digits.
        return hex(value).encode()
    return repr(value).encode(errors="surrogatepass")
