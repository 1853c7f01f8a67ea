"""
Running statistics of ``VecNormalize`` over the environments of all ranks.

What each rank has seen since the last time is pooled, in double precision: the moments are those that one process with
all environments would have.
"""

from typing import Any, TypeAlias

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_trpo.ranks.alone import Ranks
from sb3_trpo.rollouts.normalization import statistics_of

# Mean, variance and count.
Moments: TypeAlias = tuple[Any, Any, float]


def statistics_of_training(model: OnPolicyAlgorithm) -> list[RunningMeanStd]:
    """
    Find the running statistics of the training environments.

    :param model: the algorithm
    :return: the statistics of observations and of returns; none without ``VecNormalize``
    """
    env = model.get_vec_normalize_env()
    return [] if env is None else statistics_of(env)


def copy_statistics(statistics: RunningMeanStd) -> Moments:
    """
    Copy running statistics.

    :param statistics: the statistics
    :return: mean, variance and count
    """
    return np.array(statistics.mean), np.array(statistics.var), float(statistics.count)


class PooledStatistics:
    """
    The running statistics of all ranks.

    :param model: the algorithm with this rank's environments
    :param ranks: the ranks
    """

    def __init__(self, model: OnPolicyAlgorithm, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks
        self._base: list[Moments] = []
        self.start_alike()

    def start_alike(self) -> None:
        """Give all ranks the first rank's statistics, in one collective."""
        statistics = statistics_of_training(self._model)
        self._base = self._ranks.broadcast([copy_statistics(each) for each in statistics])
        for each, (mean, var, count) in zip(statistics, self._base, strict=True):
            each.mean, each.var, each.count = np.array(mean), np.array(var), count

    def pool(self, condition: bool) -> bool:
        """
        Let each rank know what all have seen, and whether something holds on all of them, in one collective.

        :param condition: whether it holds on this rank
        :return: whether it holds on all
        """
        statistics = statistics_of_training(self._model)
        news = [_news(each, base) for each, base in zip(statistics, self._base, strict=True)]
        vector = np.concatenate([[float(condition)], *(np.ravel(part) for parts in news for part in parts)])
        summed = self._ranks.sum(th.from_numpy(vector)).numpy()
        place = 1
        for each, base, parts in zip(statistics, self._base, news, strict=True):
            sums = []
            for part in parts:
                sums.append(summed[place : place + np.size(part)].reshape(np.shape(part)))
                place += np.size(part)
            _add(each, base, *sums)
        self._base = [copy_statistics(each) for each in statistics]
        return round(float(summed[0])) == self._ranks.size


def _news(statistics: RunningMeanStd, base: Moments) -> tuple[Any, Any, float]:
    """
    Tell what was seen since the last time, by sums of deviations from the mean at that time.

    :param statistics: the running statistics now
    :param base: what they were
    :return: the sum of deviations, that of their squares, and the number of what was seen
    """
    mean, var, count = base
    shift = statistics.mean - mean
    squares = statistics.count * (statistics.var + np.square(shift)) - count * var
    return shift * statistics.count, squares, statistics.count - count


def _add(statistics: RunningMeanStd, base: Moments, deviations: Any, squares: Any, n_new: Any) -> None:
    mean, var, count = base
    total = count + float(n_new)
    shift = deviations / total
    statistics.mean = mean + shift
    statistics.var = np.maximum((count * var + squares) / total - np.square(shift), 0.0)
    statistics.count = total
