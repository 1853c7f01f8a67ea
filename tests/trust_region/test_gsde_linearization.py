"""
State-dependent noise written out, against autograd in double precision.
"""

import pytest
import torch as th
from sample_policies import POLICIES, linearize, make_observations, make_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.networks.plain_policy import plain_actor
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.graph_linearization import GraphLinearization
from sb3_trpo.trust_region.gsde_linearization import GsdeLinearization

GSDE = {
    **{name: make for name, make in POLICIES.items() if name.startswith("gSDE")},
    "no hidden layer": lambda: make_policy(use_sde=True, net_arch=[]),
    "one hidden layer, GELU": lambda: make_policy(use_sde=True, net_arch=[4], activation_fn=nn.GELU),
}


def both(policy: ActorCriticPolicy, learns_features: bool) -> tuple[GsdeLinearization, GraphLinearization]:
    """
    Linearise a policy with gSDE, written out and by autograd.

    :param policy: with gSDE
    :param learns_features: whether autograd follows the features to the noise
    :return: its linearisation, written out and by autograd
    """
    mlp, obs = plain_actor(policy), make_observations(policy, 9)
    assert mlp is not None
    parameters = FlatParameters([*mlp.parameters, policy.log_std])
    written_out = GsdeLinearization(mlp, obs, policy.action_dist, parameters, policy.log_std)
    before, policy.action_dist.learn_features = policy.action_dist.learn_features, learns_features
    by_autograd = linearize(policy, obs, parameters)
    policy.action_dist.learn_features = before
    return written_out, by_autograd


def draw(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


@pytest.mark.parametrize("name", GSDE)
def test_products_with_the_whole_jacobian(name) -> None:
    written_out, by_autograd = both(GSDE[name](), learns_features=True)
    for z, expected in zip(written_out.z, by_autograd.z, strict=True):
        th.testing.assert_close(z, expected)
    v = draw(len(written_out.parameters))
    for tangent, expected in zip(written_out.jvp(v), by_autograd.jvp(v), strict=True):
        th.testing.assert_close(tangent, expected, rtol=1e-9, atol=1e-11)
    u = tuple(draw(*z.shape, seed=i) for i, z in enumerate(written_out.z))
    th.testing.assert_close(written_out.vjp(u), by_autograd.vjp(u), rtol=1e-9, atol=1e-11)
    positions = [0, len(written_out.parameters.tensors) - 1]
    for chosen in (positions, positions[1:]):
        pieces = zip(written_out.vjp_pieces(u, chosen), by_autograd.vjp_pieces(u, chosen), strict=True)
        for piece, expected in pieces:
            th.testing.assert_close(piece, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", GSDE)
def test_the_gradient_follows_features_only_where_they_are_to_be_learned(name) -> None:
    policy = GSDE[name]()
    written_out, by_autograd = both(policy, policy.action_dist.learn_features)
    gradients = []
    for linearization in (written_out, by_autograd):
        normal = linearization.distribution.distribution
        gradients.append(linearization.gradient((normal.scale.log() * draw(9, 2) + normal.loc.square()).sum()))
    th.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", GSDE)
@pytest.mark.parametrize("every", [1, 2])
def test_what_goes_through_the_layers(name, every) -> None:
    written_out, by_autograd = both(GSDE[name](), learns_features=True)
    u = tuple(draw(*z.shape, seed=i) for i, z in enumerate(written_out.z))
    expected = {id(layer.weight): layer for layer in by_autograd.layer_passes(u)}
    layers = list(written_out.layer_passes(u, every))
    assert len(layers) == len(expected)
    for layer in layers:
        th.testing.assert_close(layer.inputs, expected[id(layer.weight)].inputs[::every])
        cotangents = expected[id(layer.weight)].cotangents[::every]
        th.testing.assert_close(layer.cotangents, cotangents, rtol=1e-9, atol=1e-11)
