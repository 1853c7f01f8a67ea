"""
Rollouts on several ranks: what they have in common at their steps, and at their ends.
"""

from collections import deque
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.ranks.alone import Ranks
from sb3_trpo.rollouts.pooled_statistics import PooledStatistics
from sb3_trpo.rollouts.shown_locals import ShowingCallback

# Buffers of the last episodes, over which SB3's log averages.
EPISODES = ("ep_info_buffer", "ep_success_buffer")


class RankedCallback(ShowingCallback):
    """
    The callback that was given to ``learn``, on one of several ranks.

    It counts the steps of all ranks. A stop on one of them is a stop on all, at the end of the rollout at the latest.

    :param callback: the user's callback, initialised
    :param model: the algorithm that learns
    :param ranks: the ranks
    :param statistics: what the environments are normalised with
    """

    def __init__(
        self, callback: BaseCallback, model: OnPolicyAlgorithm, ranks: Ranks, statistics: PooledStatistics
    ) -> None:
        super().__init__(callback, model)
        self.algorithm = model
        self._ranks = ranks
        self._statistics = statistics
        self._n_steps = 0
        self._is_stopped = False
        self._episodes_before: dict[str, int] = {}

    def on_rollout_start(self) -> None:
        """Begin the rollout."""
        super().on_rollout_start()
        self._n_steps = 0
        for name in EPISODES:
            # Without a limit, so that those of this rollout can be told from those before.
            episodes = deque(getattr(self.algorithm, name))
            self._episodes_before[name] = len(episodes)
            setattr(self.algorithm, name, episodes)

    def on_step(self) -> bool:
        """
        Count the steps of the other ranks, call the callbacks, and pool young statistics.

        :return: whether to go on
        """
        self.algorithm.num_timesteps += (self._ranks.size - 1) * self.algorithm.n_envs
        goes_on = super().on_step()
        self._n_steps += 1
        # Until statistics have seen enough, each rank would normalise in a way of its own: at steps 1, 2, 4, 8, ...
        if self.algorithm._n_updates == 0 and self._n_steps & (self._n_steps - 1) == 0:
            goes_on = self._pool(goes_on)
        return goes_on

    def _pool(self, goes_on: bool) -> bool:
        with self._ranks.patience():
            goes_on = self._statistics.pool(goes_on)
        self._is_stopped = not goes_on
        return goes_on

    def end_rollout(self, is_complete: bool) -> bool:
        """
        Pool statistics and episodes.

        :param is_complete: whether the rollout of this rank is complete
        :return: whether those of all ranks are
        """
        # Where a rank has stopped, this is what the others meet at their next step or at their end.
        if not self._is_stopped:
            is_complete = self._pool(is_complete)
        self._pool_episodes()
        if not is_complete:
            # Each has stopped after steps of its own.
            self.algorithm.num_timesteps = self._ranks.broadcast(self.algorithm.num_timesteps)
        return is_complete

    def _pool_episodes(self) -> None:
        own = {name: list(getattr(self.algorithm, name)) for name in EPISODES}
        new = {name: own[name][self._episodes_before[name] :] for name in EPISODES}
        of_ranks = self._ranks.gather(new)
        for name in EPISODES:
            window = deque[Any](own[name][: self._episodes_before[name]], self.algorithm._stats_window_size)
            window.extend(_in_turn([each[name] for each in of_ranks]))
            setattr(self.algorithm, name, window)


def _in_turn(lists: Sequence[list[Any]]) -> list[Any]:
    """
    Take the last of each, the one before of each, ..., so that the end of the result has as many of each.

    :param lists: the lists
    :return: all that is in them
    """
    missing = object()
    turns = zip_longest(*(reversed(each) for each in lists), fillvalue=missing)
    return [each for each in chain.from_iterable(turns) if each is not missing][::-1]
