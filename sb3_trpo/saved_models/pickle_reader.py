"""
Pickles read as data.

A pickle is a program for a small stack machine that may import and call anything. The machine here imports and calls
nothing: names stay names, calls are noted down, and the caller decides what becomes of them.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sb3_trpo.saved_models.budget import Budget
from sb3_trpo.saved_models.refused import RefusedModelError

# A state dictionary of a thousand tensors takes 30,000 operations.
MAX_OPCODES = 500_000
# A random generator's state has 128 bits. Who reads the result bounds the integers further.
MAX_INTEGER_BITS = 256
# cloudpickle makes a function in two calls, of which the second gives the first's result its state, and is dropped.
SET_FUNCTION_STATE = "cloudpickle.cloudpickle._function_setstate"


@dataclass(frozen=True)
class Name:
    """
    The name of a class or function.

    :param module: the module's name
    :param name: the name in the module
    """

    module: str
    name: str

    def __str__(self) -> str:
        # NumPy's internals had another name before 2.0.
        return f"{self.module}.{self.name}".replace("numpy.core.", "numpy._core.")


@dataclass(eq=False)
class Call:
    """
    A call that the pickle would make, of a function or a class.

    :param function: the function, a Name if the pickle is an honest one
    :param args: the arguments
    :param state: the state that the result would be given
    :param items: the items that it would be extended by
    :param pairs: the keys and values that it would be given
    """

    function: Any
    args: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Reference:
    """
    A reference to something outside of the pickle.

    :param key: the place, in the words of the pickle
    """

    key: Any


def read_pickle(pickled: bytes, budget: Budget | None = None) -> Any:
    """
    Read a pickle as data.

    :param pickled: the pickle of one object, in protocol 2 or above
    :param budget: the budget of the file that the pickle is part of; None if it is a file of its own
    :return: the object, made of plain values, lists, tuples, dictionaries, and the classes of this module
    :raises RefusedModelError: if it is no such pickle
    """
    machine = _Machine()
    (Budget(len(pickled)) if budget is None else budget).spend(len(pickled))
    try:
        # This refuses an argument that is longer than the rest of the pickle, before any memory is asked for.
        for n, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if n > MAX_OPCODES:
                raise RefusedModelError(f"a pickle has more than {MAX_OPCODES} operations")
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise RefusedModelError(f"a pickle has a whole number of {argument.bit_length()} bits")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.execute(opcode.name, argument)
    except RefusedModelError:
        raise
    except Exception as error:
        raise RefusedModelError(f"a pickle is damaged ({type(error).__name__}: {error})") from error
    raise RefusedModelError("a pickle is truncated")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        # Stacks below the marks.
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def execute(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _OPERATIONS:
            _OPERATIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise RefusedModelError(f"a pickle has the operation {opcode}, which no saved model needs")

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def tuple_to_mark(self, _: Any) -> None:
        items = tuple(self.pop_to_mark())
        self.stack.append(items)

    def pop_tuple(self, n: int) -> None:
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        if len(items) < n:
            raise RefusedModelError("a pickle takes what is not there")
        self.stack.append(items)

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target if isinstance(target, list) else target.items).extend(items)

    def add_items(self, _: Any) -> None:
        items = self.pop_to_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise RefusedModelError("a pickle adds to what is no set")
        target.update(items)

    def set_items(self, items: list[Any]) -> None:
        target, pairs = self.stack[-1], list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, dict):
            target.update(pairs)
        else:
            target.pairs.extend(pairs)

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        self.extend([item])

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def call(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, args))

    def set_state(self, _: Any) -> None:
        state = self.stack.pop()
        self._give_state(self.stack[-1], state)

    def _give_state(self, target: Any, state: Any) -> None:
        if not isinstance(target, Call) or target.state is not None:
            raise RefusedModelError("a pickle gives a state to what has none, or has one")
        target.state = state

    def name(self, argument: str) -> None:
        self.stack.append(Name(*argument.split(" ", 1)))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise RefusedModelError("a pickle has a name that is no text")
        self.stack.append(Name(module, name))

    def pop(self, _: Any) -> None:
        if not self.stack:
            self.pop_to_mark()
            return
        dropped = self.stack.pop()
        is_named = isinstance(dropped, Call) and isinstance(dropped.function, Name)
        if is_named and str(dropped.function) == SET_FUNCTION_STATE:
            self._give_state(*dropped.args)

    def refer(self, _: Any) -> None:
        self.stack.append(Reference(self.stack.pop()))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"} | {
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.pop_tuple(1),
    "TUPLE2": lambda machine, _: machine.pop_tuple(2),
    "TUPLE3": lambda machine, _: machine.pop_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": lambda machine, _: machine.stack.append(frozenset(machine.pop_to_mark())),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "MEMOIZE": lambda machine, _: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    "BINPUT": lambda machine, i: machine.memo.__setitem__(i, machine.stack[-1]),
    "LONG_BINPUT": lambda machine, i: machine.memo.__setitem__(i, machine.stack[-1]),
    "BINGET": lambda machine, i: machine.stack.append(machine.memo[i]),
    "LONG_BINGET": lambda machine, i: machine.stack.append(machine.memo[i]),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.refer,
    # In pickled functions.
    "POP": _Machine.pop,
}
