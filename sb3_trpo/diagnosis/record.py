"""
What the rules know of a run: its log, and a few of its settings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

# Rules look at so many of the last updates: single ones are ordinary.
WINDOW = 20
# So many updates at least make a symptom.
FEWEST = 5

Column = np.ndarray


class Algorithm(Protocol):
    """An algorithm with TRPO's arguments as attributes, as far as rules depend on them."""

    n_steps: int
    n_envs: int
    gae_lambda: float
    ent_coef: float
    use_sde: bool
    max_std: float | Schedule | None
    action_space: spaces.Space[Any]
    _current_progress_remaining: float


@dataclass(frozen=True)
class Settings:
    """
    The settings that rules depend on. None where they are not known.

    :param n_samples: the number of steps in a rollout, over all environments
    :param action_dimensions: the number of independent sub-actions
    :param gae_lambda: λ
    :param ent_coef: the weight of the entropy bonus
    :param use_sde: whether the noise is a function of the state (gSDE)
    :param least_max_std: the smallest upper bound on σ so far; infinite without a bound
    """

    n_samples: int | None = None
    action_dimensions: int | None = None
    gae_lambda: float | None = None
    ent_coef: float | None = None
    use_sde: bool | None = None
    least_max_std: float | None = None

    @classmethod
    def of(cls, algorithm: Algorithm) -> "Settings":
        """
        Read the settings of an algorithm, as they are in this update.

        :param algorithm: the algorithm
        :return: the settings
        """
        max_std = algorithm.max_std
        if callable(max_std):
            # The update has asked the schedule for the same.
            max_std = max_std(algorithm._current_progress_remaining)
        return cls(
            n_samples=algorithm.n_steps * algorithm.n_envs,
            action_dimensions=action_dimensions(algorithm.action_space),
            gae_lambda=algorithm.gae_lambda,
            ent_coef=algorithm.ent_coef,
            use_sde=algorithm.use_sde,
            least_max_std=math.inf if max_std is None else float(max_std),
        )


@dataclass(frozen=True)
class Record:
    """
    A run, as far as it is known.

    :param log: the columns of the log, by key, one row for each entry, (n,); NaN where a row has no such number
    :param settings: the settings
    :param progress: the share of the planned steps that are done
    """

    log: Mapping[str, Column] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    progress: float = 1.0

    def column(self, key: str) -> Column:
        """
        Give a column of the log.

        :param key: its key
        :return: its numbers, (n,); empty if the log has no such key
        """
        return self.log[key] if key in self.log else np.empty(0)

    def window(self, *keys: str, n: int = WINDOW) -> tuple[Column, ...]:
        """
        Give the last rows in which all of some keys have a number.

        :param keys: the keys
        :param n: the number of rows
        :return: a column for each key, all of the same length of n at most
        """
        return tuple(column[-n:] for column in self.complete(*keys))

    def complete(self, *keys: str) -> tuple[Column, ...]:
        """
        Give all rows in which all of some keys have a number.

        :param keys: the keys
        :return: a column for each key, all of the same length
        """
        columns = [self.column(key) for key in keys]
        if not all(len(column) for column in columns):
            return tuple(np.empty(0) for _ in keys)
        rows = np.logical_and.reduce([np.isfinite(column) for column in columns])
        return tuple(column[rows] for column in columns)

    def updates_per_row(self) -> float:
        """
        Tell how many updates lie between two rows.

        :return: their number; 1 if it is not known
        """
        (counts,) = self.complete("train/n_updates")
        if len(counts) < 2 or counts[-1] <= counts[0]:
            return 1.0
        return float(counts[-1] - counts[0]) / (len(counts) - 1)


def action_dimensions(action_space: spaces.Space[Any]) -> int:
    """
    Count the action dimensions.

    :param action_space: a Box, Discrete, MultiDiscrete or MultiBinary
    :return: the number of independent sub-actions
    """
    return 1 if isinstance(action_space, spaces.Discrete) else math.prod(action_space.shape or ())
