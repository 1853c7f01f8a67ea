"""
Whatever the attributes of an environment are, a restored one has the same, bit for bit and alias for alias, or it is
told that it can't have them.
"""

import collections
import enum
import functools
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.checkpoints.env_state import restore_envs, save_envs
from sb3_trpo.checkpoints.tree_format import NotSavableError


class Color(enum.Enum):
    """An enumeration of a user's."""

    RED = 1
    GREEN = 2


class Level(enum.IntEnum):
    """Whole numbers with names."""

    LOW = 1


class Pair(NamedTuple):
    """A tuple with names."""

    a: Any
    b: Any


class Holder(gym.Env):
    """
    Holds whatever it is given.

    :param value: anything
    """

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted(Holder):
    """Holds something in a slot, too."""

    __slots__ = ("hidden",)


def random_numbers(seed: int) -> np.random.Generator:
    generator = np.random.default_rng(seed)
    generator.random(seed % 3)
    generator.spawn(seed % 4)
    return generator


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40).map(lambda x: x * 10**4400),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from(
        [..., Color.RED, Color.GREEN, Level.LOW, range(1, 9, 3), slice(1, None, 2), np.float32(0.1), np.str_("é")]
    ),
)
FORWARD = hnp.arrays(
    st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
).flatmap(lambda array: st.sampled_from([array, np.array(array, order="F")]))
ARRAYS = FORWARD | FORWARD.map(lambda array: array[..., ::-1] if array.ndim else array)
OTHERS = st.integers(0, 9).map(random_numbers) | st.sets(st.integers(0, 99), max_size=3)
KEYS = st.one_of(st.text(max_size=3), st.integers(), st.sampled_from([Color.RED, np.int64(3), (1, "x"), float("nan")]))


def containers(inner: Any) -> Any:
    items = st.lists(inner, max_size=3)
    return st.one_of(
        items,
        items.map(tuple),
        items.map(lambda x: collections.deque(x, maxlen=3)),
        # One object, twice.
        inner.map(lambda x: [x, {"again": x}, (x,)]),
        st.tuples(inner, inner).map(lambda x: Pair(*x)),
        st.dictionaries(KEYS, inner, max_size=3),
        st.frozensets(st.integers(), max_size=4),
        items.map(lambda x: functools.partial(max, *x)),
        items.map(lambda x: lambda: x),
    )


GRAPHS = st.recursive(SCALARS | ARRAYS | OTHERS, containers, max_leaves=8)


def assert_alike(a: Any, b: Any, met: dict[int, int]) -> None:
    """
    Check that two objects are alike.

    :param a: one object
    :param b: another, which must be like it all the way down, with the same aliases
    :param met: the ids of objects that change, of the one to those of the other
    """
    assert type(a) is type(b)
    if isinstance(a, (list, dict, collections.deque, np.ndarray, np.random.Generator)):
        assert met.setdefault(id(a), id(b)) == id(b)
    if isinstance(a, dict):
        assert_alike(tuple(a.items()), tuple(b.items()), met)
    elif isinstance(a, list | tuple | collections.deque | frozenset):
        assert len(a) == len(b)
        assert getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
        for item, other in zip(a, b, strict=True):
            assert_alike(item, other, met)
    elif isinstance(a, np.random.Generator):
        assert a.bit_generator.state == b.bit_generator.state
        assert [x.random() for x in a.spawn(2)] == [x.random() for x in b.spawn(2)]
    elif isinstance(a, np.ndarray | np.generic | float | complex):
        assert_same_bits(a, b)
    elif not callable(a):
        assert a == b


def assert_same_bits(a: Any, b: Any) -> None:
    """All bits, those of NaN and -0.0 included, and in the same order in memory."""
    first, second = np.asarray(a), np.asarray(b)
    assert (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    if isinstance(a, np.ndarray):
        # Where an axis is of length 1, its stride means nothing.
        steps = [[s for s, n in zip(x.strides, x.shape, strict=True) if n > 1] for x in (a, b)]
        assert a.size == 0 or steps[0] == steps[1]
        assert a.flags.writeable == b.flags.writeable


@settings(deadline=None, max_examples=150)
@given(GRAPHS, GRAPHS)
def test_what_is_restored_is_what_was_saved_or_it_is_told(value, other):
    env = Holder(value)
    for present in (other, value):
        restored = Holder(present)
        try:
            restore_envs([restored], save_envs([env]))
        except NotSavableError:
            continue
        assert_alike(env.value, restored.value, {})


@settings(deadline=None, max_examples=60)
@given(st.recursive(SCALARS | FORWARD, lambda inner: st.lists(inner, max_size=3) | inner.map(lambda x: [x, (x,)])))
def test_plain_data_is_always_restored(value):
    restored = Holder(value)
    restore_envs([restored], save_envs([Holder(value)]))
    assert_alike(value, restored.value, {})


def in_a_wrapper(items: Any) -> gym.Env:
    env = gym.Wrapper(Holder(items))
    env.items = items  # type: ignore[attr-defined]
    return env


def test_what_environment_and_wrapper_share_stays_shared():
    restored = in_a_wrapper([0])
    restore_envs([restored], save_envs([in_a_wrapper([1, 2])]))
    assert restored.items is restored.unwrapped.value  # type: ignore[attr-defined]
    assert restored.items == [1, 2]  # type: ignore[attr-defined]


def test_what_environments_share_stays_shared():
    rng = np.random.default_rng(0)
    restored = [Holder(np.random.default_rng(1)) for _ in range(2)]
    restore_envs(restored, save_envs([Holder(rng), Holder(rng)]))
    assert restored[0].value is restored[1].value
    assert restored[0].value.random() == rng.random()


def test_generators_that_share_their_bits_go_on_sharing_them():
    bits = np.random.PCG64(3)
    restored = Holder(None)
    restore_envs([restored], save_envs([Holder([np.random.Generator(bits), np.random.Generator(bits)])]))
    first, second = restored.value
    expected = np.random.Generator(bits)
    assert [first.random(), second.random(), first.random()] == [expected.random() for _ in range(3)]


def test_layers_that_know_each_other_go_on_doing_so():
    def make() -> gym.Env:
        env = gym.Wrapper(Holder(1))
        env.unwrapped.value = [env, env.unwrapped, env.unwrapped.reset]  # type: ignore[attr-defined]
        return env

    restored = make()
    restore_envs([restored], save_envs([make()]))
    assert restored.unwrapped.value == [restored, restored.unwrapped, restored.unwrapped.reset]  # type: ignore[attr-defined]


def test_attributes_come_and_go_and_slots_count():
    saved, restored = Slotted(1), Slotted(2)
    saved.hidden = [3]  # type: ignore[attr-defined]
    restored.late = True  # type: ignore[attr-defined]
    restore_envs([restored], save_envs([saved]))
    assert restored.hidden == [3]  # type: ignore[attr-defined]
    assert not hasattr(restored, "late")


def counter() -> Any:
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return count

    return step


def remembered(memory: Any = ()) -> Any:
    def look(x: Any, memory: list[Any] = list(memory)) -> Any:  # noqa: B006
        memory.append(x)
        return memory

    return look


@pytest.mark.parametrize("make", [counter, remembered])
def test_functions_with_a_state_are_told(make):
    used, fresh = Holder(make()), Holder(make())
    restore_envs([fresh], save_envs([Holder(make())]))
    (used.value() if make is counter else used.value(1))
    with pytest.raises(NotSavableError, match="holds something else"):
        restore_envs([fresh], save_envs([used]))


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


class Unconnected:
    """Raises whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not connected")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("not connected")


@pytest.mark.parametrize(
    "make",
    [
        lambda: {3, 1, 2},
        lambda: nested(5000),
        Unconnected,
        lambda: (i for i in range(3)),
        lambda: th.ones(3, requires_grad=True),
    ],
)
def test_what_can_not_be_restored_is_told(make):
    with pytest.raises(NotSavableError):
        save_envs([Holder(make())])


def test_tuples_that_hold_themselves_many_times_over():
    value: Any = (1,)
    for _ in range(40):
        value = (value, value)
    restored = Holder(None)
    restore_envs([restored], save_envs([Holder(value)]))
    first, second = restored.value
    assert first is second


@pytest.mark.parametrize(
    "value", ["/home/somebody/file", b"/home", {"path": 1}, np.array(["/home"]), bytearray(b"/home")]
)
def test_without_trust_no_text_is_set(value):
    present = Holder([1.0, "own"])
    restore_envs([present], save_envs([Holder([2.0, "own"])]), trusted=False)
    assert present.value == [2.0, "own"]
    with pytest.raises(NotSavableError, match="by trusted checkpoints only"):
        restore_envs([present], save_envs([Holder([3.0, value])]), trusted=False)
    assert present.value == [2.0, "own"]


def test_contacts_of_a_simulation_go_on():
    pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")

    def make() -> Any:
        env = gym.make("Ant-v5").unwrapped
        env.reset(seed=0)
        return env

    env, other = make(), make()
    rng = np.random.default_rng(0)
    while env.data.ncon == 0:
        env.step(rng.uniform(-1, 1, 8))
    restore_envs([other], save_envs([env]))
    for name in ("efc_force", "efc_pos", "efc_J", "qacc_warmstart"):
        assert getattr(env.data, name).tobytes() == getattr(other.data, name).tobytes()
    assert env.data.contact.dist.tobytes() == other.data.contact.dist.tobytes()
