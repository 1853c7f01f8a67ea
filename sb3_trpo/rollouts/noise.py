"""
Exploration noise that is correlated from step to step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo.validation.values import UserError


def check_noise(
    policy: ActorCriticPolicy, min_std: float | Schedule, max_std: float | Schedule | None, noise_correlation: float
) -> None:
    """
    Check that a policy has the noise that the arguments speak of.

    :param policy: the policy that explores
    :param min_std: the least σ of its actions
    :param max_std: the largest σ of its actions
    :param noise_correlation: the correlation of the noise in its actions
    :raises UserError: if the policy's actions have no such noise (gSDE's is a matrix)
    """
    has_std = hasattr(policy, "log_std") and not policy.use_sde
    is_gaussian = type(policy.action_dist) is DiagGaussianDistribution
    for name, value, none, is_allowed in (
        ("min_std", min_std, 0, has_std),
        ("max_std", max_std, None, has_std),
        ("noise_correlation", noise_correlation, 0, is_gaussian),
    ):
        if value != none and not is_allowed:
            kind = type(policy.action_dist).__name__
            raise UserError(
                f"{name} is {value!r}, but must be {none} where actions are not Gaussian with a noise of their own "
                f"(they come from a {kind})."
            )


class CorrelatedNoise:
    """
    Standard Gaussian noise that is correlated from step to step.

    It is ξ_t = ρ ξ_{t-1} + √(1 − ρ²) ε_t with independent ε_t ~ N(0, I). So each ξ_t ~ N(0, I), too, and ξ_t and
    ξ_{t+k} have the correlation ρᵏ.

    :param correlation: ρ
    :param begin: a function that gives ξ_0, (n_envs, n_actions), when the first noise is asked for
    """

    def __init__(self, correlation: float, begin: Callable[[], th.Tensor]) -> None:
        self.correlation = correlation
        self.last: th.Tensor | None = None
        self._begin = begin

    def __call__(self) -> th.Tensor:
        """
        Draw the next noise.

        :return: ξ_t, (n_envs, n_actions); the next call changes it in place
        """
        if self.last is None:
            self.last = self._begin()
            self._fresh = th.empty_like(self.last)
        return self.last.mul_(self.correlation).add_(self._fresh.normal_(), alpha=math.sqrt(1.0 - self.correlation**2))


class NoisyGaussian(DiagGaussianDistribution):
    """
    SB3's Gaussian, which samples with a given noise while the rollout acts, and as ever otherwise.

    :param action_dim: the number of action dimensions
    """

    def __init__(self, action_dim: int) -> None:
        super().__init__(action_dim)
        self.noise: CorrelatedNoise | None = None
        self.is_acting: Callable[[], bool] = bool

    def sample(self) -> th.Tensor:
        """
        Sample actions.

        :return: the actions, (n_envs, n_actions)
        """
        if self.noise is None or not self.is_acting():
            return super().sample()
        return self.distribution.mean + self.noise() * self.distribution.stddev

    def __getstate__(self) -> dict[str, Any]:
        # A copy that is made during a rollout samples as ever.
        return {**vars(self), "noise": None, "is_acting": bool}


class Explorer(Protocol):
    """An algorithm whose policy explores."""

    policy: ActorCriticPolicy
    device: th.device
    noise_correlation: float
    _last_noise: np.ndarray | None


def noise_of_rollout(algorithm: Explorer, n_envs: int) -> CorrelatedNoise | None:
    """
    Make the noise of a rollout, which goes on where it was in the last one, also beyond the ends of episodes.

    :param algorithm: the algorithm that collects the rollout
    :param n_envs: the number of environments
    :return: the noise; None for independent noise
    """
    if algorithm.noise_correlation == 0.0:
        return None

    def begin() -> th.Tensor:
        # Not before the first action: what is called at the rollout's start may restore a checkpoint.
        distribution = algorithm.policy.action_dist
        assert isinstance(distribution, DiagGaussianDistribution)
        last, shape = algorithm._last_noise, (n_envs, distribution.action_dim)
        if last is None or last.shape != shape:
            return th.randn(shape, device=algorithm.device)
        return th.tensor(last, device=algorithm.device)

    return CorrelatedNoise(algorithm.noise_correlation, begin)


@contextlib.contextmanager
def keep_noise(noise: CorrelatedNoise | None, algorithm: Explorer) -> Iterator[None]:
    """
    Keep the block's last noise for the next rollout.

    :param noise: the noise; None for independent noise
    :param algorithm: the algorithm that collects the rollout
    """
    try:
        yield
    finally:
        if noise is not None and noise.last is not None:
            algorithm._last_noise = noise.last.cpu().numpy()


@contextlib.contextmanager
def use_noise(
    noise: CorrelatedNoise | None, policy: ActorCriticPolicy, is_acting: Callable[[], bool]
) -> Iterator[None]:
    """
    Let the policy, when a rollout calls it in the block, sample its actions with the noise.

    When a callback or an environment calls ``predict`` meanwhile, it samples as ever.

    :param noise: the noise; None for independent noise
    :param policy: the policy that acts
    :param is_acting: a function that tells whether it is the rollout that calls
    """
    if noise is None:
        yield
        return
    sb3s = policy.action_dist
    assert isinstance(sb3s, DiagGaussianDistribution)
    distribution = NoisyGaussian(sb3s.action_dim)
    distribution.noise, distribution.is_acting = noise, is_acting
    try:
        policy.action_dist = distribution
        yield
    finally:
        # Where even this is interrupted, what is left samples as SB3's, for no rollout is acting.
        policy.action_dist = sb3s
