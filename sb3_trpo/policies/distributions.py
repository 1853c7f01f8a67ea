"""
Action distributions that Stable-Baselines3 lacks.
"""

import math

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.distributions import Beta
from torch.distributions import Distribution as TorchDistribution


class BetaDistribution(Distribution):
    """
    Beta distributions on [-1, 1], one for each action dimension.

    They are those of Chou et al. 2017 (https://proceedings.mlr.press/v70/chou17a.html): a network gives α − 1 and β − 1
    through a softplus, so that each density has one peak. No action needs clipping, as those in a Gaussian's tails do,
    so that the density also holds near the bounds.

    :param action_dim: the number of action dimensions
    """

    distribution: Beta

    def __init__(self, action_dim: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # SB3 gives it no types.
        self.action_dim = action_dim

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """
        Make the layer that gives the parameters of the distributions.

        :param latent_dim: the number of inputs
        :return: the layer
        """
        return nn.Linear(latent_dim, 2 * self.action_dim)

    def proba_distribution(self, outputs: th.Tensor) -> "BetaDistribution":
        """
        Set the parameters of the distributions.

        :param outputs: the outputs of the layer, (N, 2 action dimensions)
        :return: this object
        """
        alpha, beta = (1.0 + nn.functional.softplus(outputs)).chunk(2, dim=1)
        self.distribution = Beta(alpha, beta)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        Compute ln π(a|s).

        :param actions: the actions, (N, action dimensions)
        :return: the log-probabilities, (N,)
        """
        # torch gives types to the base class alone.
        distribution: TorchDistribution = self.distribution
        # On a bound itself, where rounding may put an action, the density is 0.
        rounding = th.finfo(actions.dtype).eps
        shares = (0.5 * (actions + 1.0)).clamp(min=rounding, max=1.0 - rounding)
        # [-1, 1] is twice as long as [0, 1], so that densities are half as large.
        return (distribution.log_prob(shares) - math.log(2.0)).sum(dim=1)

    def entropy(self) -> th.Tensor:
        """
        Compute the entropy in nats.

        :return: the entropy, summed over action dimensions, (N,)
        """
        distribution: TorchDistribution = self.distribution
        return (distribution.entropy() + math.log(2.0)).sum(dim=1)

    def sample(self) -> th.Tensor:
        """
        Sample actions, differentiably in the parameters.

        :return: the actions, (N, action dimensions)
        """
        return 2.0 * self.distribution.rsample() - 1.0

    def mode(self) -> th.Tensor:
        """
        Give the most probable actions.

        :return: the actions, (N, action dimensions)
        """
        # Where α and β round to 1, every action is as likely as any other, and the one in the middle is taken.
        tiny = th.finfo(self.distribution.mean.dtype).tiny
        above_alpha, above_beta = (
            x - 1.0 for x in (self.distribution.concentration1, self.distribution.concentration0)
        )
        return (above_alpha - above_beta) / (above_alpha + above_beta + tiny)

    def actions_from_params(self, outputs: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        Set the parameters, and choose actions.

        :param outputs: the outputs of the layer, (N, 2 action dimensions)
        :param deterministic: whether to take the most probable actions rather than samples
        :return: the actions, (N, action dimensions)
        """
        return self.proba_distribution(outputs).get_actions(deterministic)

    def log_prob_from_params(self, outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Set the parameters, and sample actions with their log-probabilities.

        :param outputs: the outputs of the layer, (N, 2 action dimensions)
        :return: the actions, (N, action dimensions), and ln π(a|s), (N,)
        """
        actions = self.actions_from_params(outputs)
        return actions, self.log_prob(actions)
