"""
How a policy explores: noise that is correlated from step to step, and bounds on it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.validation import check_real

# What a falling ``max_std`` may take of the trust region.
MAX_STD_SHARE = 0.25


def std_bounds(policy: ActorCriticPolicy, min_std: float, max_std: float | None, max_kl: float) -> Callable[[], object]:
    """
    :param policy: at θ_old
    :param min_std: the least σ of its actions; 0 for none
    :param max_std: the greatest σ of its actions, which holds where the two contradict each other; None for none
    :param max_kl: δ
    :return: moves σ into its bounds. Does nothing for a policy without a σ of its own (gSDE has a matrix)

    σ is lifted to ``min_std``, or to σ_old where that is less. So this only shrinks KL(old ‖ new), which falls as a new
    σ below the old one goes up to it. A σ above ``max_std`` falls as fast as a quarter of the trust region allows: the
    KL of d actions whose log σ falls by ε is d ε² and terms of ε³.
    """
    log_std = getattr(policy, "log_std", None)
    if log_std is None or policy.use_sde or (min_std == 0.0 and max_std is None):
        return lambda: None
    old = log_std.detach().clone()
    low = old.clamp(max=math.log(min_std)) if min_std > 0.0 else old - math.inf
    high = old + math.inf
    if max_std is not None:
        check_real("max_std", max_std, "above 0 throughout training", lambda x: x > 0)
        high = (old - math.sqrt(MAX_STD_SHARE * max_kl / old.numel())).clamp(min=math.log(max_std))
    return lambda: log_std.data.copy_(log_std.data.maximum(low).minimum(high))


def check_noise(policy: ActorCriticPolicy, noise_correlation: float) -> None:
    """
    :param policy: that is to explore
    :param noise_correlation: of the noise in its actions
    :raises ValueError: if the policy's actions have no such noise
    """
    if noise_correlation != 0.0 and type(policy.action_dist) is not DiagGaussianDistribution:
        kind = type(policy.action_dist).__name__
        raise ValueError(
            f"noise_correlation is {noise_correlation!r}, but must be 0 where actions are not Gaussian with a noise of "
            f"their own (they come from a {kind})."
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
