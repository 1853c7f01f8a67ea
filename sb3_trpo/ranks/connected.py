"""
The ranks of a training in several processes, connected by ``torch.distributed``.

On CPUs sums go from pair to pair (recursive doubling: Thakur et al. 2005, https://doi.org/10.1177/1094342005051521),
for torch's all-reduce of gloo is a ring, whose 4 (W − 1) messages take several times as long for vectors of this size.
"""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch as th
import torch.distributed as dist

from sb3_trpo.ranks.alone import Ranks
from sb3_trpo.ranks.blame import Blame, LostRankError

T = TypeVar("T")

# The numbers before each vector: which collective this is, and how many samples the vector is the mean of.
N_HEADER = 2
# Sequence numbers stay below this, so that single precision has the sum of up to 4096 of them exactly.
N_SEQUENCE = 2**12


class ConnectedRanks(Ranks):
    """
    This process's place among the ranks.

    :param group: the processes, in a group of our own
    :param device: the device that sums are made on: a CUDA device with NCCL, else the CPU
    :param blame: what finds out which rank is to blame when one is lost
    :param update_timeout: the seconds that this rank waits for others within an update
    :param rollout_timeout: the seconds that it waits between two updates, while others step environments or evaluate
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: th.device,
        blame: Blame,
        update_timeout: float,
        rollout_timeout: float,
    ) -> None:
        # Numbers of an instance, where those of a process alone are its class's.
        vars(self).update(rank=dist.get_rank(group), size=dist.get_world_size(group))
        self._group: dist.ProcessGroup | None = group
        self._device = device
        self._blame = blame
        self._update_timeout = datetime.timedelta(seconds=update_timeout)
        self._rollout_timeout = datetime.timedelta(seconds=rollout_timeout)
        self._timeout = self._update_timeout
        self._sequence = 0
        # The number of collectives and of bytes that this rank has sent in them, for whoever wants to know.
        self.n_collectives = 0
        self.n_bytes = 0

    def sum(self, vector: th.Tensor) -> th.Tensor:
        """Add up over all ranks, in one collective."""
        return self._reduce(vector, 0)[1]

    def sum_each(self, tensors: Sequence[th.Tensor]) -> Sequence[th.Tensor]:
        """Add up several tensors over all ranks, in one collective."""
        if not tensors:
            return tensors
        summed = self.sum(th.cat([tensor.detach().reshape(-1) for tensor in tensors]))
        pieces = summed.split_with_sizes([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape).to(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def mean(self, mean: th.Tensor, n: int) -> th.Tensor:
        """Make a mean over the samples of all ranks, in one collective."""
        total, weighted = self._reduce(mean * n if n else th.zeros_like(mean), n)
        return weighted.div_(total)

    def mean_(self, mean: th.Tensor, n: int) -> None:
        """Make a mean over the samples of all ranks in its place, in one collective."""
        mean.copy_(self.mean(mean, n))

    def all(self, condition: bool) -> bool:
        """Tell whether something holds on all ranks, in one collective."""
        return int(self.sum(th.tensor([float(condition)]))[0]) == self.size

    def counts(self, numbers: list[int]) -> list[list[int]]:
        """Exchange counts, in one collective."""
        table = th.zeros(self.size, len(numbers), dtype=th.float64)
        table[self.rank] = th.tensor(numbers, dtype=th.float64)
        return [[int(x) for x in row] for row in self.sum(table).tolist()]

    def gather(self, value: T) -> list[T]:
        """Exchange objects, which are pickled."""
        values: list[Any] = [None] * self.size
        with self._explain_losses():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: T) -> T:
        """Give the first rank's object, which is pickled, to all."""
        values: list[Any] = [value]
        with self._explain_losses():
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]  # type: ignore[no-any-return]

    def copy_first_(self, tensors: Sequence[th.Tensor]) -> None:
        """Give all ranks the first rank's tensors."""
        if tensors:
            for tensor, first in zip(tensors, self.broadcast([each.cpu() for each in tensors]), strict=True):
                tensor.copy_(first)

    def come_apart_by(self, error: Exception) -> bool:
        """Tell whether an error may have come on this rank alone: a library's may, numbers are the same on all."""
        return isinstance(error, RuntimeError)

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Wait for other ranks as long as ``rollout_timeout``, in the block."""
        self._timeout = self._rollout_timeout
        try:
            yield
        finally:
            self._timeout = self._update_timeout

    def _reduce(self, vector: th.Tensor, n: int) -> tuple[float, th.Tensor]:
        """
        Add up a vector and a number over all ranks.

        :param vector: the vector, any shape
        :param n: the number
        :return: the sum of the numbers, and that of the vectors
        :raises LostRankError: if another rank has ended, does not answer, or is at another collective
        """
        # Half precision has too few digits for the header.
        dtype = vector.dtype if vector.dtype == th.float64 else th.float32
        header = th.tensor((self._sequence, n), dtype=dtype, device=self._device)
        sent = th.cat((header, vector.detach().reshape(-1).to(header)))
        self.n_collectives += 1
        self.n_bytes += sent.numel() * sent.element_size()
        with self._explain_losses():
            summed = self._sum_in_pairs(sent) if self._device.type == "cpu" else self._sum_by_backend(sent)
        sequence, total = summed[:N_HEADER].tolist()
        if sequence != self.size * self._sequence:
            raise LostRankError(
                f"Rank {self.rank} of {self.size} is at its collective {self._sequence}, but another rank is not: the "
                "ranks do not run the same program, or a callback that changes the training runs on some of them only "
                "(runs_on_all_ranks)."
            )
        self._sequence = (self._sequence + 1) % N_SEQUENCE
        return total, summed[N_HEADER:].view(vector.shape).to(vector)

    def _sum_by_backend(self, vector: th.Tensor) -> th.Tensor:
        dist.all_reduce(vector, group=self._group)
        return vector

    def _sum_in_pairs(self, vector: th.Tensor) -> th.Tensor:
        """
        Add up over all ranks by recursive doubling.

        Each two ranks add the same two numbers, so that all have the same bits in the end. Ranks beyond the largest
        power of two hand their vector to one below, and get the sum from it.

        :param vector: this rank's vector, which is overwritten
        :return: the sum
        """
        base = 1 << (self.size.bit_length() - 1)
        other = th.empty_like(vector)
        if self.rank >= base:
            self._wait(dist.isend(vector, self.rank - base, group=self._group))
            self._wait(dist.irecv(vector, self.rank - base, group=self._group))
            return vector
        if self.rank + base < self.size:
            self._wait(dist.irecv(other, self.rank + base, group=self._group))
            vector += other
        distance = 1
        while distance < base:
            partner = self.rank ^ distance
            sending = dist.isend(vector, partner, group=self._group)
            self._wait(dist.irecv(other, partner, group=self._group))
            self._wait(sending)
            vector += other
            distance *= 2
        if self.rank + base < self.size:
            self._wait(dist.isend(vector, self.rank + base, group=self._group))
        return vector

    def _wait(self, work: dist.Work | None) -> None:
        assert work is not None
        work.wait(self._timeout)

    @contextlib.contextmanager
    def _explain_losses(self) -> Iterator[None]:
        """
        Name the rank that is to blame for an error of the communication in the block.

        :raises LostRankError: in the place of torch's ``RuntimeError``, which an update would take for one of its own
        """
        try:
            yield
        except RuntimeError as error:
            self._blame.sign_in()
            # Those who wait for this rank see its end at once, and sign in, too.
            self.disconnect()
            raise self._blame.explain(error) from error

    def leave(self, error: BaseException) -> None:
        """
        End the connection because of an error on this rank, which the others then tell.

        :param error: the error
        """
        if self._group is not None and not isinstance(error, LostRankError):
            self._blame.confess(error)
        self.disconnect()

    def disconnect(self) -> None:
        """End the connection: whoever waits for this rank gets an error."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    @property
    def is_connected(self) -> bool:
        """Whether the ranks can go on: none has been lost."""
        return self._group is not None
