"""
What callbacks see of a rollout: a dictionary like any other, whose values cost nothing until they are read.
"""

import copy
import pickle
from typing import Any

import pytest

from sb3_trpo.rollouts.shown_locals import Lazy, ShownLocals


class Counter:
    """Counts how often a value is computed."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> list[int]:
        self.n += 1
        return [1, 2]


def shown() -> tuple[ShownLocals, Counter]:
    counter = Counter()
    return ShownLocals(plain=3, lazy=Lazy(counter)), counter


READERS = {
    "[]": lambda d: d["lazy"],
    "get": lambda d: d.get("lazy"),
    "items": lambda d: dict(list(d.items()))["lazy"],
    "values": lambda d: list(d.values())[1],
    "dict": lambda d: dict(d)["lazy"],
    "**": lambda d: {**d}["lazy"],
    "copy": lambda d: d.copy()["lazy"],
    "copy.copy": lambda d: copy.copy(d)["lazy"],
    "deepcopy": lambda d: copy.deepcopy(d)["lazy"],
    "pickle": lambda d: pickle.loads(pickle.dumps(d))["lazy"],
    "pop": lambda d: d.pop("lazy"),
    "setdefault": lambda d: d.setdefault("lazy", 5),
    "|": lambda d: (d | {"more": 1})["lazy"],
    "| from the right": lambda d: ({"more": 1} | d)["lazy"],
    "update of another": lambda d: _updated({}, d)["lazy"],
    "update, then reading": lambda d: _updated(ShownLocals(), d)["lazy"],
    "comprehension": lambda d: {name: d[name] for name in d}["lazy"],
    "format": lambda d: eval(repr(d))["lazy"],
}


def _updated(target: dict[str, Any], source: Any) -> dict[str, Any]:
    target.update(source)
    return target


@pytest.mark.parametrize("way", READERS)
def test_whoever_reads_gets_the_value(way: str) -> None:
    locals_, counter = shown()
    assert READERS[way](locals_) == [1, 2]
    assert counter.n == 1


def test_nothing_is_computed_that_nobody_reads_and_nothing_twice() -> None:
    locals_, counter = shown()
    other = ShownLocals()
    other.update(locals_)
    locals_.update(locals_)
    assert "lazy" in other
    assert set(other) == other.keys() == {"plain", "lazy"}
    assert len(other) == 2
    assert counter.n == 0
    assert other["lazy"] is locals_["lazy"] is other["lazy"]
    assert counter.n == 1


def test_it_is_equal_to_the_dictionary_that_it_shows() -> None:
    locals_, _ = shown()
    assert locals_ == {"plain": 3, "lazy": [1, 2]}
    assert locals_ != {"plain": 3}
    assert isinstance(locals_, dict)


def test_names_may_be_those_of_arguments() -> None:
    locals_ = ShownLocals()
    locals_.update(self=1, other=2, others=3, name=4)
    assert dict(locals_) == {"self": 1, "other": 2, "others": 3, "name": 4}
