"""
Each policy gets the linearisation that fits it, and both say the same about z(θ).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch as th
from gymnasium import spaces
from sample_policies import (
    ACTIONS,
    OBSERVATIONS,
    PLAIN,
    POLICIES,
    as_matrix,
    cnn_policy,
    distribution_of,
    explicit_fisher,
    make_observations,
    make_policy,
    shake,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.policies.policies import MultiInputPolicy
from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.graph_linearization import GraphLinearization
from sb3_trpo.trust_region.gsde_linearization import GsdeLinearization
from sb3_trpo.trust_region.kl import GaussianFamily
from sb3_trpo.trust_region.linearization import Linearization, Linearizations
from sb3_trpo.trust_region.mlp_linearization import MlpLinearization
from sb3_trpo.update.actor import Actor


class Samples(NamedTuple):
    observations: Any


def make_samples(policy: ActorCriticPolicy, n: int = 16) -> Samples:
    shape = (n, *policy.observation_space.shape)
    return Samples(th.randn(shape, generator=th.Generator().manual_seed(0)))


def actor_of(policy: ActorCriticPolicy, is_builtin: bool = True) -> Actor:
    """
    Make a policy's actor.

    :param policy: a policy
    :param is_builtin: whether the actor may take it for granted that the policy is asked for nothing special
    :return: its actor
    """
    return Actor(policy, lambda samples: policy.get_distribution(samples.observations), is_builtin)


def single(name: str) -> ActorCriticPolicy:
    """
    Make a policy in single precision.

    :param name: of a policy
    :return: in float32, as SB3 has its observations
    """
    return POLICIES[name]().float()


GSDE = [name for name in POLICIES if name.startswith("gSDE")]


@pytest.mark.parametrize("name", list(POLICIES))
def test_plain_policies_are_written_out_others_go_through_autograd(name) -> None:
    policy = single(name)
    kind = MlpLinearization if name in PLAIN else GsdeLinearization if name in GSDE else GraphLinearization
    assert type(actor_of(policy).linearize(make_samples(policy))) is kind


@pytest.mark.parametrize(
    "make",
    [
        lambda: cnn_policy(dtype=th.float32),
        lambda: make_policy(activation_fn=nn.PReLU, dtype=th.float32),
    ],
)
def test_other_networks_go_through_autograd(make) -> None:
    policy = make()
    assert type(actor_of(policy).linearize(make_samples(policy))) is GraphLinearization


def test_a_distribution_of_ones_own_goes_through_autograd() -> None:
    policy = single("Categorical")
    assert type(actor_of(policy, is_builtin=False).linearize(make_samples(policy))) is GraphLinearization


@pytest.mark.parametrize("freeze", ["log_std", "action_net.bias", "mlp_extractor.policy_net.0.weight"])
def test_frozen_parameters_are_left_out(freeze) -> None:
    policy = make_policy(dtype=th.float32)
    policy.get_parameter(freeze).requires_grad_(False)
    linearization = actor_of(policy).linearize(make_samples(policy))
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    actors = {name for name in names.values() if "value" not in name}
    assert {names[id(parameter)] for parameter in linearization.parameters} == actors - {freeze}


def by_parameter(linearization: Linearization, vector: th.Tensor) -> dict[int, th.Tensor]:
    """
    Split a vector by parameters.

    :param linearization: whose parameters may be in any order
    :param vector: (P,)
    :return: its pieces, by the parameters' ids
    """
    parameters = linearization.parameters
    return dict(zip(map(id, parameters), parameters.split(vector), strict=True))


def assert_same_products(actors: Sequence[Actor], samples: Any) -> None:
    """
    Check that two actors have the same products.

    :param actors: two of the same policy
    :param samples: of N states
    """
    fishers = [Fisher(Linearizations(actor.linearize_for_fisher, [samples])) for actor in actors]
    first, second = (fisher.linearizations.first() for fisher in fishers)
    v = th.randn(len(first.parameters), generator=th.Generator().manual_seed(1))
    pieces = by_parameter(first, v)
    assert pieces.keys() == by_parameter(second, v).keys()
    reordered = th.cat([pieces[id(parameter)].flatten() for parameter in second.parameters])
    products = [fishers[0] @ v, fishers[1] @ reordered]
    assert_same_pieces([first, second], products)

    linearizations = [actor.linearize(samples) for actor in actors]
    gradients = []
    for linearization in linearizations:
        distribution = linearization.distribution
        with th.no_grad():
            actions = distribution.mode()
            if isinstance(linearization.family, GaussianFamily):
                actions = 0.9 * actions + 0.05
        weights = th.linspace(-1.0, 2.0, len(linearization))
        objective = (weights * distribution.log_prob(actions)).sum()
        gradients.append(linearization.gradient(objective))
    assert_same_pieces(linearizations, gradients)


def assert_same_pieces(linearizations: Sequence[Linearization], vectors: Sequence[th.Tensor]) -> None:
    first, second = map(by_parameter, linearizations, vectors)
    for key, piece in first.items():
        th.testing.assert_close(piece, second[key], rtol=1e-3, atol=1e-5 * float(vectors[0].abs().max()))


@pytest.mark.parametrize("name", [*PLAIN, *GSDE])
def test_both_ways_agree(name) -> None:
    policy = single(name)
    assert_same_products([actor_of(policy), actor_of(policy, is_builtin=False)], make_samples(policy, 64))


@pytest.mark.parametrize("net_arch", [[], [4]])
def test_both_ways_agree_for_gsde_on_shallow_networks(net_arch) -> None:
    policy = make_policy(use_sde=True, net_arch=net_arch, dtype=th.float32)
    assert_same_products([actor_of(policy), actor_of(policy, is_builtin=False)], make_samples(policy, 64))


@pytest.mark.parametrize("activation_fn", [nn.ELU, nn.SiLU, nn.GELU, nn.LeakyReLU])
@pytest.mark.parametrize("use_sde", [False, True])
def test_both_ways_agree_for_other_activations(activation_fn, use_sde) -> None:
    policy = make_policy(use_sde=use_sde, activation_fn=activation_fn, dtype=th.float32)
    actors = [actor_of(policy), actor_of(policy, is_builtin=False)]
    assert isinstance(actors[0].linearize(make_samples(policy)), MlpLinearization)
    assert_same_products(actors, make_samples(policy, 64))


def test_both_ways_agree_for_dictionaries() -> None:
    space = spaces.Dict({"x": OBSERVATIONS, "y": spaces.Discrete(3)})
    with th.random.fork_rng():
        policy = shake(MultiInputPolicy(space, ACTIONS["Box"], lambda _: 1e-3))
    samples = Samples({"x": make_observations(policy_of_x := make_policy(), 64).float(), "y": th.arange(64) % 3})
    assert policy_of_x.observation_space == space["x"]
    actors = [actor_of(policy), actor_of(policy, is_builtin=False)]
    assert isinstance(actors[0].linearize(samples), MlpLinearization)
    assert_same_products(actors, samples)


class MaskedSamples(NamedTuple):
    observations: th.Tensor
    action_masks: th.Tensor


@pytest.mark.parametrize(("kind", "never"), [("Discrete", 2), ("MultiDiscrete", 1), ("MultiBinary", 3)])
def test_both_ways_agree_for_masked_actions(kind, never) -> None:
    """The network written out, its outputs masked; the logit of an action that is never allowed gets no gradient."""
    with th.random.fork_rng():
        policy = shake(MaskableActorCriticPolicy(OBSERVATIONS, ACTIONS[kind], lambda _: 1e-3, net_arch=[6, 5]))
    masks = th.ones(64, policy.action_net.out_features, dtype=th.bool)
    masks[:, never] = False
    masks[::5, 0] = False
    samples = MaskedSamples(th.randn(64, 3, generator=th.Generator().manual_seed(1)), masks)

    def distribution_of(samples: MaskedSamples) -> Any:
        return policy.get_distribution(samples.observations, samples.action_masks)

    def distribution_from(outputs: th.Tensor, samples: MaskedSamples) -> Any:
        distribution = policy.action_dist.proba_distribution(outputs)
        distribution.apply_masking(samples.action_masks)
        return distribution

    actors = [
        Actor(policy, distribution_of, True, distribution_from),
        Actor(policy, distribution_of, False),
    ]
    linearization = actors[0].linearize(samples)
    assert isinstance(linearization, MlpLinearization)
    assert_same_products(actors, samples)
    u = linearization.family.metric(linearization.z, tuple(map(th.randn_like, linearization.z)))
    on_bias = by_parameter(linearization, linearization.vjp(u))[id(policy.action_net.bias)]
    assert on_bias[never] == 0.0
    assert on_bias[0] != 0.0


@pytest.mark.parametrize("name", list(POLICIES))
def test_distribution_is_the_linearizations_bit_for_bit(name) -> None:
    """So that the ratio is 1 and KL is 0 at θ_old."""
    policy = single(name)
    samples, actor = make_samples(policy), actor_of(policy)
    linearization = actor.linearize(samples)
    distribution = actor.distribution(samples)
    _, z = family_and_z(distribution)
    assert all(map(th.equal, z, linearization.z))
    assert not any(part.requires_grad for part in z)


@pytest.mark.parametrize("name", list(POLICIES))
def test_distribution_follows_the_parameters(name) -> None:
    policy = single(name)
    samples, actor = make_samples(policy), actor_of(policy)
    parameters = actor.linearize(samples).parameters
    parameters.write_(0.9 * parameters.vector())
    distribution = actor.distribution(samples)
    expected = policy.get_distribution(samples.observations)
    actions = expected.mode().detach()
    th.testing.assert_close(distribution.log_prob(actions), expected.log_prob(actions), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["DiagGaussian", "gSDE"])
def test_chunks_have_the_same_parameters(name) -> None:
    policy = single(name)
    actor = actor_of(policy)
    first, second = (actor.linearize(make_samples(policy, n)) for n in (4, 7))
    assert first.parameters is second.parameters
    assert (len(first), len(second)) == (4, 7)


def test_observations_are_prepared_as_sb3_does() -> None:
    policy = make_policy(ACTIONS["Discrete"], dtype=th.float32)
    obs = make_samples(policy).observations.double()
    linearization = actor_of(policy).linearize(Samples(obs))
    expected = policy.get_distribution(obs).distribution.logits
    th.testing.assert_close(linearization.z[0], expected, rtol=1e-5, atol=1e-6)


def gsde_fisher(policy: ActorCriticPolicy, obs: th.Tensor, is_whole: bool = True) -> Fisher:
    """
    Compute F of a policy with gSDE.

    :param policy: with gSDE
    :param obs: observations, (N, ...)
    :param is_whole: as the update has it; otherwise as the gradient has it
    :return: F
    """
    actor = Actor(policy, lambda samples: distribution_of(policy, samples.observations), False)
    return Fisher(Linearizations(actor.linearize_for_fisher if is_whole else actor.linearize, [Samples(obs)]))


@pytest.mark.parametrize("name", GSDE)
def test_fisher_of_gsde_is_the_curvature_of_kl(name) -> None:
    """Whatever moves the noise: a step of ε v changes KL by ½ ε² vᵀF v, as measured."""
    policy = POLICIES[name]()
    obs = make_observations(policy, 8)
    whole, cut = gsde_fisher(policy, obs), gsde_fisher(policy, obs, is_whole=False)
    old = whole.linearizations.first()
    v = th.randn(len(whole.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    products = [float(v.dot(fisher @ v)) for fisher in (whole, cut)]
    theta, epsilon = whole.parameters.vector(), 1e-4
    whole.parameters.write_(theta + epsilon * v)
    _, new = family_and_z(distribution_of(policy, obs))
    curvature = 2.0 * float(old.family.kl_divergence(old.z, new).mean()) / epsilon**2
    assert products[0] == pytest.approx(curvature, rel=1e-2)
    # The difference that it makes, unless the gradient sees it all anyway.
    assert (products[1] == pytest.approx(curvature, rel=1e-2)) == policy.action_dist.learn_features


@pytest.mark.parametrize("name", GSDE)
def test_fisher_of_gsde_is_the_definition(name) -> None:
    policy = POLICIES[name]()
    obs = make_observations(policy, 4)
    fisher = gsde_fisher(policy, obs)
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    policy.action_dist.learn_features = True
    expected = explicit_fisher(policy, obs, fisher.parameters.tensors)
    th.testing.assert_close(matrix, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", GSDE)
def test_what_gsde_trains_its_features_for_stays_as_it_was(name) -> None:
    policy = single(name)
    action_dist, actor = policy.action_dist, actor_of(policy, is_builtin=False)
    learn_features = action_dist.learn_features
    assert actor.hides_features != learn_features
    actor.linearize_for_fisher(make_samples(policy))
    assert action_dist.learn_features == learn_features


@pytest.mark.parametrize("name", [*PLAIN, *GSDE])
def test_what_is_written_out_hides_nothing(name) -> None:
    assert not actor_of(single(name)).hides_features
