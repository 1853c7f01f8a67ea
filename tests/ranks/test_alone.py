"""
The ranks of a training in one process, and the shares of several: rows that are counted over all ranks.
"""

import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo.ranks.alone import ALONE, Ranks, Share

counts_of_ranks = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def shares(counts: list[int]) -> list[Share]:
    """
    Make the share of each rank.

    :param counts: the number of rows of each rank
    :return: their shares
    """
    return [Share(sum(counts[:rank]), sum(counts)) for rank in range(len(counts))]


@given(counts_of_ranks, st.integers(1, 9))
def test_the_ranks_take_together_every_kth_row_of_all(counts: list[int], step: int) -> None:
    rows = list(range(sum(counts)))
    taken = []
    for count, share in zip(counts, shares(counts), strict=True):
        own = rows[share.offset : share.offset + count]
        taken += own[share.every(step)]
    assert taken == rows[::step]


@given(counts_of_ranks, st.integers(1, 9))
def test_a_thinned_share_counts_what_is_left_of_the_rows(counts: list[int], step: int) -> None:
    rows = list(range(sum(counts)))
    n_before = 0
    for count, share in zip(counts, shares(counts), strict=True):
        assert share.thinned(step) == Share(n_before, len(rows[::step]))
        n_before += len(rows[share.offset : share.offset + count][share.every(step)])


@given(counts_of_ranks)
def test_a_share_needs_no_messages_where_the_counts_are_known(counts: list[int]) -> None:
    class OfMany(Ranks):
        rank = len(counts) - 1
        size = len(counts)

    assert OfMany().share_of(counts) == shares(counts)[-1]


def test_alone_every_sum_and_mean_is_the_argument_itself() -> None:
    vector = th.tensor([1.0, -2.0])
    tensors = [vector, th.ones(2, 2)]
    assert ALONE.sum(vector) is vector
    assert ALONE.mean(vector, 3) is vector
    assert ALONE.sum_each(tensors) is tensors
    assert ALONE.counts([3, 4]) == [[3, 4]]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.broadcast("x") == "x"
    assert ALONE.share(5) == Share(0, 5)
    assert ALONE.is_first
    assert ALONE.is_alone


def test_alone_there_is_nobody_to_come_apart_from() -> None:
    assert not ALONE.come_apart_by(RuntimeError("a library's"))
