"""
From a tree back to objects.
"""

import enum
import math
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sb3_trpo.checkpoints.tree_format import DTYPE_KINDS, TEXT_KINDS, Codec, NotSavableError, class_path
from sb3_trpo.checkpoints.tree_writer import Node, Writer


class Reader:
    """
    The reader of one graph of objects that ``Writer`` has written.

    :param block: the bytes of arrays
    :param codecs: the sorts of objects that are allowed
    :param roots: the counterparts of the writer's roots
    :param sets_texts: whether texts may differ from the present ones
    """

    def __init__(self, block: bytes, codecs: Sequence[Codec], roots: Sequence[object], sets_texts: bool) -> None:
        self.block = block
        self.codecs = {codec.name: codec for codec in codecs}
        self.roots = roots
        self.is_trusted = self._sets_texts = sets_texts
        self._shared: list[Any] = []
        self._n_bytes_taken = 0

    def value(self, node: Node, existing: Any) -> Any:
        """
        Read one object, and all below it.

        :param node: the object's node
        :param existing: the present object in its place
        :return: the object to use
        """
        if isinstance(node, str):
            return self._text(node, existing)
        if not isinstance(node, list):
            return node
        name, *content = node
        if name == "same":
            return self._shared[content[0]]
        if name in UNSHARED:
            return UNSHARED[name](self, existing, *content)
        if name in ("tuple", "namedtuple"):
            value = self._tuple(existing, *content) if name == "tuple" else self._namedtuple(existing, *content)
            self._shared.append(value)
            return value
        # Numbers are given in the order in which the writer came to the objects.
        number = len(self._shared)
        self._shared.append(None)
        self._shared[number] = value = SHARED[name](self, existing, number, *content)
        return value

    def _text(self, text: Any, existing: Any) -> Any:
        if not self._sets_texts and (type(existing) is not type(text) or existing != text):
            raise NotSavableError("a text in it is not the present one, and texts are set by trusted checkpoints only")
        return text

    def _int(self, existing: Any, digits: str) -> int:
        return int(digits, 16)

    def _float(self, existing: Any, digits: str) -> float:
        return float(struct.unpack("<d", bytes.fromhex(digits))[0])

    def _complex(self, existing: Any, real: Node, imag: Node) -> complex:
        return complex(self.value(real, None), self.value(imag, None))

    def _ellipsis(self, existing: Any) -> Any:
        return ...

    def _range(self, existing: Any, *parts: Node) -> range:
        return range(*(self.value(part, None) for part in parts))

    def _slice(self, existing: Any, *parts: Node) -> slice:
        return slice(*(self.value(part, None) for part in parts))

    def _enum(self, existing: Any, path: str, name: str) -> enum.Enum:
        # The class has to be that of the present object: no class is imported because a file names it.
        if not isinstance(existing, enum.Enum) or class_path(existing) != path:
            raise NotSavableError(f"a {path} was saved, but now there is a {class_path(existing)}")
        return type(existing).__members__[name]

    def _scalar(self, existing: Any, dtype: str, shape: list[int], offset: int) -> Any:
        value = self._array(dtype, shape, offset)[()]
        return self._text(value, existing) if np.dtype(dtype).kind in TEXT_KINDS else value

    def _bytes_node(self, existing: Any, offset: int, length: int) -> Any:
        return self._text(self._bytes(offset, length), existing)

    def _root(self, existing: Any, index: int) -> object:
        return self.roots[index]

    def _built_in(self, existing: Any, description: str) -> Any:
        try:
            there = Writer(tuple(self.codecs.values()), self.roots).node(existing, "")
        except NotSavableError as error:
            raise NotSavableError(f"a {description.split(' ')[0]} was saved, and now {error}") from error
        if there != ["built in", description]:
            raise NotSavableError(f"{' '.join(description.split(' ')[:3])} is not what it was, or holds something else")
        return existing

    def _tuple(self, existing: Any, nodes: list[Node]) -> tuple[Any, ...]:
        return tuple(self._values(nodes, existing))

    def _namedtuple(self, existing: Any, path: str, nodes: list[Node]) -> tuple[Any, ...]:
        if class_path(existing) != path or not hasattr(type(existing), "_make"):
            raise NotSavableError(f"a {path} was saved, but now there is a {class_path(existing)}")
        made: tuple[Any, ...] = type(existing)._make(self._values(nodes, existing))
        return made

    def _array_node(
        self, existing: Any, number: int, axes: list[int], is_writeable: bool, dtype: str, shape: list[int], offset: int
    ) -> np.ndarray:
        array: np.ndarray = self._array(dtype, shape, offset).copy()
        if axes != sorted(axes):
            array = array.transpose(np.argsort(axes))
        if array.dtype.kind in TEXT_KINDS and not (self._sets_texts or np.array_equal(array, existing)):
            raise NotSavableError("texts in it are not the present ones, and are set by trusted checkpoints only")
        array.flags.writeable = is_writeable
        return array

    def _numbers(self, existing: Any, number: int, dtype: str, shape: list[int], offset: int) -> Any:
        return self._array(dtype, shape, offset).tolist()

    def _list(self, existing: Any, number: int, nodes: list[Node]) -> list[Any]:
        items: list[Any] = []
        self._shared[number] = items
        items.extend(self._values(nodes, existing))
        return items

    def _deque(self, existing: Any, number: int, maxlen: int | None, nodes: list[Node]) -> deque[Any]:
        items: deque[Any] = deque(maxlen=maxlen)
        self._shared[number] = items
        items.extend(self._values(nodes, existing))
        return items

    def _frozenset(self, existing: Any, number: int, nodes: list[Node]) -> frozenset[Any]:
        # The items have no counterparts, for the present ones may have another order.
        items = self._values(nodes, list(existing) if isinstance(existing, frozenset) else None)
        made = frozenset(items)
        if list(made) != items:
            raise NotSavableError("a frozenset in it would have another order")
        return made

    def _bytearray(self, existing: Any, number: int, offset: int, length: int) -> Any:
        return self._text(bytearray(self._bytes(offset, length)), existing)

    def _dict(self, existing: Any, number: int, pairs: list[list[Node]]) -> dict[Any, Any]:
        return self._fill({}, existing, number, pairs)

    def _ordered_dict(self, existing: Any, number: int, pairs: list[list[Node]]) -> dict[Any, Any]:
        return self._fill(OrderedDict(), existing, number, pairs)

    def _fill(self, made: dict[Any, Any], existing: Any, number: int, pairs: list[list[Node]]) -> dict[Any, Any]:
        self._shared[number] = made
        there = existing if isinstance(existing, dict) else {}
        for k, v in pairs:
            key = self._key(k, there)
            made[key] = self.value(v, there.get(key))
        return made

    def _key(self, node: Node, there: dict[Any, Any]) -> Any:
        # The present key is this one or, for classes that the file may not name, one of the same kind.
        if isinstance(node, str):
            return self._text(node, node if node in there else None)
        if isinstance(node, list) and node[0] in ("enum", "namedtuple"):
            return self.value(node, next((key for key in there if class_path(key) == node[1]), None))
        return self.value(node, None)

    def _object(self, existing: Any, number: int, name: str, path: str, node: Node) -> Any:
        if existing is not None and class_path(existing) != path:
            raise NotSavableError(f"a {path} was saved, but now there is a {class_path(existing)}")
        codec = self.codecs[name]
        if codec.needs_trust and not self.is_trusted:
            raise NotSavableError(f"the state of a {path} is taken from trusted checkpoints only")
        self._shared[number] = existing
        # Codecs check what they are given, texts included.
        before, self._sets_texts = self._sets_texts, True
        state = self.value(node, None if existing is None else codec.save(existing))
        self._sets_texts = before
        try:
            return codec.restore(state, existing)
        except NotSavableError:
            raise
        # A file that was changed has wrong types and lengths; the present object is the user's, and may raise anything.
        except Exception as error:
            raise NotSavableError(f"a {path} can't be put back ({type(error).__name__}: {error})") from error

    def _values(self, nodes: list[Node], existing: Any) -> list[Any]:
        there = list(existing) if isinstance(existing, (list, tuple, deque)) else []
        there += [None] * (len(nodes) - len(there))
        return [self.value(node, item) for node, item in zip(nodes, there, strict=False)]

    def _array(self, dtype: str, shape: list[int], offset: int) -> np.ndarray:
        kind = np.dtype(dtype)
        if kind.kind not in DTYPE_KINDS or not all(type(n) is int and n >= 0 for n in [*shape, offset]):
            raise ValueError("an array is of a type or shape that no array has")
        content = self._bytes(offset, math.prod(shape) * kind.itemsize)
        return np.frombuffer(content, kind).reshape(shape) if content else np.empty(shape, kind)

    def _bytes(self, offset: int, length: int) -> bytes:
        # Each byte is read once, so that no file takes more memory than it has bytes.
        self._n_bytes_taken += length
        if offset < 0 or length < 0 or offset + length > len(self.block) or self._n_bytes_taken > len(self.block):
            raise ValueError("its arrays are longer than the file")
        return self.block[offset : offset + length]


UNSHARED: dict[str, Callable[..., Any]] = {
    "int": Reader._int,
    "float": Reader._float,
    "complex": Reader._complex,
    "ellipsis": Reader._ellipsis,
    "range": Reader._range,
    "slice": Reader._slice,
    "enum": Reader._enum,
    "scalar": Reader._scalar,
    "bytes": Reader._bytes_node,
    "root": Reader._root,
    "built in": Reader._built_in,
}
SHARED: dict[str, Callable[..., Any]] = {
    "array": Reader._array_node,
    "numbers": Reader._numbers,
    "list": Reader._list,
    "deque": Reader._deque,
    "frozenset": Reader._frozenset,
    "bytearray": Reader._bytearray,
    "dict": Reader._dict,
    "OrderedDict": Reader._ordered_dict,
    "object": Reader._object,
}
