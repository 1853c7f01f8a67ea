"""
A game with action masks, for the tests of the algorithms that obey them.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MASKED_SPACES = [spaces.Discrete(5), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3)]


def sizes_of(space: Any) -> list[int]:
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return list(map(int, space.nvec)) if isinstance(space, spaces.MultiDiscrete) else [2] * space.n


class MaskedGame(gym.Env):
    """
    Random observations and masks; a forbidden choice is an error, the first choice of each sub-action pays.

    :param action_space: one of ``MASKED_SPACES``
    :param obs_space: the space of observations; None for three numbers
    :param p_allowed: the probability that a choice is allowed; one is always
    :param steps: the least and the largest number of steps of an episode
    """

    def __init__(
        self,
        action_space: Any = MASKED_SPACES[0],
        obs_space: Any = None,
        p_allowed: float = 0.5,
        steps: tuple[int, int] = (10, 10),
    ) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-1, 1, (3,)) if obs_space is None else obs_space
        self.p_allowed, self.steps = p_allowed, steps

    def _next(self) -> Any:
        self._masks = []
        for size in sizes_of(self.action_space):
            mask = self.np_random.random(size) < self.p_allowed
            mask[self.np_random.integers(size)] = True
            self._masks.append(mask)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def action_masks(self) -> Any:
        return np.concatenate(self._masks)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps_left = int(self.np_random.integers(*self.steps, endpoint=True))
        return self._next(), {}

    def step(self, action: Any) -> Any:
        choices = np.atleast_1d(action)
        assert all(mask[choice] for mask, choice in zip(self._masks, choices, strict=True)), "forbidden"
        self.steps_left -= 1
        return self._next(), float(np.mean(choices == 0)), self.steps_left <= 0, False, {}
