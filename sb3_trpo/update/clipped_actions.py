"""
Actions that are clipped on their way to the environment.

SB3 samples Gaussian actions and clips them to the bounds of the action space. What happens then is the same for every
action beyond a bound. Where exactly it was drawn is nothing but noise in the policy gradient.
"""

import functools
import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.trust_region.surrogate import LogProb, log_prob_of_sampled

# A user's own distribution may have a log-probability of its own.
_GAUSSIANS = (DiagGaussianDistribution, StateDependentNoiseDistribution)
# Further below, single precision has no probability. No policy has sampled such an action.
_MIN_DEVIATIONS = -12.0


def log_prob_of_executed(policy: ActorCriticPolicy) -> LogProb:
    """
    Make the function that gives the log-probability of what the environment gets.

    For an action at or beyond a bound that is the probability of all such actions together. Its gradient has the same
    expectation as that of the density of what was sampled, and never more variance (Fujita & Maeda 2018,
    https://arxiv.org/abs/1802.07564).

    :param policy: the policy that acts
    :return: a function of the action distributions of N states and of the actions as sampled, (N, ...), that gives a
        logarithm, (N,): of a density within the bounds, of a probability at or beyond them
    """
    space = policy.action_space
    if not isinstance(space, spaces.Box) or policy.squash_output:
        return log_prob_of_sampled
    weight = next(policy.parameters())
    low, high = (th.tensor(bound).flatten().to(weight) for bound in (space.low, space.high))
    return functools.partial(_log_prob_of_clipped, low, high)


def _log_prob_of_clipped(low: th.Tensor, high: th.Tensor, distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    Give the log-probability of Gaussian actions after they are clipped.

    :param low: the lower bound of each action dimension, (action dimensions,)
    :param high: the upper bound of each, (action dimensions,)
    :param distribution: the action distribution of N states
    :param actions: the actions as sampled, (N, action dimensions)
    :return: the logarithms, summed over action dimensions, (N,)
    """
    if type(distribution) not in _GAUSSIANS:
        return log_prob_of_sampled(distribution, actions)
    normal: Any = distribution.distribution
    above, below = actions >= high, actions <= low
    # 0 within the bounds, where the gradient in σ is not asked for: the distance to an enormous bound would make it
    # infinite, and its product with 0 not a number.
    beyond = th.where(above, normal.loc - high, th.where(below, low - normal.loc, 0.0))
    deviations = beyond / normal.scale
    # ln Φ; erfc takes a quarter of the time of log_ndtr.
    log_beyond = th.erfc(deviations.clamp(min=_MIN_DEVIATIONS) * -math.sqrt(0.5)).mul(0.5).log()
    return th.where(above | below, log_beyond, normal.log_prob(actions)).sum(dim=1)
