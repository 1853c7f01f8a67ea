"""
The actor: z(θ) of a policy on chunks of a rollout, by the fastest way that its networks allow.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

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
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.networks.mlp import to_columns
from sb3_trpo.networks.plain_policy import extract_features, plain_actor
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.graph_linearization import GraphLinearization, use_twice_differentiable_kernels
from sb3_trpo.trust_region.gsde_linearization import GsdeLinearization
from sb3_trpo.trust_region.linearization import Linearization
from sb3_trpo.trust_region.mlp_linearization import MlpLinearization

# The distributions that the network's outputs determine, and those that take log σ, too.
_OF_OUTPUTS = (CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution)
_WITH_LOG_STD = (DiagGaussianDistribution, StateDependentNoiseDistribution)


class States(Protocol):
    """Rollout samples, as far as an actor is concerned."""

    @property
    def observations(self) -> PyTorchObs:
        """The observations of N states."""


StatesT = TypeVar("StatesT", bound=States)


class Actor(Generic[StatesT]):
    """
    z(θ) of a policy, for the duration of one update.

    :param policy: the policy, in evaluation mode
    :param distribution_of: a function that evaluates the policy on a chunk of rollout samples
    :param is_builtin: whether ``distribution_of`` is nothing but the policy's ``get_distribution``, or what
        ``distribution_from`` makes of its network's outputs
    :param distribution_from: a function that makes the action distribution from the network's outputs, (N, n_out),
        differentiably, and from the samples that they belong to, such as their action masks; None is the policy's own
        distribution
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        distribution_of: Callable[[StatesT], Distribution],
        is_builtin: bool,
        distribution_from: Callable[[th.Tensor, StatesT], Distribution] | None = None,
    ) -> None:
        self._policy = policy
        self._distribution_of = distribution_of
        self._distribution_from = distribution_from
        self._parameters: FlatParameters | None = None
        self._log_std: nn.Parameter | None = None
        kind = type(policy.action_dist)
        is_known = distribution_from is not None or kind in _OF_OUTPUTS or kind in _WITH_LOG_STD
        self._mlp = plain_actor(policy) if is_builtin and is_known else None
        if self._mlp is None:
            return
        if distribution_from is None and kind in _WITH_LOG_STD:
            # A policy with a distribution of its own need not have this parameter.
            self._log_std = policy.log_std
        parameters = [*self._mlp.parameters, *([] if self._log_std is None else [self._log_std])]
        if all(parameter.requires_grad for parameter in parameters):
            # A policy's tensors are parameters, which ``PlainMlp`` does not ask for.
            self._parameters = FlatParameters(parameters)  # type: ignore[arg-type]
        else:
            # With a frozen layer the Jacobian has fewer columns; that is autograd's business.
            self._mlp = None

    def linearize(self, samples: StatesT) -> Linearization:
        """
        Linearise z(θ) at the current θ.

        :param samples: a chunk of rollout samples
        :return: the linearisation on this chunk
        """
        if self._mlp is None:
            linearization = GraphLinearization(lambda: self._distribution_of(samples), self._policy, self._parameters)
            self._parameters = linearization.parameters
            return linearization
        assert self._parameters is not None
        features, action_dist = self._features(samples), self._policy.action_dist
        if self._distribution_from is None and isinstance(action_dist, StateDependentNoiseDistribution):
            assert self._log_std is not None
            return GsdeLinearization(self._mlp, features, action_dist, self._parameters, self._log_std)

        def distribution_of(outputs: th.Tensor, latent: th.Tensor) -> Distribution:
            return self._make_distribution(outputs, latent, samples)

        return MlpLinearization(self._mlp, features, distribution_of, self._parameters, self._log_std)

    @property
    def hides_features(self) -> bool:
        """
        Whether ``linearize`` lacks a part of J.

        Unless told to learn features for it, gSDE treats the features that its noise depends on as constants, and so
        does autograd in every product.
        """
        action_dist = self._policy.action_dist
        return (
            self._mlp is None
            and isinstance(action_dist, StateDependentNoiseDistribution)
            and not action_dist.learn_features
        )

    def linearize_for_fisher(self, samples: StatesT) -> Linearization:
        """
        Linearise z(θ) with all that it depends on.

        gSDE's features are not trained for the noise: that concerns the gradient alone. KL changes with the noise,
        whatever moves it.

        :param samples: a chunk of rollout samples
        :return: the linearisation on this chunk
        """
        if not self.hides_features:
            return self.linearize(samples)
        with _show_features(self._policy.action_dist):
            return self.linearize(samples)

    @th.no_grad()
    def distribution(self, samples: StatesT) -> Distribution:
        """
        Evaluate the policy at the current θ, by the same arithmetic as in ``linearize``.

        :param samples: a chunk of rollout samples
        :return: π(· | s)
        """
        if self._mlp is None:
            with use_twice_differentiable_kernels(self._policy):
                return self._distribution_of(samples)
        network = self._mlp.on_columns()
        inputs = network.layer_inputs(to_columns(self._features(samples)))
        return self._make_distribution(network.outputs(inputs).t(), inputs.hidden[-1].t(), samples)

    @th.no_grad()
    def _features(self, samples: StatesT) -> th.Tensor:
        return extract_features(self._policy, samples.observations, self._policy.pi_features_extractor)

    def _make_distribution(self, outputs: th.Tensor, latent: th.Tensor, samples: StatesT) -> Distribution:
        if self._distribution_from is not None:
            return self._distribution_from(outputs, samples)
        action_dist = self._policy.action_dist
        if self._log_std is None:
            return action_dist.proba_distribution(outputs)
        if isinstance(action_dist, StateDependentNoiseDistribution):
            return action_dist.proba_distribution(outputs, self._log_std, latent)
        return action_dist.proba_distribution(outputs, self._log_std)


@contextlib.contextmanager
def _show_features(action_dist: Distribution) -> Iterator[None]:
    """
    Make gSDE differentiable, in the block, in all that it is given.

    :param action_dist: the distribution with state-dependent noise
    """
    assert isinstance(action_dist, StateDependentNoiseDistribution)
    learn_features, action_dist.learn_features = action_dist.learn_features, True
    try:
        yield
    finally:
        action_dist.learn_features = learn_features
