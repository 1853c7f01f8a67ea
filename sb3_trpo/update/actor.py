"""
Which of its linearisations a policy gets.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.networks.mlp import to_columns
from sb3_trpo.networks.plain_policy import extract_features, plain_actor
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.graph_linearization import GraphLinearization, use_twice_differentiable_kernels
from sb3_trpo.trust_region.linearization import Linearization
from sb3_trpo.trust_region.mlp_linearization import MlpLinearization

# Distributions that the network's outputs, and perhaps log σ, determine.
_PLAIN = (DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution)


class Actor:
    """
    z(θ) of a policy, for the duration of one update.

    :param policy: in evaluation mode
    :param distribution_of: evaluates the policy on rollout samples
    :param is_builtin: whether ``distribution_of`` is nothing but the policy's ``get_distribution``
    """

    def __init__(
        self, policy: ActorCriticPolicy, distribution_of: Callable[[Any], Distribution], is_builtin: bool
    ) -> None:
        self._policy = policy
        self._distribution_of = distribution_of
        self._parameters: FlatParameters | None = None
        self._mlp = plain_actor(policy) if is_builtin and type(policy.action_dist) in _PLAIN else None
        # A policy with a Gaussian of its own need not have this parameter.
        has_log_std = self._mlp is not None and type(policy.action_dist) is DiagGaussianDistribution
        self._log_std = policy.log_std if has_log_std else None
        if self._mlp is not None:
            parameters: list[Any] = [*self._mlp.parameters, *self._more_parameters()]
            if all(parameter.requires_grad for parameter in parameters):
                self._parameters = FlatParameters(parameters)
            else:
                # With a frozen layer the Jacobian has fewer columns; that is autograd's business.
                self._mlp = None

    def _more_parameters(self) -> list[nn.Parameter]:
        return [] if self._log_std is None else [self._log_std]

    def linearize(self, samples: Any) -> Linearization:
        """
        :param samples: a chunk of rollout samples
        :return: z(θ) on it, linearised at the present θ
        """
        if self._mlp is None:
            linearization = GraphLinearization(lambda: self._distribution_of(samples), self._policy, self._parameters)
            self._parameters = linearization.parameters
            return linearization
        assert self._parameters is not None
        features = self._features(samples)
        return MlpLinearization(self._mlp, features, self._distribution_from, self._parameters, self._log_std)

    @property
    def hides_features(self) -> bool:
        """
        Whether ``linearize`` lacks a part of J: unless told to learn features for it, gSDE treats those that its noise
        depends on as constants.
        """
        action_dist = self._policy.action_dist
        return isinstance(action_dist, StateDependentNoiseDistribution) and not action_dist.learn_features

    def linearize_for_fisher(self, samples: Any) -> Linearization:
        """
        As ``linearize``, with all that z depends on. That gSDE's features are not trained for their noise is a matter
        of the gradient; KL changes with the noise whatever moves it.

        :param samples: a chunk of rollout samples
        :return: z(θ) on it, linearised at the present θ
        """
        with _no_hidden_features(self._policy.action_dist):
            return self.linearize(samples)

    @th.no_grad()
    def distribution(self, samples: Any) -> Distribution:
        """
        :param samples: a chunk of rollout samples
        :return: π(·|s) at the present θ, by the same arithmetic as in ``linearize``
        """
        if self._mlp is None:
            with use_twice_differentiable_kernels(self._policy):
                return self._distribution_of(samples)
        network = self._mlp.on_columns()
        return self._distribution_from(network.outputs(network.layer_inputs(to_columns(self._features(samples)))).t())

    @th.no_grad()
    def _features(self, samples: Any) -> th.Tensor:
        return extract_features(self._policy, samples.observations, self._policy.pi_features_extractor)

    def _distribution_from(self, outputs: th.Tensor) -> Distribution:
        return self._policy.action_dist.proba_distribution(outputs, *self._more_parameters())


@contextlib.contextmanager
def _no_hidden_features(action_dist: Distribution) -> Iterator[None]:
    """
    :param action_dist: which is differentiable in all that it is given while this is open
    """
    if not isinstance(action_dist, StateDependentNoiseDistribution):
        yield
        return
    learn_features, action_dist.learn_features = action_dist.learn_features, True
    try:
        yield
    finally:
        action_dist.learn_features = learn_features
