"""
Rollout data as sequences, on which a recurrent policy is evaluated.

Samples are rows, as everywhere. Here consecutive rows belong together, and a flag says where a sequence starts. Padding
exists inside ``run_lstm`` alone.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch as th
from torch import nn

from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.trust_region.shared_switches import NO_CUDNN
from sb3_trpo.update.samples import select


class SequenceSamples(NamedTuple):
    """
    A rollout, sequence by sequence.

    A sequence starts with an episode or with the rollout, and ends with either.

    :param observations: the observations of N states, (N, ...), or a dictionary of such
    :param actions: the actions taken there, (N, ...)
    :param old_values: the critic's values at the time, (N,)
    :param old_log_prob: ln π(a|s) at the time, (N,)
    :param advantages: the advantages, (N,)
    :param returns: the returns, (N,)
    :param starts: whether a row is the first of its sequence, (N,)
    :param states: the LSTMs' states before each step, 0 where an episode starts: ``pi`` and ``vf``, each with hidden
        and cell states side by side, (N, 2, layers, hidden units)
    :param action_masks: the allowed choices, (N, number of choices), or None
    """

    observations: Any
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    starts: th.Tensor
    states: dict[str, th.Tensor]
    action_masks: th.Tensor | None = None


def run_lstm(lstm: nn.LSTM, features: th.Tensor, starts: th.Tensor, states: th.Tensor) -> th.Tensor:
    """
    Run an LSTM over sequences of different lengths.

    :param lstm: the LSTM
    :param features: the inputs, sequence by sequence, (N, n)
    :param starts: whether a row is the first of its sequence, (N,); the first row is
    :param states: the states before each step, as in ``SequenceSamples``, of which those at a sequence's start are used
    :return: the outputs, (N, hidden units)
    """
    firsts = starts.nonzero().flatten()
    lengths = sequence_lengths(starts)
    steps = th.arange(int(lengths.max()), device=starts.device).unsqueeze(1)
    is_real = steps < lengths
    # 1. Padding repeats a sequence's last row: nothing is computed on numbers that no environment has given.
    rows = firsts + th.minimum(steps, lengths - 1)
    hidden, cell = (part.contiguous() for part in states[firsts].permute(1, 2, 0, 3))
    # 2. cuDNN's LSTM can be differentiated in training mode only.
    with contextlib.nullcontext() if lstm.training else NO_CUDNN.hold():
        padded, _ = lstm(features[rows], (hidden, cell))
    # 3. Back to rows: sequence by sequence, and of each the real steps.
    outputs: th.Tensor = padded.transpose(0, 1)[is_real.t()]
    return outputs


def sequence_lengths(starts: th.Tensor) -> th.Tensor:
    """
    Count the rows of each sequence.

    :param starts: whether a row is the first of its sequence, (N,)
    :return: the numbers, (number of sequences,)
    """
    firsts = starts.nonzero().flatten()
    return th.diff(firsts, append=firsts.new_tensor([len(starts)]))


def rows_of(starts: th.Tensor, order: th.Tensor) -> Sequence[th.Tensor]:
    """
    Give the rows of sequences.

    :param starts: whether a row is the first of its sequence, (N,)
    :param order: the numbers of the sequences
    :return: for each sequence its rows, in order
    """
    rows = th.arange(len(starts), device=starts.device).split_with_sizes(sequence_lengths(starts).tolist())
    return [rows[i] for i in order.tolist()]


def group(sequences: Iterable[th.Tensor], size: int) -> list[th.Tensor]:
    """
    Put whole sequences together until there are enough rows.

    :param sequences: the rows of each sequence
    :param size: the number of rows in a group, which only a single sequence can exceed
    :return: the rows of each group
    """
    groups: list[list[th.Tensor]] = []
    n_rows = size
    for rows in sequences:
        if n_rows + len(rows) > size:
            groups.append([])
            n_rows = 0
        groups[-1].append(rows)
        n_rows += len(rows)
    return [th.cat(rows) for rows in groups]


SequencesT = TypeVar("SequencesT", bound=SequenceSamples)


def sequence_chunks(samples: SequencesT, size: int) -> Sequence[SequencesT]:
    """
    Divide samples into chunks of whole sequences.

    :param samples: the samples
    :param size: the number of rows in a chunk, which only a single sequence can exceed
    :return: the chunks
    """
    if size >= len(samples.starts):
        return [samples]
    n_sequences = int(samples.starts.sum())
    order = th.arange(n_sequences, device=samples.starts.device)
    return [select(samples, rows) for rows in group(rows_of(samples.starts, order), size)]


def every_sequence(samples: SequencesT, step: int, ranks: Ranks = ALONE) -> SequencesT:
    """
    Take every k-th sequence.

    :param samples: the samples
    :param step: k
    :param ranks: the ranks, of all whose sequences every k-th is taken; where one of them has less than k, each rank
        begins with its own first
    :return: the samples of these sequences
    """
    n = int(samples.starts.sum())
    counts = [count for (count,) in ranks.counts([n])]
    first = ranks.share_of(counts).every(step).start if min(counts) >= step else 0
    order = th.arange(first, n, step, device=samples.starts.device)
    return select(samples, th.cat(list(rows_of(samples.starts, order))))


def shuffle_sequences(samples: SequencesT, batch_size: int, ranks: Ranks = ALONE) -> Sequence[th.Tensor]:
    """
    Draw the critic's minibatches of one epoch: every sequence once, whole, in random order.

    :param samples: the rollout
    :param batch_size: the number of rows in a minibatch, which only a single sequence can exceed
    :param ranks: the ranks, all of which have the same number of minibatches: the last ones may be empty
    :return: for each minibatch the rows of its samples, in order
    """
    order = th.randperm(int(samples.starts.sum()), device=samples.starts.device)
    groups = group(rows_of(samples.starts, order), batch_size)
    n_groups = max(count for (count,) in ranks.counts([len(groups)]))
    return [*groups, *(order.new_empty(0) for _ in range(n_groups - len(groups)))]
