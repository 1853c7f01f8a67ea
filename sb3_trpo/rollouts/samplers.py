"""
Samples of SB3's action distributions, without the distribution objects: the same numbers, bit for bit.
"""

from collections.abc import Callable

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.rollouts.noise import CorrelatedNoise

# A function of the actor network's outputs, (N, ·), and of what entered its last layer, (N, n), that samples actions.
Sampler = Callable[[th.Tensor, th.Tensor], th.Tensor]


def make_sampler(policy: ActorCriticPolicy, n_envs: int, noise: CorrelatedNoise | None) -> Sampler:
    """
    Make the function that samples actions from the actor network's outputs.

    :param policy: the policy, whose action distribution is one of ``SAMPLERS``
    :param n_envs: the number of environments
    :param noise: the noise of Gaussian actions; None for independent noise
    :return: the function, of outputs, (n_envs, ·), and of what entered the last layer, (n_envs, n)
    """
    return SAMPLERS[type(policy.action_dist)](policy, n_envs, noise)


def _gaussian(policy: ActorCriticPolicy, n_envs: int, noise: CorrelatedNoise | None) -> Sampler:
    std = policy.log_std.detach().exp().expand(n_envs, -1)
    if noise is not None:
        return lambda mean, _: mean + noise() * std
    fresh = th.empty_like(std, memory_format=th.contiguous_format)
    # What torch's Normal.rsample does.
    return lambda mean, _: mean + fresh.normal_() * std


def _state_dependent(policy: ActorCriticPolicy, *_: object) -> Sampler:
    distribution = policy.action_dist
    assert isinstance(distribution, StateDependentNoiseDistribution)

    def sample(mean: th.Tensor, latent: th.Tensor) -> th.Tensor:
        actions = mean + distribution.get_noise(latent)
        return actions if distribution.bijector is None else distribution.bijector.forward(actions)

    return sample


def _categorical(*_: object) -> Sampler:
    return lambda logits, _: _sample_category(logits)


def _sample_category(logits: th.Tensor) -> th.Tensor:
    # What torch's Categorical does: its logits are normalised first.
    probs = (logits - logits.logsumexp(dim=-1, keepdim=True)).softmax(dim=-1)
    return th.multinomial(probs, 1, replacement=True).flatten()


def _multi_categorical(policy: ActorCriticPolicy, *_: object) -> Sampler:
    distribution = policy.action_dist
    assert isinstance(distribution, MultiCategoricalDistribution)
    sizes = list(distribution.action_dims)
    return lambda logits, _: th.stack([_sample_category(part) for part in logits.split_with_sizes(sizes, dim=1)], dim=1)


def _bernoulli(*_: object) -> Sampler:
    return lambda logits, _: th.bernoulli(logits.sigmoid())


SAMPLERS: dict[type, Callable[[ActorCriticPolicy, int, CorrelatedNoise | None], Sampler]] = {
    DiagGaussianDistribution: _gaussian,
    StateDependentNoiseDistribution: _state_dependent,
    CategoricalDistribution: _categorical,
    MultiCategoricalDistribution: _multi_categorical,
    BernoulliDistribution: _bernoulli,
}
