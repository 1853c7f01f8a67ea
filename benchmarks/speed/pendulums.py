"""
Thousands of environments in one array, as a simulator on a GPU gives them: a plain ``VecEnv`` of Stable-Baselines3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

N_PENDULUMS = 16
# Cosine, sine and velocity of each.
N_OBSERVATIONS = 3 * N_PENDULUMS
TIME_LIMIT = 300
SECONDS_OF_A_STEP = 0.05
MAX_TORQUE, GRAVITY_OVER_LENGTH = 2.0, 10.0
# A pendulum that spins faster ends its episode.
MAX_SPEED = 12.0


class Pendulums(VecEnv):
    """
    Environments of ``N_PENDULUMS`` pendulums each, which are to be held upright: 48 observations, 16 torques.

    An episode is terminated where a pendulum spins too fast, and truncated after ``TIME_LIMIT`` steps. Environments
    begin at different times of an episode, as they do in Isaac Lab, so that they don't all end in the same step.

    :param n_envs: the number of environments
    :param seed: of the initial states
    """

    def __init__(self, n_envs: int, seed: int = 0) -> None:
        # What SB3 asks for first.
        self.render_mode = None
        observation_space = spaces.Box(-np.inf, np.inf, (N_OBSERVATIONS,), np.float32)
        super().__init__(n_envs, observation_space, spaces.Box(-1.0, 1.0, (N_PENDULUMS,), np.float32))
        self._random = np.random.default_rng(seed)
        self._angles = np.zeros((n_envs, N_PENDULUMS), np.float32)
        self._speeds = np.zeros_like(self._angles)
        self._lengths = np.zeros(n_envs, int)
        self._returns = np.zeros(n_envs, np.float32)
        self._actions = self._angles

    def reset(self) -> np.ndarray:
        """Begin an episode in each environment, at a time that is drawn."""
        self._begin(np.arange(self.num_envs))
        self._lengths[:] = self._random.integers(0, TIME_LIMIT, self.num_envs)
        return self._observations()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the torques, (n_envs, 16), in shares of the largest."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments, and begin anew those whose episodes have ended."""
        torques = MAX_TORQUE * self._actions.clip(-1.0, 1.0)
        # Upright is at zero.
        self._speeds += SECONDS_OF_A_STEP * (1.5 * GRAVITY_OVER_LENGTH * np.sin(self._angles) + 3.0 * torques)
        self._angles += SECONDS_OF_A_STEP * self._speeds
        rewards = (np.cos(self._angles) - 0.01 * self._speeds**2 - 0.001 * torques**2).mean(axis=1)
        self._lengths += 1
        self._returns += rewards
        terminated = np.abs(self._speeds).max(axis=1) > MAX_SPEED
        dones = terminated | (self._lengths >= TIME_LIMIT)
        obs = self._observations()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = dones.nonzero()[0]
        if len(ended):
            for i in ended.tolist():
                infos[i] = {
                    "terminal_observation": obs[i].copy(),
                    "TimeLimit.truncated": not terminated[i],
                    "episode": {"r": float(self._returns[i]), "l": int(self._lengths[i])},
                }
            self._begin(ended)
            obs[ended] = self._observations(ended)
        return obs, rewards, dones, infos

    def _begin(self, envs: np.ndarray) -> None:
        shape = (len(envs), N_PENDULUMS)
        self._angles[envs] = self._random.uniform(-np.pi, np.pi, shape)
        self._speeds[envs] = self._random.uniform(-1.0, 1.0, shape)
        self._lengths[envs] = 0
        self._returns[envs] = 0.0

    def _observations(self, envs: Any = slice(None)) -> np.ndarray:
        angles = self._angles[envs]
        return np.concatenate([np.cos(angles), np.sin(angles), self._speeds[envs] / MAX_SPEED], axis=1)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, the same for each environment."""
        return [getattr(self, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: one environment has nothing that another has not."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: one environment has no methods."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Say that no environment is wrapped."""
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
