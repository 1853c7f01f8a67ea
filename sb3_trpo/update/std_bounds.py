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
from stable_baselines3.common.type_aliases import Schedule

# What the way down to an upper bound may take of the trust region in one update, and the largest fall of ln σ in one,
# up to which that share is about right.
DESCENT_SHARE = 1 / 16
MAX_DESCENT = 0.25


def std_bounds(policy: ActorCriticPolicy, min_std: float, max_std: float, max_kl: float) -> Callable[[], object] | None:
    """
    Bounds that leave room in the trust region, whatever σ is when they come.

    Above, σ_old is left in steps for which KL(old ‖ new) is about ``DESCENT_SHARE`` δ: with σ = q σ_old in all d
    dimensions it is d (ln q + (q⁻² − 1) / 2) ≈ d (ln q)². Below, σ is not lifted over σ_old, so that KL only shrinks.

    :param policy: at θ_old
    :param min_std: the least σ of its actions; 0 for none
    :param max_std: the largest, which counts where it is less than ``min_std``; infinite for none
    :param max_kl: δ
    :return: brings σ between the bounds; None if there are none
    """
    is_bounded = min_std > 0.0 or max_std < math.inf
    if not is_bounded or not policy.log_std.requires_grad:
        return None
    log_std = policy.log_std
    old = log_std.detach()
    descent = min(math.sqrt(DESCENT_SHARE * max_kl / old.numel()), MAX_DESCENT)
    upper = (old - descent).clamp(min=_log(max_std))
    lower = old.clamp(max=_log(min_std)).minimum(upper)
    return lambda: log_std.data.clamp_(lower, upper)


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf


def check_noise(
    policy: ActorCriticPolicy, min_std: float | Schedule, max_std: float | Schedule | None, noise_correlation: float
) -> None:
    """
    :param policy: that is to explore
    :param min_std: the least σ of its actions
    :param max_std: the largest σ of its actions
    :param noise_correlation: of the noise in its actions
    :raises ValueError: if the policy's actions have no such noise (gSDE's is a matrix)
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
            raise ValueError(
                f"{name} is {value!r}, but must be {none} where actions are not Gaussian with a noise of their own "
                f"(they come from a {kind})."
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
