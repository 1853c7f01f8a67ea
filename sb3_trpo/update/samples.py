"""
Rollout data, whole and in parts: SB3's samples are named tuples of tensors, or of dictionaries of tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo.networks.untouched import is_untouched

# 74 stacks of four Atari frames, or 6,000 observations of a humanoid. Smaller chunks save memory. On a CPU they save
# time too, for then what an image network computes fits the caches.
MAX_CHUNK_ELEMENTS = 2**21
# A GPU wants more work at a time: 594 stacks, for which there is room on any that trains image networks.
MAX_CHUNK_ELEMENTS_ON_GPU = 2**24

Index = th.Tensor | slice


class Rows(Protocol):
    """Samples as a named tuple: its fields are tensors of N rows, dictionaries of such, or None."""

    def __iter__(self) -> Iterator[Any]: ...


class Rollout(Rows, Protocol):
    """What every rollout buffer's samples have."""

    @property
    def observations(self) -> PyTorchObs:
        """The observations of N states."""

    @property
    def returns(self) -> th.Tensor:
        """The returns, which the critic learns, (N,)."""


RowsT = TypeVar("RowsT", bound=Rows)
RolloutT = TypeVar("RolloutT", bound=Rollout)


def whole_rollout(
    buffer: RolloutBuffer, kinds: tuple[type[RolloutBuffer], ...] = (RolloutBuffer, DictRolloutBuffer)
) -> Any:
    """
    Read all of a rollout as tensors.

    :param buffer: the buffer, full
    :param kinds: the classes of buffers that can be read without ``get``, in order
    :return: the samples, N rows: those of the first environment, then those of the second, ...
    """
    if not is_untouched(buffer, *kinds):
        return next(iter(buffer.get(batch_size=None)))
    # SB3's own way puts the rows into random order, which nothing here needs, by one more copy of them all. Taking a
    # single row brings the arrays into rows.
    next(iter(buffer.get(batch_size=1)))
    # It indexes arrays, so that a slice does as well as the array of numbers that its type asks for.
    return buffer._get_samples(slice(None))  # type: ignore[arg-type]


def select(samples: RowsT, index: Index) -> RowsT:
    """
    Select rows of samples.

    :param samples: a named tuple; its fields are tensors of N rows, dictionaries of such, or None
    :param index: the rows to select
    :return: samples with these rows only
    """
    make: Callable[..., RowsT] = type(samples)
    return make(*(_rows(field, index) for field in samples))


def chunks(samples: RowsT, size: int | None) -> Sequence[RowsT]:
    """
    Divide samples into chunks.

    Each chunk takes rows from all over the rollout, so that one alone is representative.

    :param samples: a named tuple as for ``select``, with observations first
    :param size: the number of rows in a chunk; None chooses by the size of an observation and the kind of device
    :return: the chunks, whose sizes differ by one at most
    """
    n_samples = n_rows(samples)
    if size is None:
        size = chunk_size(next(iter(samples)))
    if size >= n_samples:
        return [samples]
    n_chunks = -(-n_samples // size)
    return [select(samples, slice(i, None, n_chunks)) for i in range(n_chunks)]


def n_rows(samples: Rows) -> int:
    """
    Count the rows of samples.

    :param samples: a named tuple as for ``select``
    :return: N
    """
    return len(next(_tensors(next(iter(samples)))))


def chunk_size(observations: Any) -> int:
    """
    Choose the size of a chunk by the size of an observation and the kind of device.

    :param observations: tensor of N rows, or a dictionary of such
    :return: how many rows are few enough
    """
    tensors = list(_tensors(observations))
    limit = MAX_CHUNK_ELEMENTS if tensors[0].device.type == "cpu" else MAX_CHUNK_ELEMENTS_ON_GPU
    return max(1, limit // sum(tensor[0].numel() for tensor in tensors))


def _tensors(field: Any) -> Iterator[th.Tensor]:
    if isinstance(field, dict):
        for value in field.values():
            yield from _tensors(value)
    else:
        yield field


def _rows(field: Any, index: Index) -> Any:
    if field is None:
        return None
    if isinstance(field, dict):
        return {key: _rows(value, index) for key, value in field.items()}
    return field[index]
