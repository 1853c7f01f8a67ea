"""
Objects as data: what they hold is written as JSON beside one block of bytes, and written back into objects that are
there already, without running anything that the file names.

Plain data (numbers, texts, arrays, containers of such) are made anew. Of everything else there are two sorts: objects
that are changed in place (``Kind``: generators, spaces, simulations), and those that say how the program is built
rather than where it stands (functions, classes, a robot's description), which stay as they are.
"""

import functools
import json
import math
import struct
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Arrays of numbers, and of texts and bytes of fixed length.
DTYPE_KINDS = "biufcSU"
# Longer lists of numbers, such as those of all episodes, are written as arrays.
LONG = 32
HEADER = struct.Struct("<8sQ")
MAGIC = b"sb3trpo1"
STATIC = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    type,
    np.dtype,
    np.ufunc,
)


class NotSavableError(Exception):
    """Something has a state that cannot be read, or not be written back."""


@dataclass(frozen=True)
class Kind:
    """
    A sort of object that is changed in place.

    :param name: in the file
    :param matches: whether an object is one
    :param save: from an object to plain data, and objects of other kinds
    :param restore: from such data, and the object that is there (or None), to what shall be there
    """

    name: str
    matches: Callable[[Any], bool]
    save: Callable[[Any], Any]
    restore: Callable[[Any, Any], Any]


def pack(value: Any, kinds: tuple[Kind, ...] = ()) -> bytes:
    """
    :param value: to be saved
    :param kinds: of objects that are allowed in it, besides plain data
    :return: it, as bytes
    :raises NotSavableError: naming what is of no known kind
    """
    writer = _Writer(kinds)
    tree = json.dumps(writer.node(value, "")).encode()
    return HEADER.pack(MAGIC, len(tree)) + tree + bytes(writer.block)


def unpack(content: bytes, existing: Any = None, kinds: tuple[Kind, ...] = ()) -> Any:
    """
    :param content: of ``pack``
    :param existing: what is there already; objects in it are changed in place, if they are no plain data
    :param kinds: as in ``pack``
    :return: what was saved
    :raises ValueError: if the content is damaged
    :raises NotSavableError: if what is there is not what was saved
    """
    try:
        magic, length = HEADER.unpack_from(content)
        if magic != MAGIC:
            raise ValueError("it starts with other bytes")
        tree = json.loads(content[HEADER.size : HEADER.size + length])
        return _Reader(content[HEADER.size + length :], kinds).value(tree, existing)
    except (struct.error, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"The state of the training is damaged ({type(error).__name__}: {error}).") from error


def class_path(value: Any) -> str:
    """
    :param value: an object
    :return: the name of its class, with the module
    """
    return f"{type(value).__module__}.{type(value).__qualname__}"


class _Writer:
    """
    :param kinds: of objects that are allowed
    """

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.block = bytearray()
        # Objects that may be met again, by their ids; they are kept, so that no other object gets the same.
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []
        # Of arrays that are views of others.
        self.bases: set[int] = set()

    def node(self, value: Any, where: str) -> Any:
        """
        :param value: to be written
        :param where: it was found
        :return: for JSON; lists are nodes, everything else stands for itself
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, np.generic):
            return ["scalar", *self._array(np.asarray(value), where)]
        if type(value) is tuple:
            return ["tuple", self._nodes(value, where)]
        if type(value) in (bytes, bytearray):
            return [type(value).__name__, *self._bytes(bytes(value))]
        if id(value) in self.numbers:
            return ["same", self.numbers[id(value)]]
        self.numbers[id(value)] = len(self.numbers)
        self.kept.append(value)
        return self._shared_node(value, where)

    def _shared_node(self, value: Any, where: str) -> Any:
        numbers = _long_list_of_numbers(value)
        if numbers is not None:
            return ["numbers", *self._array(numbers, where)]
        if type(value) in (list, set, frozenset):
            return [type(value).__name__, self._nodes(value, where)]
        if type(value) is deque:
            return ["deque", value.maxlen, self._nodes(value, where)]
        if type(value) in (dict, OrderedDict):
            pairs = [[self.node(k, where), self.node(v, f"{where}[{k!r}]")] for k, v in value.items()]
            return [type(value).__name__, pairs]
        if type(value) is np.ndarray:
            return ["array", *self._array(value, where)]
        for kind in self.kinds:
            if kind.matches(value):
                return ["kind", kind.name, class_path(value), self.node(kind.save(value), where)]
        if isinstance(value, STATIC):
            return ["static"]
        raise NotSavableError(f"{where or 'it'} is a {class_path(value)}")

    def _nodes(self, values: Any, where: str) -> list[Any]:
        return [self.node(value, f"{where}[{i}]") for i, value in enumerate(values)]

    def _array(self, array: np.ndarray, where: str) -> list[Any]:
        if array.dtype.kind not in DTYPE_KINDS:
            raise NotSavableError(f"{where or 'it'} is an array of {array.dtype}")
        base = _owner(array)
        if base is None or id(base) in self.bases or (base is not array and id(base) in self.numbers):
            raise NotSavableError(f"{where or 'it'} shares its memory with something else")
        if base is not array:
            self.bases.add(id(base))
            self.kept.append(base)
        offset, _ = self._bytes(array.tobytes())
        return [array.dtype.str, list(array.shape), offset]

    def _bytes(self, content: bytes) -> list[int]:
        offset = len(self.block)
        self.block += content
        return [offset, len(content)]


def _long_list_of_numbers(value: Any) -> np.ndarray | None:
    """
    :param value: any object
    :return: it as an array, if it is such a list
    """
    if type(value) is not list or len(value) <= LONG:
        return None
    types_ = set(map(type, value))
    if types_ == {float}:
        return np.array(value, np.float64)
    return np.array(value, np.int64) if types_ == {int} and max(map(abs, value)) < 2**63 else None


def _owner(array: np.ndarray) -> Any:
    """
    :param array: possibly a view
    :return: what its memory belongs to; None if that is no array, but a simulation, for example
    """
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner if isinstance(owner, (np.ndarray, bytes)) else None


class _Reader:
    """
    :param block: the bytes of arrays
    :param kinds: of objects that are allowed
    """

    def __init__(self, block: bytes, kinds: tuple[Kind, ...]) -> None:
        self.block = block
        self.kinds = {kind.name: kind for kind in kinds}
        self.shared: list[Any] = []

    def value(self, node: Any, existing: Any) -> Any:
        """
        :param node: of the tree
        :param existing: what is there
        :return: what shall be there
        """
        if not isinstance(node, list):
            return node
        name, *content = node
        if name == "same":
            return self.shared[content[0]]
        if name in ("scalar", "tuple", "bytes", "bytearray"):
            return self._unshared(name, content, existing)
        # Numbers are given in the order in which the writer came to the objects.
        number = len(self.shared)
        self.shared.append(None)
        return self._shared(name, content, existing, number)

    def _unshared(self, name: str, content: list[Any], existing: Any) -> Any:
        if name == "scalar":
            return self._array(*content)[()]
        if name == "tuple":
            return tuple(self._values(content[0], existing))
        offset, length = content
        taken = self._bytes(offset, length)
        return taken if name == "bytes" else bytearray(taken)

    def _shared(self, name: str, content: list[Any], existing: Any, number: int) -> Any:
        value: Any
        if name == "array":
            value = self._array(*content).copy()
        elif name == "numbers":
            value = self._array(*content).tolist()
        elif name == "list":
            value = self.shared[number] = []
            value.extend(self._values(content[0], existing))
        elif name == "deque":
            value = self.shared[number] = deque(maxlen=content[0])
            value.extend(self._values(content[1], existing))
        elif name in ("set", "frozenset"):
            value = {"set": set, "frozenset": frozenset}[name](self._values(content[0], None))
        elif name in ("dict", "OrderedDict"):
            value = self.shared[number] = {} if name == "dict" else OrderedDict()
            there = existing if isinstance(existing, dict) else {}
            for k, v in content[0]:
                key = self.value(k, None)
                value[key] = self.value(v, there.get(key))
        elif name == "static":
            value = existing
        elif name == "kind":
            value = self._kind(number, existing, *content)
        else:
            raise ValueError(f"a node is called {name!r}")
        self.shared[number] = value
        return value

    def _kind(self, number: int, existing: Any, name: str, path: str, node: Any) -> Any:
        if existing is not None and class_path(existing) != path:
            raise NotSavableError(f"a {path} was saved where now a {class_path(existing)} is")
        self.shared[number] = existing
        kind = self.kinds[name]
        return kind.restore(self.value(node, None if existing is None else kind.save(existing)), existing)

    def _values(self, nodes: list[Any], existing: Any) -> list[Any]:
        there = list(existing) if isinstance(existing, (list, tuple, deque)) else []
        there += [None] * (len(nodes) - len(there))
        return [self.value(node, item) for node, item in zip(nodes, there, strict=False)]

    def _array(self, dtype: str, shape: list[int], offset: int) -> np.ndarray:
        kind = np.dtype(dtype)
        if kind.kind not in DTYPE_KINDS or not all(type(n) is int and n >= 0 for n in [*shape, offset]):
            raise ValueError(f"an array is of type {dtype!r} and shape {shape}")
        content = self._bytes(offset, math.prod(shape) * kind.itemsize)
        return np.frombuffer(content, kind).reshape(shape) if content else np.empty(shape, kind)

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > len(self.block):
            raise ValueError("an array is longer than the file")
        return self.block[offset : offset + length]
