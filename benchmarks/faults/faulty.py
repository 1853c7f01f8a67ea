"""
Environments, buffers and algorithms with the mistakes that implementations of TRPO are known for.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo import TRPO
from sb3_trpo.trust_region.conjugate_gradient import Solution
from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult, backtracking_line_search
from sb3_trpo.trust_region.surrogate import LogProb, Surrogate


class EndsKeptSecret(gym.Wrapper):
    """Begins a new episode by itself, and tells nobody."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            obs, _ = self.env.reset()
        return obs, reward, False, False, info


class EndsTold(gym.Wrapper):
    """The same wrapper, as it should be."""


class Leak(gym.Wrapper):
    """
    Keeps something of every step.

    :param env: the environment
    :param size: bytes of it
    :param keeps_all: whether it keeps that of all steps, or of the last one alone
    """

    def __init__(self, env: gym.Env, size: int, keeps_all: bool) -> None:
        super().__init__(env)
        self.size, self.keeps_all = size, keeps_all
        self.history: list[bytearray] = []

    def step(self, action: Any) -> Any:
        if not self.keeps_all:
            self.history.clear()
        # Bytes that are written: pages of zeros take no memory.
        self.history.append(bytearray(b"x" * self.size))
        return super().step(action)


class Offset(gym.RewardWrapper):
    """
    Adds a number to every reward, and multiplies it.

    :param env: the environment
    :param scale: the factor
    :param offset: the number that is added afterwards
    """

    def __init__(self, env: gym.Env, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(env)
        self.scale, self.offset = scale, offset

    def reward(self, reward: Any) -> float:
        return float(reward) * self.scale + self.offset


class OwnNoise(gym.ObservationWrapper):
    """
    Adds noise to observations.

    :param env: the environment
    :param uses_seed: whether the noise comes from the environment's generator, or from one of its own
    """

    def __init__(self, env: gym.Env, uses_seed: bool) -> None:
        super().__init__(env)
        self.uses_seed = uses_seed
        self.rng = np.random.default_rng()
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        self.observation_space = spaces.Box(-np.inf, np.inf, space.shape, np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        rng = self.unwrapped.np_random if self.uses_seed else self.rng
        return (observation + 0.01 * rng.normal(size=observation.shape)).astype(np.float32)


class WrongGae(RolloutBuffer):
    """Advantages that flow from each episode into the one before."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        values = np.concatenate([self.values, last_values.cpu().numpy().reshape(1, -1)])
        advantage = np.zeros(self.n_envs, dtype=np.float32)
        for step in reversed(range(self.buffer_size)):
            delta = self.rewards[step] + self.gamma * values[step + 1] - values[step]
            advantage = delta + self.gamma * self.gae_lambda * advantage
            self.advantages[step] = advantage
        self.returns = self.advantages + self.values


class OwnGae(RolloutBuffer):
    """The same loop, with the ends of episodes."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        values = np.concatenate([self.values, last_values.cpu().numpy().reshape(1, -1)])
        goes_on = 1.0 - np.concatenate([self.episode_starts[1:], dones.astype(np.float32)[None]])
        advantage = np.zeros(self.n_envs, dtype=np.float32)
        for step in reversed(range(self.buffer_size)):
            delta = self.rewards[step] + self.gamma * values[step + 1] * goes_on[step] - values[step]
            advantage = delta + self.gamma * self.gae_lambda * goes_on[step] * advantage
            self.advantages[step] = advantage
        self.returns = self.advantages + self.values


class NotDetached(TRPO):
    """The old policy's log-probability follows the new one's: the ratio is 1 whatever θ is."""

    def _log_prob(self) -> LogProb:
        log_prob = super()._log_prob()
        return lambda distribution, actions: (
            log_prob(distribution, actions) - log_prob(distribution, actions) + log_prob(distribution, actions).detach()
        )


class Detached(TRPO):
    """The same, with the term that has no gradient on the other side."""

    def _log_prob(self) -> LogProb:
        log_prob = super()._log_prob()
        return lambda distribution, actions: (
            log_prob(distribution, actions)
            - log_prob(distribution, actions).detach()
            + log_prob(distribution, actions).detach()
        )


class OwnLineSearch(TRPO):
    """A line search with a KL divergence of its own; subclasses have a wrong one."""

    def own_kl(self, old: Any, new: Any, family: Any) -> th.Tensor:
        kl: th.Tensor = family.kl_divergence(old, new)
        return kl

    def _line_search(self, surrogate: Surrogate, parameters: FlatParameters, full_step: th.Tensor) -> LineSearchResult:
        samples = self._rollout_samples()

        @th.no_grad()
        def outputs() -> tuple[Any, Any]:
            family, z = family_and_z(self._action_distribution(samples))
            return family, tuple(part.clone() for part in z)

        _, old = outputs()

        def evaluate() -> tuple[float, float]:
            family, new = outputs()
            return float(self.own_kl(old, new, family).mean()), surrogate.evaluate()[1]

        return backtracking_line_search(
            evaluate,
            parameters,
            full_step,
            max_kl=self._max_kl(),
            shrinking_factor=self.line_search_shrinking_factor,
            max_iter=self.line_search_max_iter,
        )


class KlOfItself(OwnLineSearch):
    """The old outputs are not kept, so that the new policy is compared with itself."""

    def own_kl(self, old: Any, new: Any, family: Any) -> th.Tensor:
        return super().own_kl(new, new, family)


class KlBackwards(OwnLineSearch):
    """KL(new ‖ old)."""

    def own_kl(self, old: Any, new: Any, family: Any) -> th.Tensor:
        return super().own_kl(new, old, family)


class WrongSign(TRPO):
    """The step goes down the surrogate."""

    def _scale_to_trust_region(self, fisher: Fisher, solution: Solution) -> th.Tensor:
        return -super()._scale_to_trust_region(fisher, solution)
