"""
Which family a distribution belongs to, and what the families that torch knows KL for are: against the Fisher
information's definition, from the score, in float64.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sample_policies import OwnActions, as_matrix, linearize, make_observations, own_policy
from sb3_contrib.common.maskable.distributions import (
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import distributions as td
from torch import nn
from torch.distributions import kl_divergence, register_kl

from sb3_trpo.trust_region.families import check_family, family_and_z, register_family
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.kl import CategoricalFamily, DistributionFamily, DistributionParameters, GaussianFamily
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.preconditioner import kronecker_preconditioner
from sb3_trpo.validation.values import UserError

N_STATES = 4


def sb3s(inner: object) -> Distribution:
    """
    Wrap torch's distribution as SB3 does.

    :param inner: torch's distribution, or several
    :return: one of SB3's around it
    """
    return OwnActions(lambda outputs: inner, 1).proba_distribution(th.zeros(1))


def outputs(size: int, seed: int = 0) -> th.Tensor:
    generator = th.Generator().manual_seed(seed)
    return th.randn(N_STATES, size, generator=generator, dtype=th.float64)


def positive(x: th.Tensor) -> th.Tensor:
    return nn.functional.softplus(x) + 0.5


# The number of a network's outputs, and torch's distribution from them.
KNOWN_TO_TORCH: dict[str, tuple[int, Callable[[th.Tensor], td.Distribution]]] = {
    "Beta": (4, lambda x: td.Beta(*positive(x).chunk(2, dim=1))),
    "Independent(Beta)": (4, lambda x: td.Independent(td.Beta(*positive(x).chunk(2, dim=1)), 1)),
    "Beta, scaled": (
        4,
        lambda x: td.TransformedDistribution(td.Beta(*positive(x).chunk(2, dim=1)), [td.AffineTransform(-1.0, 2.0)]),
    ),
    "Dirichlet": (3, lambda x: td.Dirichlet(positive(x))),
    "Gamma": (4, lambda x: td.Gamma(*positive(x).chunk(2, dim=1))),
    "Laplace": (4, lambda x: td.Laplace(x[:, :2], positive(x[:, 2:]))),
    "LogNormal": (4, lambda x: td.LogNormal(x[:, :2], positive(x[:, 2:]))),
    "Gumbel": (4, lambda x: td.Gumbel(x[:, :2], positive(x[:, 2:]))),
    "Cauchy": (4, lambda x: td.Cauchy(x[:, :2], positive(x[:, 2:]))),
    "Exponential": (2, lambda x: td.Exponential(positive(x))),
    "Poisson": (2, lambda x: td.Poisson(positive(x))),
    "Geometric": (2, lambda x: td.Geometric(logits=x)),
    "Binomial": (2, lambda x: td.Binomial(5, logits=x)),
    "ContinuousBernoulli": (2, lambda x: td.ContinuousBernoulli(logits=x)),
    "OneHotCategorical": (3, lambda x: td.OneHotCategorical(logits=x)),
    "Categorical of several dimensions": (6, lambda x: td.Categorical(logits=x.view(-1, 2, 3))),
    "Bernoulli of several dimensions": (4, lambda x: td.Bernoulli(logits=x.view(-1, 2, 2))),
    "Normal without an axis of actions": (2, lambda x: td.Normal(x[:, 0], positive(x[:, 1]))),
    "MultivariateNormal": (
        5,
        lambda x: td.MultivariateNormal(
            x[:, :2],
            scale_tril=th.stack([positive(x[:, 2]), 0.0 * x[:, 3], x[:, 3], positive(x[:, 4])], 1).view(-1, 2, 2),
        ),
    ),
    "LowRankMultivariateNormal": (
        6,
        lambda x: td.LowRankMultivariateNormal(x[:, :2], x[:, 2:4].unsqueeze(2), positive(x[:, 4:])),
    ),
}


@pytest.fixture(params=list(KNOWN_TO_TORCH))
def case(request: pytest.FixtureRequest) -> tuple[int, Callable[[th.Tensor], td.Distribution]]:
    return KNOWN_TO_TORCH[request.param]


def test_kl_is_torchs_summed_over_all_but_the_states(case) -> None:
    size, make = case
    old, new = make(outputs(size, 0)), make(outputs(size, 1))
    family, z_old = family_and_z(sb3s(old))
    _, z_new = family_and_z(sb3s(new))
    kl = kl_divergence(old, new)
    th.testing.assert_close(family.kl_divergence(z_old, z_new), kl.reshape(N_STATES, -1).sum(dim=1))
    assert (family.kl_divergence(z_old, z_old) < 1e-12).all()
    assert all(len(part) == N_STATES for part in z_old)


def test_metric_is_the_second_derivative_of_kl(case) -> None:
    """By differences, in the network's outputs, where it is Jᵀ M J."""
    size, make = case
    x = outputs(size)
    family, z = family_and_z(sb3s(make(x)))
    direction = outputs(size, 1)

    def kl_after(step: float) -> th.Tensor:
        return family.kl_divergence(z, family_and_z(sb3s(make(x + step * direction)))[1])

    step = 1e-4
    curvature = (kl_after(step) + kl_after(-step)) / step**2
    _, tangent = th.func.jvp(lambda y: family_and_z(sb3s(make(y)))[1], (x,), (direction,))
    product = family.metric(z, tangent)
    quadratic = sum((a * b).reshape(N_STATES, -1).sum(dim=1) for a, b in zip(product, tangent, strict=True))
    assert quadratic.min() > 1e-3
    th.testing.assert_close(curvature, quadratic, rtol=2e-4, atol=1e-6)


def matrix(family: DistributionFamily, z: DistributionParameters, function) -> th.Tensor:
    """
    Write a linear map of tangents as a matrix over all states.

    :param function: a linear map of tangents, as ``metric``
    :return: its matrix over all states
    """
    sizes = [part.numel() for part in z]

    def flat(v: th.Tensor) -> th.Tensor:
        u = tuple(piece.view(part.shape) for piece, part in zip(v.split(sizes), z, strict=True))
        return th.cat([part.flatten() for part in function(z, u)])

    return as_matrix(flat, sum(sizes))


def test_metric_is_symmetric_and_has_a_root(case) -> None:
    size, make = case
    family, z = family_and_z(sb3s(make(outputs(size))))
    metric, root = matrix(family, z, family.metric), matrix(family, z, family.metric_root)
    th.testing.assert_close(metric, metric.t())
    th.testing.assert_close(root @ root.t(), metric, rtol=1e-6, atol=1e-7)


def score_fisher(policy: ActorCriticPolicy, obs: th.Tensor, fisher: Fisher, n_samples: int) -> th.Tensor:
    """Return E[∇log π ∇log πᵀ] over sampled actions, (P, P)."""
    with th.random.fork_rng():
        th.manual_seed(0)
        rows = obs.repeat_interleave(n_samples, dim=0)
        features = policy.mlp_extractor.forward_actor(policy.pi_features_extractor(rows))
        logits = policy.action_net(features)
        distribution = policy.action_dist.proba_distribution(logits)
        actions = distribution.sample().detach()
        on_outputs = th.autograd.grad(distribution.log_prob(actions).sum(), logits)[0]
    outputs_fisher = th.einsum("ski,skj->sij", *(2 * [on_outputs.view(len(obs), n_samples, -1)])) / n_samples

    def outputs_of(x: th.Tensor) -> th.Tensor:
        return policy.action_net(policy.mlp_extractor.forward_actor(policy.pi_features_extractor(x)))

    total = th.zeros(len(fisher.parameters), len(fisher.parameters), dtype=th.float64)
    for row, middle in zip(obs, outputs_fisher, strict=True):
        out = outputs_of(row.unsqueeze(0))[0]
        jacobian = th.stack(
            [
                fisher.parameters.flatten_gradients(
                    th.autograd.grad(o, fisher.parameters.tensors, retain_graph=True, allow_unused=True)
                )
                for o in out
            ]
        )
        total += jacobian.t() @ middle @ jacobian
    return total / len(obs)


@pytest.mark.parametrize("name", ["Beta", "Independent(Beta)", "Dirichlet", "Gamma", "Laplace", "Exponential"])
def test_fisher_is_the_definition_by_the_score(name) -> None:
    """The expectation over actions is that of many samples, to the precision of these."""
    size, make = KNOWN_TO_TORCH[name]
    policy = own_policy(make, size, th.float64)
    obs = make_observations(policy, N_STATES)
    linearization = linearize(policy, obs)
    fisher = Fisher(Linearizations(lambda _: linearization, [None]))
    exact = as_matrix(fisher.__matmul__, len(fisher.parameters))
    sampled = score_fisher(policy, obs, fisher, 50_000)
    assert float((exact - sampled).norm() / exact.norm()) < 0.04


def test_a_list_of_different_families_is_their_product() -> None:
    x, y = outputs(7, 0), outputs(7, 1)

    def make(x: th.Tensor) -> list[td.Distribution]:
        return [
            td.Categorical(logits=x[:, :3]),
            td.Normal(x[:, 3:5], positive(x[:, 5:])),
            td.Bernoulli(logits=x[:, :2]),
        ]

    (family, old), (_, new) = family_and_z(sb3s(make(x))), family_and_z(sb3s(make(y)))
    expected = sum(kl_divergence(p, q).reshape(N_STATES, -1).sum(1) for p, q in zip(make(x), make(y), strict=True))
    th.testing.assert_close(family.kl_divergence(old, new), expected)
    metric, root = matrix(family, old, family.metric), matrix(family, old, family.metric_root)
    th.testing.assert_close(root @ root.t(), metric)


class Kumaraswamy(td.Kumaraswamy):
    """A distribution that torch has no KL for."""


class ByOneSample(DistributionFamily[td.Kumaraswamy]):
    """Not KL, but something with its properties: half the squared distance of the parameters."""

    def z_of(self, distribution: td.Kumaraswamy) -> DistributionParameters:
        return distribution.concentration1, distribution.concentration0

    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        return 0.5 * sum((a - b).square().sum(dim=1) for a, b in zip(old, new, strict=True))


def kumaraswamy(x: th.Tensor) -> Kumaraswamy:
    return Kumaraswamy(*positive(x).chunk(2, dim=1))


def test_a_family_can_be_registered() -> None:
    policy = own_policy(kumaraswamy, 4)
    with pytest.raises(UserError, match=r"Kumaraswamy.*register_family"):
        check_family(policy)
    register_family(Kumaraswamy, lambda _: ByOneSample())
    check_family(policy)
    family, z = family_and_z(sb3s(kumaraswamy(outputs(4))))
    u = (outputs(2, 1), outputs(2, 2))
    # The metric of such a distance is the identity.
    for function in (family.metric, family.metric_root):
        assert all(map(th.allclose, function(z, u), u))


@pytest.mark.parametrize(("kind", "make"), [("Beta", GaussianFamily), (td.Beta, None), (int, GaussianFamily)])
def test_what_is_no_family_is_not_registered(kind, make) -> None:
    with pytest.raises(UserError, match="must be"):
        register_family(kind, make)


class Bent(td.Distribution):
    """A distribution of a user's, with a rule for KL that has a kink."""

    arg_constraints = {"loc": td.constraints.real}  # noqa: RUF012

    def __init__(self, loc: th.Tensor, validate_args: bool | None = None) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=validate_args)


@register_kl(Bent, Bent)
def _distance(p: Bent, q: Bent) -> th.Tensor:
    return (p.loc - q.loc).abs()


class Unmade(td.Distribution):
    """A distribution of a user's that does not keep what it was made from."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, secret: th.Tensor) -> None:
        super().__init__(secret.shape, validate_args=False)


def learned_bijection(x: th.Tensor) -> td.Distribution:
    return td.TransformedDistribution(td.Normal(x[:, :2], 1.0), [td.AffineTransform(x[:, :2], 2.0)])


REFUSED = {
    "no rule for KL": (lambda x: td.VonMises(x[:, :2], positive(x[:, 2:])), "no rule for the KL.*VonMises"),
    "a mixture": (
        lambda x: td.MixtureSameFamily(td.Categorical(logits=x), td.Normal(x, 1.0)),
        "MixtureSameFamily",
    ),
    "a support that moves": (lambda x: td.Uniform(x[:, :2] - 9.0, x[:, 2:] + 9.0), "Uniform"),
    "KL without a second derivative": (lambda x: Bent(x[:, :2]), "Bent.*does not curve"),
    "parameters that cannot be read": (lambda x: Unmade(x), "Unmade.*'secret'"),
    "a bijection that is learned": (learned_bijection, "TransformedDistribution whose transform"),
    "Weibull, a bijection that is learned": (lambda x: td.Weibull(positive(x[:, :2]), positive(x[:, 2:])), "Weibull"),
    "no axis of states": (lambda x: td.Normal(x.mean(), 1.0), r"Normal of batch shape \(\)"),
    "another axis first": (lambda x: td.Normal(x.t(), 1.0), "one row for each state"),
    "not torch's": (lambda x: "Gaussian", "OwnActions over str"),
    "no distribution at all": (lambda x: [], "OwnActions over list"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_family_that_cannot_be_told_is_refused(name) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        check_family(own_policy(make, 4))


def test_families_that_can_be_told_are_not_refused(case) -> None:
    size, make = case
    policy = own_policy(make, size)
    state = th.get_rng_state()
    check_family(policy)
    assert th.equal(th.get_rng_state(), state)
    assert policy.training


def policy_of(policy_class: type[ActorCriticPolicy], action_space: spaces.Space) -> ActorCriticPolicy:
    return policy_class(spaces.Box(-1.0, 1.0, (3,)), action_space, lambda _: 1e-3)


def test_policies_of_sb3_and_sb3_contrib_are_not_refused() -> None:
    """A recurrent policy takes more than observations: only a rollout can tell."""
    for action_space in (spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([3, 2])):
        check_family(policy_of(ActorCriticPolicy, action_space))
        check_family(policy_of(RecurrentActorCriticPolicy, action_space))
    for action_space in (spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)):
        check_family(policy_of(MaskableActorCriticPolicy, action_space))


def test_checking_initialises_lazy_layers_of_actor_and_critic() -> None:
    policy = policy_of(ActorCriticPolicy, spaces.Discrete(3))
    policy.mlp_extractor.policy_net = nn.Sequential(nn.LazyLinear(64), nn.Tanh())
    policy.mlp_extractor.value_net = nn.Sequential(nn.LazyLinear(64), nn.Tanh())
    check_family(policy)
    assert not any(map(nn.parameter.is_lazy, policy.parameters()))


def test_categoricals_of_several_dimensions_have_their_choices_in_the_last() -> None:
    family, (logits,) = family_and_z(sb3s(td.Categorical(logits=outputs(6).view(-1, 2, 3))))
    assert isinstance(family, CategoricalFamily)
    assert family.sizes == [3, 3]
    assert logits.shape == (N_STATES, 6)


@pytest.mark.parametrize("masked", [[2], [0, 1], [0, 1, 2]])
def test_masked_actions_are_categoricals(masked) -> None:
    """Those that are left count as if there were no others; masked logits leave KL finite, also if nothing is left."""
    mask = np.array([[i not in masked for i in range(3)]])
    distributions = []
    for logits in ([0.0, 1.0, 2.0], [0.5, 0.0, -3.0]):
        distribution = MaskableCategoricalDistribution(3).proba_distribution(th.tensor([logits]))
        distribution.apply_masking(mask)
        distributions.append(distribution)
    (family, old), (_, new) = map(family_and_z, distributions)
    kept = [[x for i, x in enumerate(logits) if i not in masked] for logits in ([0.0, 1.0, 2.0], [0.5, 0.0, -3.0])]
    pairs = [td.Categorical(logits=th.tensor([logits or [0.0]], dtype=th.float64)) for logits in kept]
    th.testing.assert_close(family.kl_divergence(old, new), kl_divergence(*pairs))
    assert len(masked) == 3 or family.metric(old, (th.ones(1, 3),))[0].abs().max() < 1e-6


def test_masked_sub_actions_are_found_under_their_own_name() -> None:
    made = []
    for seed in (0, 1):
        distribution = MaskableMultiCategoricalDistribution([2, 3]).proba_distribution(outputs(5, seed))
        distribution.apply_masking(np.tile([True, True, True, False, True], (N_STATES, 1)))
        made.append(distribution)
    (family, old), (_, new) = map(family_and_z, made)
    kl = family.kl_divergence(old, new)
    expected = sum(kl_divergence(p, q) for p, q in zip(made[0].distributions, made[1].distributions, strict=True))
    th.testing.assert_close(kl, expected)
    assert kl.isfinite().all()


@pytest.mark.parametrize("logit", [-1e8, -math.inf])
def test_bits_that_are_masked_leave_kl_finite(logit) -> None:
    old, new = th.tensor([[logit, 0.5, -logit]]), th.tensor([[logit, 0.0, -logit]])
    family, z_old = family_and_z(sb3s(td.Bernoulli(logits=old)))
    _, z_new = family_and_z(sb3s(td.Bernoulli(logits=new)))
    expected = kl_divergence(*(td.Bernoulli(logits=x[:, 1].double()) for x in (old, new)))
    th.testing.assert_close(family.kl_divergence(z_old, z_new), expected)


@pytest.mark.parametrize("name", ["Beta", "Dirichlet", "MultivariateNormal"])
def test_preconditioner_of_such_a_policy_is_positive_definite(name) -> None:
    size, make = KNOWN_TO_TORCH[name]
    policy = own_policy(make, size, th.float64)
    obs = make_observations(policy, N_STATES)
    linearization = linearize(policy, obs)
    inverse = as_matrix(kronecker_preconditioner(linearization, 0.1), len(linearization.parameters))
    values = th.linalg.eigvalsh(inverse)
    assert 0.0 < values.min() < values.max() <= 10.0 + 1e-6
