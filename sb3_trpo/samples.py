"""
Rollout data, whole and in parts: SB3's samples are named tuples of tensors, or of dictionaries of tensors.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

# 74 stacks of four Atari frames, or 6,000 observations of a humanoid. Smaller chunks save memory; on a CPU they
# save time too, for what an image network computes then fits the caches.
MAX_CHUNK_ELEMENTS = 2**21

Index = th.Tensor | slice
Samples = TypeVar("Samples", bound=tuple[Any, ...])


def whole_rollout(buffer: RolloutBuffer) -> Any:
    """
    :param buffer: full
    :return: all that is in it, as tensors, N rows
    """
    if type(buffer) not in (RolloutBuffer, DictRolloutBuffer):
        return next(iter(buffer.get(batch_size=None)))
    # SB3's own way puts the rows into random order, which nothing here needs, by one more copy of them all. Taking a
    # single row brings the arrays into rows.
    next(iter(buffer.get(batch_size=1)))
    return buffer._get_samples(slice(None))  # type: ignore[arg-type]


def select(samples: Samples, index: Index) -> Samples:
    """
    :param samples: a named tuple; its fields are tensors of N rows, dictionaries of such, or None
    :param index: which rows
    :return: the same with these rows only
    """
    return type(samples)(*(_rows(field, index) for field in samples))


def chunks(samples: Samples, size: int | None) -> Sequence[Samples]:
    """
    :param samples: as for ``select``, observations first
    :param size: rows of a chunk; None chooses by the size of an observation
    :return: the samples in chunks, whose sizes differ by one at most; each takes rows from all over the rollout, so
        that one alone is representative
    """
    n_samples = n_rows(samples)
    if size is None:
        size = max(1, MAX_CHUNK_ELEMENTS // _n_elements(select(samples, slice(0, 1))[0]))
    if size >= n_samples:
        return [samples]
    n_chunks = -(-n_samples // size)
    return [select(samples, slice(i, None, n_chunks)) for i in range(n_chunks)]


def n_rows(samples: tuple[Any, ...]) -> int:
    """
    :param samples: as for ``select``
    :return: N
    """
    first = samples[0]
    while isinstance(first, dict):
        first = next(iter(first.values()))
    return len(first)


def _n_elements(field: Any) -> int:
    if isinstance(field, dict):
        return sum(map(_n_elements, field.values()))
    return int(field.numel())


def _rows(field: Any, index: Index) -> Any:
    if field is None:
        return None
    if isinstance(field, dict):
        return {key: _rows(value, index) for key, value in field.items()}
    return field[index]
