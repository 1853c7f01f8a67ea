"""
Whether the ranks are still the same: one different bit or number is found, on the rank that has it.
"""

from collections.abc import Sequence

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo.ranks.agreement import ApartError, check_agreement
from sb3_trpo.ranks.alone import ALONE, Ranks


class Sums(Ranks):
    """The first of several ranks, with the vectors of the others known."""

    def __init__(self, others: Sequence[th.Tensor]) -> None:
        self.others = others
        vars(self)["size"] = 1 + len(others)

    def sum(self, vector: th.Tensor) -> th.Tensor:
        # In pairs, as the connected ranks do.
        return th.stack([vector, *self.others]).sum(0)


class Sent(Ranks):
    """A rank that keeps what it is to send."""

    size = 2

    def sum(self, vector: th.Tensor) -> th.Tensor:
        self.vector = vector.clone()
        return 2 * vector


def sent_by(parameters: Sequence[th.Tensor], numbers: dict[str, float]) -> th.Tensor:
    """
    Find out what a rank sends.

    :param parameters: its parameters
    :param numbers: its numbers
    :return: the vector
    """
    sent = Sent()
    check_agreement(parameters, numbers, sent)
    return sent.vector


NUMBERS = {"gamma": 0.99, "target_kl": 0.01}


@given(st.integers(1, 600), st.floats(-1e6, 1e6), st.floats(1e-12, 1.0))
def test_ranks_that_are_the_same_agree_whatever_their_number(n_others: int, gamma: float, target_kl: float) -> None:
    parameters, numbers = [th.arange(6.0).view(2, 3)], {"gamma": gamma, "target_kl": target_kl}
    own = sent_by(parameters, numbers)
    check_agreement(parameters, numbers, Sums([own] * n_others))


@given(st.integers(0, 5), st.integers(0, 30))
def test_one_bit_of_one_parameter_is_found(place: int, bit: int) -> None:
    parameters = [th.arange(1.0, 7.0).view(2, 3)]
    other = parameters[0].clone()
    other.view(-1).view(th.int32)[place] ^= 1 << bit
    with pytest.raises(ApartError, match="parameters of rank 0"):
        check_agreement(parameters, NUMBERS, Sums([sent_by([other], NUMBERS)]))


def test_a_number_that_differs_is_named_with_its_value() -> None:
    parameters = [th.ones(3)]
    others = sent_by(parameters, {**NUMBERS, "gamma": 0.98})
    with pytest.raises(ApartError, match=r"gamma is 0\.99 on rank 0"):
        check_agreement(parameters, NUMBERS, Sums([others]))


def test_alone_nothing_is_looked_at() -> None:
    check_agreement(iter([th.full((1,), float("nan"))]), {"gamma": float("nan")}, ALONE)
