"""
The ranks of a training, when there is but one: what the update asks of them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch as th

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """
    Which rows are this rank's, of the rows of all ranks one after the other.

    :param offset: the number of rows of the ranks before this one
    :param total: the number of rows of all ranks
    """

    offset: int
    total: int

    def every(self, step: int) -> slice:
        """
        Find this rank's part of every k-th row of all.

        :param step: k
        :return: the places of these rows among this rank's own
        """
        return slice(-self.offset % step, None, step)

    def thinned(self, step: int) -> "Share":
        """
        Give the share of what ``every`` selects.

        :param step: k
        :return: this rank's share of every k-th row
        """
        return Share(-(-self.offset // step), -(-self.total // step))


class Ranks:
    """
    A training in one process: a sum over all ranks is what it is on this one.

    ``ConnectedRanks`` has the same methods for several. Each of them is a collective: all ranks call it, in the same
    order, or all of them end.
    """

    # The number of this rank, and that of all.
    rank: ClassVar[int] = 0
    size: ClassVar[int] = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs, evaluates and saves."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    def sum(self, vector: th.Tensor) -> th.Tensor:
        """
        Add up over all ranks.

        :param vector: real numbers, of the same shape on all ranks
        :return: the sum, the same bits on all ranks; alone it is the argument itself
        """
        return vector

    def sum_each(self, tensors: Sequence[th.Tensor]) -> Sequence[th.Tensor]:
        """
        Add up several tensors over all ranks at once.

        :param tensors: real numbers, of the same shapes on all ranks
        :return: the sum of each; alone it is the argument itself
        """
        return tensors

    def mean(self, mean: th.Tensor, n: int) -> th.Tensor:
        """
        Make a mean over the samples of all ranks from the mean over those of each.

        :param mean: the mean over this rank's samples, of the same shape on all ranks
        :param n: the number of these samples
        :return: the mean, the same bits on all ranks; alone it is the argument itself
        """
        return mean

    def mean_(self, mean: th.Tensor, n: int) -> None:
        """
        Do what ``mean`` does, in place.

        :param mean: the mean over this rank's samples, which becomes that over the samples of all ranks
        :param n: the number of this rank's samples
        """

    def all(self, condition: bool) -> bool:
        """
        Tell whether something holds on all ranks.

        :param condition: whether it holds on this one
        :return: whether it holds on all
        """
        return condition

    def counts(self, numbers: list[int]) -> list[list[int]]:
        """
        Exchange counts.

        :param numbers: this rank's counts, as many on all ranks
        :return: the counts of each rank
        """
        return [numbers]

    def share(self, n: int) -> Share:
        """
        Find out which rows are this rank's.

        :param n: the number of rows of this rank
        :return: this rank's share of all
        """
        return self.share_of([count for (count,) in self.counts([n])])

    def share_of(self, counts: Sequence[int]) -> Share:
        """
        Tell which rows are this rank's, if it is known how many each rank has. This is no collective.

        :param counts: the number of rows of each rank
        :return: this rank's share of all
        """
        return Share(sum(counts[: self.rank]), sum(counts))

    def gather(self, value: T) -> list[T]:
        """
        Exchange objects.

        :param value: this rank's object
        :return: the objects of each rank
        """
        return [value]

    def broadcast(self, value: T) -> T:
        """
        Give the first rank's object to all.

        :param value: this rank's object
        :return: that of the first rank
        """
        return value

    def copy_first_(self, tensors: Sequence[th.Tensor]) -> None:
        """
        Give all ranks the first rank's tensors, bit for bit, in one collective.

        :param tensors: the tensors, which are overwritten
        """

    def come_apart_by(self, error: Exception) -> bool:
        """
        Tell whether an error of an update may have come on this rank alone, so that the others have gone on.

        :param error: the error
        :return: whether it may; alone there are no others
        """
        return False

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """
        Wait for other ranks as long as a rollout or an evaluation may take, in the block.

        Elsewhere, as in an update, all take about the same time.
        """
        yield

    def leave(self, error: BaseException) -> None:
        """
        End the connection because of an error on this rank.

        :param error: the error
        """


ALONE = Ranks()
