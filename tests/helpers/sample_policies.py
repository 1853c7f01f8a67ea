"""
Small policies of every kind, in float64, and the Fisher information as its definition has it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from sb3_trpo.networks.plain_policy import plain_actor
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.graph_linearization import GraphLinearization
from sb3_trpo.trust_region.mlp_linearization import MlpLinearization

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "Box": spaces.Box(-1.0, 1.0, (2,)),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(3),
}


def make_policy(
    action_space: spaces.Space = ACTIONS["Box"],
    observation_space: spaces.Space = OBSERVATIONS,
    seed: int = 0,
    dtype: th.dtype = th.float64,
    **kwargs: object,
) -> ActorCriticPolicy:
    """
    Make a policy whose parameters are all away from their initial values.

    :param action_space: of the policy
    :param observation_space: of the policy
    :param seed: of its parameters
    :param dtype: of its parameters
    :param kwargs: further arguments of SB3's policy
    :return: a policy whose parameters are all away from their initial values
    """
    kwargs.setdefault("net_arch", [6, 5])
    with th.random.fork_rng():
        th.manual_seed(seed)
        policy = ActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **kwargs)
    return shake(policy.to(dtype), seed)


def shake(policy: ActorCriticPolicy, seed: int = 0) -> ActorCriticPolicy:
    """
    Add noise to a policy's parameters.

    :param policy: a policy
    :param seed: of the noise
    :return: the policy with noise on its parameters, so that no output is near 0 and no layer orthogonal
    """
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in policy.parameters():
            noise = th.randn(parameter.shape, generator=generator, dtype=th.float64)
            parameter.add_(0.3 * noise.to(parameter.dtype))
    policy.set_training_mode(False)
    return policy


def with_noise(policy: ActorCriticPolicy, action_dist: StateDependentNoiseDistribution) -> ActorCriticPolicy:
    """
    Give a policy other state-dependent noise.

    :param policy: for continuous actions
    :param action_dist: state-dependent noise that SB3's policy has no argument for
    :return: the policy with this noise
    """
    policy.action_dist = action_dist
    latent_dim = policy.mlp_extractor.latent_dim_pi
    with th.random.fork_rng():
        th.manual_seed(0)
        policy.action_net, policy.log_std = action_dist.proba_distribution_net(latent_dim, -0.5, latent_dim)
    return shake(policy.double())


def squashed() -> ActorCriticPolicy:
    policy = make_policy()
    policy.action_dist = SquashedDiagGaussianDistribution(2)
    return policy


POLICIES: dict[str, Callable[[], ActorCriticPolicy]] = {
    "DiagGaussian": make_policy,
    "SquashedDiagGaussian": squashed,
    "gSDE": lambda: make_policy(use_sde=True),
    "gSDE, squashed": lambda: make_policy(use_sde=True, squash_output=True),
    "gSDE, one std for all actions": lambda: make_policy(use_sde=True, full_std=False),
    "gSDE, expln": lambda: make_policy(use_sde=True, use_expln=True),
    "gSDE, learned features": lambda: with_noise(
        make_policy(), StateDependentNoiseDistribution(2, learn_features=True)
    ),
    "Categorical": lambda: make_policy(ACTIONS["Discrete"]),
    "MultiCategorical": lambda: make_policy(ACTIONS["MultiDiscrete"]),
    "Bernoulli": lambda: make_policy(ACTIONS["MultiBinary"]),
}
# Those whose Jacobian is also written out.
PLAIN = ("DiagGaussian", "Categorical", "MultiCategorical", "Bernoulli")


class OwnActions(Distribution):
    """
    A user's distribution for SB3.

    :param make: torch's distribution from a network's outputs, or several of them
    :param n_outputs: how many outputs these are
    """

    def __init__(self, make: Callable[[th.Tensor], object], n_outputs: int) -> None:
        self.make = make
        self.n_outputs = n_outputs

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return nn.Linear(latent_dim, self.n_outputs)

    def proba_distribution(self, outputs: th.Tensor) -> "OwnActions":
        self.distribution = self.make(outputs)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        log_prob = self.distribution.log_prob(actions)
        return log_prob.reshape(len(log_prob), -1).sum(dim=1)

    def entropy(self) -> th.Tensor:
        entropy = self.distribution.entropy()
        return entropy.reshape(len(entropy), -1).sum(dim=1)

    def sample(self) -> th.Tensor:
        return self.distribution.sample()

    def mode(self) -> th.Tensor:
        return self.distribution.mean

    def actions_from_params(self, outputs: th.Tensor, deterministic: bool = False) -> th.Tensor:
        return self.proba_distribution(outputs).get_actions(deterministic)

    def log_prob_from_params(self, outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        actions = self.actions_from_params(outputs)
        return actions, self.log_prob(actions)


class OwnActionsPolicy(ActorCriticPolicy):
    """SB3's policy with a user's distribution, set after it is made."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return self.action_dist.proba_distribution(self.action_net(latent_pi))


def own_policy(make: Callable[[th.Tensor], object], n_outputs: int, dtype: th.dtype = th.float32) -> ActorCriticPolicy:
    """
    Make a policy of any distribution of torch's.

    :param make: torch's distribution from a network's outputs, or several of them
    :param n_outputs: how many outputs these are
    :param dtype: of its parameters
    :return: a policy of such actions
    """
    with th.random.fork_rng():
        th.manual_seed(0)
        policy = OwnActionsPolicy(OBSERVATIONS, ACTIONS["Box"], lambda _: 1e-3, net_arch=[3])
        policy.action_dist = OwnActions(make, n_outputs)
        policy.action_net = policy.action_dist.proba_distribution_net(policy.mlp_extractor.latent_dim_pi)
        del policy.log_std
    return policy.to(dtype)


class SmallCnn(BaseFeaturesExtractor):
    """
    A small network for small images.

    :param observation_space: images, channels first
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.convolutions = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], 3, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 2, (2, 3), dilation=(1, 2), bias=False),
            nn.Tanh(),
            nn.Flatten(),
        )
        with th.no_grad():
            n_flat = self.convolutions(th.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Linear(n_flat, 4)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return th.tanh(self.linear(self.convolutions(obs)))


IMAGES = spaces.Box(0, 255, (2, 12, 12), dtype=np.uint8)


def cnn_policy(**kwargs: object) -> ActorCriticPolicy:
    """
    Make a policy for small images.

    :param kwargs: further arguments of SB3's policy
    :return: a policy for small images
    """
    return make_policy(observation_space=IMAGES, features_extractor_class=SmallCnn, **kwargs)


def make_observations(policy: ActorCriticPolicy, n: int, seed: int = 1) -> th.Tensor:
    """
    Draw random observations.

    :param policy: a policy with array observations
    :param n: number of states N
    :param seed: of the states
    :return: observations, (N, ...)
    """
    generator = th.Generator().manual_seed(seed)
    dtype = next(policy.parameters()).dtype
    return th.randn((n, *policy.observation_space.shape), generator=generator, dtype=dtype)


def distribution_of(policy: ActorCriticPolicy, obs: th.Tensor) -> Distribution:
    """
    ``policy.get_distribution`` without SB3's conversion of observations, which would round them to float32.

    :param policy: a policy
    :param obs: observations in its parameters' precision, (N, ...)
    :return: π(·|s)
    """
    features = policy.pi_features_extractor(obs)
    return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(features))


def linearize(
    policy: ActorCriticPolicy, obs: th.Tensor, parameters: FlatParameters | None = None
) -> GraphLinearization:
    """
    Linearise a policy by autograd.

    :param policy: a policy
    :param obs: observations, (N, ...)
    :param parameters: θ, or None
    :return: the policy's linearisation by autograd
    """
    return GraphLinearization(lambda: distribution_of(policy, obs), policy, parameters)


def linearize_mlp(policy: ActorCriticPolicy, obs: th.Tensor) -> MlpLinearization:
    """
    Linearise a plain policy, with the derivatives written out.

    :param policy: a plain one
    :param obs: observations, (N, ...)
    :return: the same with the derivatives written out
    """
    mlp = plain_actor(policy)
    assert mlp is not None
    log_std = getattr(policy, "log_std", None)
    more = [] if log_std is None else [log_std]
    return MlpLinearization(
        mlp,
        obs,
        lambda outputs, _: policy.action_dist.proba_distribution(outputs, *more),
        FlatParameters([*mlp.parameters, *more]),
        log_std,
    )


def explicit_fisher(policy: ActorCriticPolicy, obs: th.Tensor, parameters: Sequence[nn.Parameter]) -> th.Tensor:
    """
    Compute the Fisher information by its definition, one gradient for each state and action.

    :param policy: a policy
    :param obs: observations, (N, ...)
    :param parameters: θ
    :return: E_s E_a[∇log π(a|s) ∇log π(a|s)ᵀ], (P, P)
    """
    theta = FlatParameters(parameters)
    total = th.zeros(len(theta), len(theta), dtype=obs.dtype)
    distribution = distribution_of(policy, obs)
    for weights, actions in weighted_actions(distribution):
        for log_prob, weight in zip(distribution.log_prob(actions), weights, strict=True):
            gradients = th.autograd.grad(log_prob, parameters, retain_graph=True, allow_unused=True)
            score = theta.flatten_gradients(gradients)
            total += weight * th.outer(score, score)
    return total / len(obs)


def weighted_actions(distribution: Distribution) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """
    Find actions and weights that make expectations of sums.

    :param distribution: of N states
    :return: weights, (N,), and actions, (N, ...), whose weighted sums are expectations over π(·|s): all actions if
        these are discrete; otherwise the nodes of Gauss-Hermite quadrature, exact for the quartic polynomials at hand
    """
    inner = distribution.distribution
    if isinstance(inner, Normal):
        points, weights = np.polynomial.hermite_e.hermegauss(3)
        for nodes in itertools.product(range(3), repeat=inner.loc.shape[1]):
            x = th.tensor([points[i] for i in nodes], dtype=inner.loc.dtype)
            weight = float(np.prod([weights[i] / weights.sum() for i in nodes]))
            actions = (inner.loc + inner.scale * x).detach()
            squashes = isinstance(distribution, SquashedDiagGaussianDistribution) or getattr(
                distribution, "bijector", None
            )
            yield th.full((len(actions),), weight, dtype=x.dtype), actions.tanh() if squashes else actions
        return
    if isinstance(inner, Categorical):
        choices = [(a,) for a in range(inner.logits.shape[1])]
    elif isinstance(inner, Bernoulli):
        choices = list(itertools.product((0.0, 1.0), repeat=inner.logits.shape[1]))
    else:
        choices = list(itertools.product(*(range(sub_action.logits.shape[1]) for sub_action in inner)))
    n = len(inner[0].logits if isinstance(inner, list) else inner.logits)
    for choice in choices:
        actions = th.tensor(choice, dtype=th.float64 if isinstance(inner, Bernoulli) else th.long).expand(n, -1)
        actions = actions[:, 0] if isinstance(inner, Categorical) else actions
        yield distribution.log_prob(actions).exp().detach(), actions


def as_matrix(operator: Callable[[th.Tensor], th.Tensor], size: int) -> th.Tensor:
    """
    Write an operator as a matrix.

    :param operator: v -> A v
    :param size: P
    :return: A, (P, P)
    """
    return th.stack([operator(column) for column in th.eye(size, dtype=th.float64)], dim=1)
