"""
How a policy explores: noise that is correlated from step to step, and a lower bound on it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule


def std_bound(policy: ActorCriticPolicy, min_std: float) -> Callable[[], object]:
    """
    :param policy: at θ_old
    :param min_std: the least σ of its actions
    :return: lifts σ to ``min_std``, or to σ_old where that is less. So it only shrinks KL(old ‖ new), which falls as a
        new σ below the old one goes up to it
    """
    if min_std == 0.0:
        return lambda: None
    log_std = policy.log_std
    bound = log_std.detach().clamp(max=math.log(min_std))
    return lambda: log_std.data.clamp_(min=bound)


def check_noise(policy: ActorCriticPolicy, min_std: float | Schedule, noise_correlation: float) -> None:
    """
    :param policy: that is to explore
    :param min_std: the least σ of its actions
    :param noise_correlation: of the noise in its actions
    :raises ValueError: if the policy's actions have no such noise (gSDE's is a matrix)
    """
    has_std = hasattr(policy, "log_std") and not policy.use_sde
    is_gaussian = type(policy.action_dist) is DiagGaussianDistribution
    for name, value, is_allowed in (
        ("min_std", min_std, has_std),
        ("noise_correlation", noise_correlation, is_gaussian),
    ):
        if value != 0.0 and not is_allowed:
            kind = type(policy.action_dist).__name__
            raise ValueError(
                f"{name} is {value!r}, but must be 0 where actions are not Gaussian with a noise of their own (they "
                f"come from a {kind})."
            )


class CorrelatedNoise:
    """
    Standard Gaussian noise of which each step remembers the one before: z_t = ρ z_{t-1} + √(1 − ρ²) ε_t with
    independent ε_t ~ N(0, I), so that each z_t ~ N(0, I), too, and z_t and z_{t+k} have the correlation ρᵏ.

    :param correlation: ρ
    :param begin: gives z_0, (n_envs, n_actions), when the first noise is wanted
    """

    def __init__(self, correlation: float, begin: Callable[[], th.Tensor]) -> None:
        self.correlation = correlation
        self.last: th.Tensor | None = None
        self._begin = begin

    def __call__(self) -> th.Tensor:
        """
        :return: z_t, (n_envs, n_actions); the next call changes it in place
        """
        if self.last is None:
            self.last = self._begin()
            self._fresh = th.empty_like(self.last)
        return self.last.mul_(self.correlation).add_(self._fresh.normal_(), alpha=math.sqrt(1.0 - self.correlation**2))


def noise_of_rollout(algorithm: Any, n_envs: int) -> CorrelatedNoise | None:
    """
    :param algorithm: a TRPO
    :param n_envs: whose actions are sampled at a time
    :return: noise that goes on from where it was in the last rollout, and beyond the ends of episodes; None for
        independent noise
    """
    if algorithm.noise_correlation == 0.0:
        return None

    def begin() -> th.Tensor:
        # Not before the first action: what is called at the rollout's start may restore a checkpoint.
        last, shape = algorithm._last_noise, (n_envs, algorithm.policy.action_dist.action_dim)
        if last is None or last.shape != shape:
            return th.randn(shape, device=algorithm.device)
        return th.tensor(last, device=algorithm.device)

    return CorrelatedNoise(algorithm.noise_correlation, begin)


@contextmanager
def explored_with(noise: CorrelatedNoise | None, algorithm: Any) -> Iterator[None]:
    """
    Within the context the algorithm's policy, when it is called, samples its actions with the noise. ``predict``, which
    a callback may use meanwhile, samples as ever.

    :param noise: None for independent noise
    :param algorithm: a TRPO
    """
    if noise is None:
        yield
        return
    distribution = algorithm.policy.action_dist

    def sample() -> th.Tensor:
        return distribution.distribution.mean + noise() * distribution.distribution.stddev

    hooks = (
        algorithm.policy.register_forward_pre_hook(lambda *_: setattr(distribution, "sample", sample)),
        algorithm.policy.register_forward_hook(lambda *_: delattr(distribution, "sample"), always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if noise.last is not None:
            algorithm._last_noise = noise.last.cpu().numpy()
