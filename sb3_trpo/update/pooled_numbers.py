"""
What is logged of an update, over the samples of all ranks.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.ranks.alone import Ranks

RETURNS = ("train/return_mean", "train/return_std")


def pool_numbers(buffer: RolloutBuffer, numbers: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """
    Compute over the samples of all ranks what was computed over those of each, in one collective.

    :param buffer: this rank's rollout
    :param numbers: what was computed, by the keys of the log
    :param ranks: the ranks that have a part of the rollout each
    :return: the numbers that are different then; none alone
    """
    if ranks.is_alone:
        return {}
    # Moments, in double precision, for differences of squares lose digits.
    returns, advantages = buffer.returns.astype(np.float64), buffer.advantages.astype(np.float64)
    errors = returns - buffer.values
    return_mean, return_std = (numbers.get(key, math.nan) for key in RETURNS)
    moments = [moment for x in (returns, errors, advantages) for moment in (x.mean(), np.square(x).mean())]
    moments += [return_mean, return_std**2 + return_mean**2, numbers["train/value_loss"]]
    *pairs, value_loss = ranks.mean(th.tensor(moments, dtype=th.float64), returns.size).tolist()
    means = pairs[::2]
    variances = [max(square - mean**2, 0.0) for mean, square in zip(means, pairs[1::2], strict=True)]
    pooled = {
        "train/value_loss": value_loss,
        "train/explained_variance": 1.0 - variances[1] / variances[0] if variances[0] > 0.0 else math.nan,
        "train/advantage_mean": means[2],
        "train/advantage_std": math.sqrt(variances[2]),
    }
    if RETURNS[0] in numbers:
        pooled |= dict(zip(RETURNS, (means[3], math.sqrt(variances[3])), strict=True))
    return pooled
