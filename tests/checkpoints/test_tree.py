"""
What is written is what is read, shared objects included; what can't be written is named, and nothing that a damaged or
hostile file holds is run.
"""

import contextlib
import functools
import math
import pickle
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.checkpoints.tree import HEADER, MAGIC, pack, unpack
from sb3_trpo.checkpoints.tree_format import Codec, NotSavableError

NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5))
ARRAYS = hnp.arrays(
    st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(endianness="<"), hnp.boolean_dtypes()),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
DATA: Any = st.recursive(
    NUMBERS | ARRAYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=3)),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=8,
)


def assert_same(a: Any, b: Any) -> None:
    """Check that types and bits are the same, all the way down."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple | deque):
        assert len(a) == len(b)
        assert getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        for item, other in zip(a, b, strict=True):
            assert_same(item, other)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b
        # 0 and -0.
        assert not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b)


@settings(deadline=None, max_examples=60)
@given(DATA)
def test_what_is_written_is_read(value):
    assert_same(value, unpack(pack(value)))


@pytest.mark.parametrize(
    "value",
    [
        1j,
        -0.0,
        np.float64(1) / 3,
        range(2, 10, 3),
        slice(1, None, 2),
        Ellipsis,
        [-(10**5000)],
        frozenset("ab"),
        bytearray(b"x"),
        np.float32(0.1),
        np.array(["a", "bc"]),
        [0.1 * i for i in range(100)],
        [-0.0, math.inf, math.nan] * 20,
        list(range(100)),
        [2**70, -1] * 50,
        [True, 1, 1.0] * 20,
    ],
)
def test_other_plain_data(value):
    assert_same(value, unpack(pack(value)))


def test_one_object_in_two_places_stays_one():
    array, items = np.zeros(3), [1]
    items.append(items)  # type: ignore[arg-type]
    first, (second, again) = unpack(pack([array, (array, items)]))
    assert first is second
    assert again[1] is again
    first[0] = 1.0
    assert second[0] == 1.0


def test_arrays_that_are_read_can_be_changed():
    unpack(pack(np.zeros(2)))[0] = 1.0


@pytest.mark.parametrize("is_view_first", [True, False])
def test_memory_that_is_shared_is_refused(is_view_first):
    whole = np.arange(6.0)
    pair = {"a": whole, "b": whole[2:]}
    with pytest.raises(NotSavableError, match=r"\['.'\] shares its memory"):
        pack(dict(reversed(pair.items())) if is_view_first else pair)
    with pytest.raises(NotSavableError, match="shares its memory"):
        pack([whole[:2], whole[1:]])
    assert unpack(pack([whole[:2]]))[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("is_array_first", [True, False])
def test_an_array_and_the_bytes_below_it_are_refused(is_array_first):
    content = bytearray(16)
    pair = [np.frombuffer(memoryview(content)), content]
    with pytest.raises(NotSavableError, match="shares its memory"):
        pack(pair if is_array_first else pair[::-1])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_that_pickle_has_read_are_written(protocol):
    array = pickle.loads(pickle.dumps(np.arange(3.0), protocol=protocol))
    assert unpack(pack([array]))[0].tolist() == [0.0, 1.0, 2.0]


class Device:
    """Something that holds a state of which nothing is known."""


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"robot": {"arm": [0, Device()]}}, r"\['robot'\]\['arm'\]\[1\] is a .*Device"),
        ({"a": np.array([None])}, r"\['a'\] is an array of object"),
        ({"a": {1}}, r"\['a'\] is a set, whose order"),
        ({"a": (i for i in range(3))}, r"\['a'\] is a builtins.generator"),
        ({"a": np.broadcast_to(np.arange(3.0), (4, 3))}, r"\['a'\] is an array with gaps in memory"),
        ({"a": np.zeros(3, dtype=[("x", "f8")])}, r"\['a'\] is an array of .*'x'"),
    ],
)
def test_what_can_not_be_saved_is_named(value, named):
    with pytest.raises(NotSavableError, match=named):
        pack(value)


def built_in(scale: Any) -> dict[str, Any]:
    def scaled(x: float) -> float:
        return float(scale * x)

    return {
        "f": math.sin,
        "c": Device,
        "m": math,
        "p": functools.partial(max, scale),
        "d": np.dtype("f4"),
        "u": np.add,
        "closure": scaled,
        "lambda": lambda x: scale + x,
        "method": "text".upper,
    }


def test_what_is_built_in_stays_as_it_is():
    present = built_in(3)
    found = unpack(pack({**built_in(3), "n": 1}), {**present, "n": 2})
    assert found == {**present, "n": 1}


OTHERS = {
    **built_in(4),
    "f": math.cos,
    "c": int,
    "m": np,
    "d": np.dtype("f8"),
    "u": np.subtract,
    "method": "other".upper,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_built_in_and_is_not_what_it_was_is_told(name):
    with pytest.raises(NotSavableError, match="is not what it was, or holds something else"):
        unpack(pack({name: OTHERS[name]}), {name: built_in(3)[name]})


def test_what_a_function_shares_with_an_attribute_is_told():
    items = [1]
    for function in (lambda: items[0], items.append, functools.partial(len, items)):
        with pytest.raises(NotSavableError, match="shared with a function"):
            pack({"items": items, "function": function})
        with pytest.raises(NotSavableError, match="shared with a function"):
            pack({"function": function, "items": items})
        assert unpack(pack([function]), [function]) == [function]


TALLY = Codec("tally", lambda x: isinstance(x, Device), lambda x: vars(x), lambda state, x: vars(x).update(state) or x)


def test_objects_of_a_known_kind_are_changed_in_place():
    saved, present = Device(), Device()
    saved.count = 3  # type: ignore[attr-defined]
    content = pack({"one": saved, "same": saved}, (TALLY,))
    result = unpack(content, {"one": present, "same": None}, (TALLY,))
    assert result["one"] is result["same"] is present
    assert present.count == 3  # type: ignore[attr-defined]
    with pytest.raises(NotSavableError, match=r"a .*Device was saved, but now there is a builtins.int"):
        unpack(content, {"one": 1}, (TALLY,))


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("boom",)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_is_told_or_harmless(data):
    content = bytearray(pack({"a": [np.arange(4), (1, "x")], "b": deque([2.0], 3)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        # Any other exception fails the test.
        with contextlib.suppress(ValueError):
            unpack(damaged)


@pytest.mark.parametrize(
    "tree",
    [
        '["array", "O", [1], 0]',
        '["array", "<f8", [1000000000000], 0]',
        '["array", "<f8", [-1], 0]',
        '["scalar", "<M8[s]", [], 0]',
        '["numbers", "<i8", [9], 0]',
        '["bytes", 0, 1000]',
        '["bytes", -5, 2]',
        '["call", "os.system"]',
        '["kind", "unknown", "a.b", null]',
        '["same", 7]',
        "[" * 5000 + "]" * 5000,
        "[]",
    ],
)
def test_hostile_trees_are_refused(tree):
    with pytest.raises(ValueError, match="damaged"):
        unpack(HEADER.pack(MAGIC, len(tree)) + tree.encode() + bytes(64))


def test_a_pickle_is_no_state(capsys):
    with pytest.raises(ValueError, match="damaged"):
        unpack(pickle.dumps(Bomb()))
    assert capsys.readouterr().out == ""
