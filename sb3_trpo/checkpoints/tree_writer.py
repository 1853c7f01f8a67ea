"""
From objects to a tree for JSON.

Lists in the tree are nodes, which begin with their name; everything else stands for itself.
"""

import enum
import functools
import hashlib
import json
import math
import struct
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from sb3_trpo.checkpoints.tree_format import BUILT_IN, DTYPE_KINDS, MAX_DEPTH, Codec, NotSavableError, class_path

# A value for JSON; it is ``Any`` because JSON's types are recursive.
Node: TypeAlias = Any
# Longer lists of numbers, such as those of all episodes, are written as arrays.
LONG = 32
BITS_OF_JSON_INTEGERS = 63


class Writer:
    """
    The writer of one graph of objects.

    :param codecs: the sorts of objects that are allowed, besides plain data
    :param roots: the objects that are saved in another way, and may occur in the graph
    """

    def __init__(self, codecs: Sequence[Codec], roots: Sequence[object]) -> None:
        self.codecs = codecs
        self.roots = roots
        self.block = bytearray()
        self._root_numbers = {id(root): i for i, root in enumerate(roots)}
        # By the ids of objects that may occur again. They are kept, so that no other object gets the same id.
        self.numbers: dict[int, int] = {}
        self._n_numbers = 0
        self._kept: list[object] = []
        # Arrays that own the memory of others.
        self._owners: set[int] = set()
        self._depth = 0
        # The objects that functions hold, by their ids: those that are replaced when a training goes on, and those that
        # are changed in place.
        self._held: dict[int, str] = {}
        self._held_in_place: dict[int, str] = {}
        self._open_functions: set[int] = set()

    def finished(self, value: Any) -> Node:
        """
        Write a graph.

        :param value: the object where it begins; with roots, a list of the state of each
        :return: the node of this object
        :raises NotSavableError: at the first object that can't be saved
        """
        if self.roots:
            self._number(value)
            states = zip(value, self.roots, strict=True)
            node = ["list", [self.node(state, type(root).__name__) for state, root in states]]
        else:
            node = self.node(value, "")
        for identity, where in self._held.items():
            # 1. The object would be replaced in the graph, and stay in the function.
            if identity in self.numbers:
                raise NotSavableError(f"{where} is shared with a function")
        for identity, where in self._held_in_place.items():
            # 2. Nobody would change the object.
            if identity not in self.numbers:
                raise NotSavableError(f"{where} is known to a function only")
        return node

    def node(self, value: Any, where: str) -> Node:
        """
        Write one object, and all below it.

        :param value: the object
        :param where: the way to the object, for messages
        :return: the object's node
        """
        if value is None or type(value) in (bool, str) or _is_number_of_json(value):
            return value
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotSavableError(f"{where[:200]}... is nested more than {MAX_DEPTH} deep")
        try:
            return self._scalar(value, where) or self._known(value) or self._object(value, where)
        finally:
            self._depth -= 1

    def _scalar(self, value: Any, where: str) -> Node:
        """
        Write an object that can't be changed, so that its identity does not matter.

        :param value: any object
        :param where: the way to the object
        :return: the object's node; None for other objects
        """
        kind = type(value)
        if kind is int:
            return ["int", hex(value)]
        if kind is float:
            return ["float", struct.pack("<d", value).hex()]
        if kind is complex:
            return ["complex", self.node(value.real, where), self.node(value.imag, where)]
        if value is Ellipsis:
            return ["ellipsis"]
        if kind is range:
            return ["range", *(self.node(part, where) for part in (value.start, value.stop, value.step))]
        if kind is slice:
            return ["slice", *(self.node(part, where) for part in (value.start, value.stop, value.step))]
        if isinstance(value, enum.Enum):
            if type(value).__members__.get(value.name) is not value:
                raise NotSavableError(f"{where} is a combination of flags")
            return ["enum", class_path(value), value.name]
        if isinstance(value, np.generic):
            return ["scalar", *self._content(np.asarray(value), where)]
        return ["bytes", *self._bytes(value)] if kind is bytes else None

    def _known(self, value: object) -> Node:
        """
        Refer to an object that is in the file already, or saved in another way.

        :param value: any object
        :return: the object's node; None for other objects
        """
        if id(value) in self.numbers:
            return ["same", self.numbers[id(value)]]
        return ["root", self._root_numbers[id(value)]] if id(value) in self._root_numbers else None

    def _object(self, value: Any, where: str) -> Node:
        if type(value) is tuple or (isinstance(value, tuple) and hasattr(type(value), "_fields")):
            # A tuple is numbered after its items, for the reader can't make it before them.
            nodes = self._nodes(value, where)
            self._number(value)
            return ["tuple", nodes] if type(value) is tuple else ["namedtuple", class_path(value), nodes]
        if isinstance(value, (*BUILT_IN, functools.partial)):
            return ["built in", self._description(value, where)]
        self._number(value)
        node = self._container(value, where)
        if node is not None:
            return node
        for codec in self.codecs:
            if codec.matches(value):
                return ["object", codec.name, class_path(value), self.node(codec.save(value), where)]
        if type(value) is set:
            raise NotSavableError(f"{where or 'it'} is a set, whose order can't be told from its items")
        raise NotSavableError(f"{where or 'it'} is a {class_path(value)}")

    def _container(self, value: Any, where: str) -> Node:
        """
        Write an object that holds others, or numbers.

        :param value: any object
        :param where: the way to the object
        :return: the object's node; None for other objects
        """
        numbers = _long_list_of_numbers(value)
        if numbers is not None:
            return ["numbers", *self._content(numbers, where)]
        if type(value) in (list, frozenset):
            return [type(value).__name__, self._nodes(value, where)]
        if type(value) is deque:
            return ["deque", value.maxlen, self._nodes(value, where)]
        if type(value) in (dict, OrderedDict):
            pairs = [[self.node(k, where), self.node(v, f"{where}[{repr(k)[:50]}]")] for k, v in value.items()]
            return [type(value).__name__, pairs]
        if type(value) is np.ndarray:
            return self._laid_out(value, where)
        if type(value) is bytearray:
            if id(value) in self._owners:
                raise NotSavableError(f"{where or 'it'} shares its memory with something else")
            return ["bytearray", *self._bytes(bytes(value))]
        return None

    def _number(self, value: object) -> None:
        # A tuple that holds itself gets several numbers.
        self.numbers[id(value)] = self._n_numbers
        self._n_numbers += 1
        self._kept.append(value)

    def _nodes(self, values: Iterable[Any], where: str) -> list[Node]:
        return [self.node(value, f"{where}[{i}]") for i, value in enumerate(values)]

    def _laid_out(self, array: np.ndarray, where: str) -> Node:
        """
        Write an array with the order of its axes in memory, on which the order of sums depends.

        :param array: the array
        :param where: the way to the array
        :return: the array's node
        """
        owner = _owner(array)
        is_met = owner is not array and id(owner) in self.numbers
        if owner is None or id(owner) in self._owners or is_met:
            raise NotSavableError(f"{where or 'it'} shares its memory with something else")
        self._owners.add(id(owner))
        self._kept.append(owner)
        axes = sorted(range(array.ndim), key=lambda axis: (-abs(array.strides[axis]), axis))
        packed = array.transpose(axes)
        if array.size > 0 and not packed.flags.c_contiguous:
            raise NotSavableError(f"{where or 'it'} is an array with gaps in memory")
        return ["array", axes, array.flags.writeable, *self._content(packed, where)]

    def _content(self, array: np.ndarray, where: str) -> list[Node]:
        if array.dtype.kind not in DTYPE_KINDS:
            raise NotSavableError(f"{where or 'it'} is an array of {array.dtype}")
        offset, _ = self._bytes(array.tobytes())
        return [array.dtype.str, list(array.shape), offset]

    def _bytes(self, content: bytes) -> list[int]:
        offset = len(self.block)
        self.block += content
        return [offset, len(content)]

    def _description(self, value: Any, where: str) -> str:
        """
        Describe a function, a class and the like, which stay as they are, so that another has another description.

        :param value: the function or the like
        :param where: the way to it
        :return: the name, and a digest of what it holds
        """
        if isinstance(value, np.dtype):
            return f"dtype {value.str}"
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)
        name = f"{type(value).__name__} {getattr(value, '__module__', None) or ''} {name}"
        parts = _parts(value)
        if not parts or id(value) in self._open_functions:
            return name
        inner = Writer(self.codecs, self.roots)
        inner._depth = self._depth
        inner._open_functions = self._open_functions | {id(value)}
        node = inner.node([inner._without_state(part) for part in parts], f"what {where or 'it'} holds")
        self._note_held(inner, where)
        content = json.dumps(node, allow_nan=False).encode() + bytes(inner.block)
        return f"{name} {hashlib.sha256(content).hexdigest()}"

    def _without_state(self, part: Any) -> Any:
        """
        Leave out the state of objects that a function holds and that are changed in place elsewhere.

        :param part: an object that a function holds
        :return: the object; the name of its class, if its state is left out
        """
        codec = next((codec for codec in self.codecs if codec.matches(part)), None)
        if codec is None or not codec.is_in_place:
            return part
        if codec.has_state(part):
            self._held_in_place[id(part)] = class_path(part)
            self._kept.append(part)
        return class_path(part)

    def _note_held(self, inner: "Writer", where: str) -> None:
        for item in inner._kept:
            if not isinstance(item, tuple):
                self._held[id(item)] = f"what {where or 'a function'} holds"
        self._held.update(inner._held)
        self._held_in_place.update(inner._held_in_place)
        self._kept += inner._kept


def _is_number_of_json(value: object) -> bool:
    # 1. JSON has no NaN, let alone several.
    # 2. Python writes no thousands of decimal digits, and readers of JSON differ beyond 64 bits.
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and value.bit_length() <= BITS_OF_JSON_INTEGERS


def _parts(value: Any) -> list[Any]:
    """
    List what a function holds.

    :param value: a function, a method or a partial function; anything else holds nothing
    :return: the code's bytes, defaults and captured variables; the object that a method is bound to
    """
    if isinstance(value, types.FunctionType):
        cells = [_variable(cell) for cell in value.__closure__ or ()]
        return [_code(value.__code__), value.__defaults__, value.__kwdefaults__, vars(value), *cells]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    owner = getattr(value, "__self__", None) if isinstance(value, types.BuiltinFunctionType) else None
    return [] if owner is None or isinstance(owner, types.ModuleType) else [owner]


def _variable(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # Not set yet.
        return ()


def _code(code: types.CodeType) -> bytes:
    """
    Describe what code does, so that functions of the same name, two lambdas for example, can be told apart.

    :param code: the code of a function
    :return: the operations, names and constants, without file and lines
    """
    inner = (_code(constant) if isinstance(constant, types.CodeType) else repr(constant) for constant in code.co_consts)
    # Constants that are sets are printed in any order.
    return repr((code.co_code, code.co_names, sorted(map(str, inner)))).encode()


def _long_list_of_numbers(value: Any) -> np.ndarray | None:
    """
    Make an array of a long list.

    :param value: any object
    :return: the array; None if the object is not a long list of numbers
    """
    if type(value) is not list or len(value) <= LONG:
        return None
    kinds = set(map(type, value))
    if kinds == {float}:
        return np.array(value, np.float64)
    return np.array(value, np.int64) if kinds == {int} and max(map(abs, value)) < 2**63 else None


def _owner(array: np.ndarray) -> object | None:
    """
    Find the object that owns an array's memory.

    :param array: the array, which may be a view
    :return: the array or bytes that own the memory; None if something else does, a simulation for example
    """
    owner: object = array
    # What pickle has read stands in bytes behind a memoryview.
    while isinstance(owner, memoryview) or (isinstance(owner, np.ndarray) and owner.base is not None):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    return owner if isinstance(owner, (np.ndarray, bytes, bytearray)) else None
