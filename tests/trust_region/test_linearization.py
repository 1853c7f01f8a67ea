"""
Jacobian-vector products against torch.func.
"""

from collections.abc import Callable

import pytest
import torch as th
from sample_policies import (
    ACTIONS,
    PLAIN,
    POLICIES,
    cnn_policy,
    distribution_of,
    linearize,
    linearize_mlp,
    make_observations,
    make_policy,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.graph_linearization import parameters_behind
from sb3_trpo.trust_region.linearization import LayerPass, Linearization, Linearizations

N_STATES = 4


def z_of(policy: ActorCriticPolicy, obs: th.Tensor, parameters: FlatParameters) -> Callable[[th.Tensor], th.Tensor]:
    """
    Make the map from θ to z.

    :param policy: a policy
    :param obs: observations, (N, ...)
    :param parameters: θ
    :return: the map from θ, (P,), to z, as one vector
    """
    names = {id(parameter): name for name, parameter in policy.named_parameters()}

    class Evaluation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self) -> th.Tensor:
            distribution = distribution_of(policy, obs)
            _, z = family_and_z(distribution)
            return th.cat([part.flatten() for part in z])

    evaluation = Evaluation()

    def evaluate(theta: th.Tensor) -> th.Tensor:
        pieces = zip(parameters, parameters.split(theta), strict=True)
        return th.func.functional_call(evaluation, {"policy." + names[id(p)]: piece for p, piece in pieces}, ())

    return evaluate


def random_cotangents(linearization: Linearization, generator: th.Generator) -> tuple[th.Tensor, ...]:
    """
    Draw random cotangents in the range of the metric.

    :param linearization: at z
    :param generator: of random numbers
    :return: R ε, in the range of the metric, shaped as z
    """
    noise = (th.randn(part.shape, generator=generator, dtype=th.float64) for part in linearization.z)
    return linearization.family.metric_root(linearization.z, tuple(noise))


CASES = [pytest.param(linearize, POLICIES[name], id=f"graph-{name}") for name in POLICIES] + [
    pytest.param(linearize_mlp, POLICIES[name], id=f"mlp-{name}") for name in PLAIN
]


@pytest.mark.parametrize(("linearization_of", "make"), CASES)
def test_products_with_the_jacobian(linearization_of, make) -> None:
    policy = make()
    obs = make_observations(policy, N_STATES)
    linearization = linearization_of(policy, obs)
    parameters = linearization.parameters
    evaluate, theta = z_of(policy, obs, parameters), parameters.vector()
    assert len(linearization) == N_STATES
    th.testing.assert_close(th.cat([part.flatten() for part in linearization.z]), evaluate(theta).detach())

    jacobian = th.func.jacrev(evaluate)(theta).detach()
    generator = th.Generator().manual_seed(0)
    for _ in range(2):
        v = th.randn(len(parameters), generator=generator, dtype=th.float64)
        tangents = linearization.jvp(v)
        assert [part.shape for part in tangents] == [part.shape for part in linearization.z]
        pieces = zip((jacobian @ v).split([part.numel() for part in tangents]), tangents, strict=True)
        expected = tuple(piece.view_as(part) for piece, part in pieces)
        # A shift of all logits changes nothing, so that only what the metric makes of the tangents counts.
        metric = linearization.family.metric
        th.testing.assert_close(
            metric(linearization.z, tangents), metric(linearization.z, expected), rtol=1e-9, atol=1e-11
        )
        u = random_cotangents(linearization, generator)
        flat_u = th.cat([part.flatten() for part in u])
        th.testing.assert_close(linearization.vjp(u), jacobian.t() @ flat_u, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("linearization_of", "make"), CASES)
def test_pieces_are_those_of_the_whole_product(linearization_of, make) -> None:
    policy = make()
    linearization = linearization_of(policy, make_observations(policy, N_STATES))
    u = random_cotangents(linearization, th.Generator().manual_seed(0))
    whole = linearization.parameters.split(linearization.vjp(u))
    last = len(whole) - 1
    for positions in ([0], [last], [last, 0], list(range(len(whole)))):
        pieces = linearization.vjp_pieces(u, positions)
        assert len(pieces) == len(positions)
        for i, piece in zip(positions, pieces, strict=True):
            th.testing.assert_close(piece, whole[i], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("linearization_of", "make"), CASES)
def test_results_belong_to_the_caller(linearization_of, make) -> None:
    """They are detached, and later products don't overwrite them."""
    policy = make()
    linearization = linearization_of(policy, make_observations(policy, N_STATES))
    v = th.ones(len(linearization.parameters), dtype=th.float64)
    u = linearization.jvp(v)
    product = linearization.vjp(u)
    before = product.clone()
    linearization.vjp(linearization.jvp(2.0 * v))
    assert th.equal(product, before)
    assert not product.requires_grad
    assert not any(part.requires_grad for part in (*u, *linearization.z))


@pytest.mark.parametrize(("linearization_of", "make"), CASES)
def test_gradient_of_an_objective(linearization_of, make) -> None:
    policy = make()
    obs = make_observations(policy, N_STATES)
    linearization = linearization_of(policy, obs)
    actions = distribution_of(policy, obs).mode().detach()
    gradient = linearization.gradient((linearization.distribution.log_prob(actions) * th.arange(1.0, 5.0)).sum())
    expected = th.autograd.grad(
        (distribution_of(policy, obs).log_prob(actions) * th.arange(1.0, 5.0)).sum(),
        linearization.parameters.tensors,
        allow_unused=True,
    )
    th.testing.assert_close(gradient, linearization.parameters.flatten_gradients(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("linearization_of", "make"), CASES)
def test_keeps_its_distribution_when_the_policy_goes_on(linearization_of, make) -> None:
    """SB3's policies set one distribution object anew at each evaluation."""
    policy = make()
    obs = make_observations(policy, N_STATES)
    linearization = linearization_of(policy, obs)
    actions = linearization.distribution.mode()
    before = linearization.distribution.log_prob(actions)
    distribution_of(policy, 2.0 * obs)
    assert th.equal(linearization.distribution.log_prob(actions), before)


def test_actor_parameters_are_those_that_the_distribution_depends_on() -> None:
    """Names mean nothing: a layer called "value" may be the actor's."""
    policy = make_policy()
    policy.value_of_the_actor = nn.Linear(5, 5).double()
    policy.action_net = nn.Sequential(policy.value_of_the_actor, policy.action_net)
    parameters = linearize(policy, make_observations(policy, N_STATES)).parameters
    expected = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]
    assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in expected}
    order = [id(parameter) for parameter in policy.parameters()]
    assert sorted(order.index(id(p)) for p in parameters) == [order.index(id(p)) for p in parameters]


def test_without_learned_features_the_noise_does_not_reach_the_network() -> None:
    policy = POLICIES["gSDE"]()
    linearization = linearize(policy, make_observations(policy, N_STATES))
    on_std = (th.zeros_like(linearization.z[0]), th.ones_like(linearization.z[1]))
    gradient = dict(
        zip(linearization.parameters, linearization.parameters.split(linearization.vjp(on_std)), strict=True)
    )
    assert gradient[policy.log_std].abs().min() > 0
    assert all((part == 0).all() for parameter, part in gradient.items() if parameter is not policy.log_std)


def test_parameters_behind() -> None:
    a, b, c = (nn.Parameter(th.ones(2)) for _ in range(3))
    frozen = nn.Parameter(th.ones(2), requires_grad=False)
    deep = a
    for _ in range(5000):
        deep = deep * 1.0
    assert parameters_behind([deep + frozen, (b * b.detach()).sum()], [frozen, c, b, a]) == [b, a]
    assert parameters_behind([c.detach()], [a, b, c]) == []


def layer_passes(linearization: Linearization, u: tuple[th.Tensor, ...]) -> dict[int, LayerPass]:
    return {id(layer.weight): layer for layer in linearization.layer_passes(u)}


@pytest.mark.parametrize("name", PLAIN)
def test_both_find_the_same_layers(name) -> None:
    policy = POLICIES[name]()
    obs = make_observations(policy, N_STATES)
    by_graph, by_mlp = linearize(policy, obs), linearize_mlp(policy, obs)
    u = random_cotangents(by_graph, th.Generator().manual_seed(0))
    expected, layers = layer_passes(by_graph, u), layer_passes(by_mlp, u)
    assert expected.keys() == layers.keys()
    assert len(layers) == 3
    for key, layer in layers.items():
        th.testing.assert_close(layer.inputs, expected[key].inputs)
        th.testing.assert_close(layer.cotangents, expected[key].cotangents)
        assert layer.bias is expected[key].bias
        assert layer.weight is expected[key].weight


def test_every_so_manieth_state() -> None:
    policy = POLICIES["DiagGaussian"]()
    linearization = linearize_mlp(policy, make_observations(policy, N_STATES))
    u = random_cotangents(linearization, th.Generator().manual_seed(0))
    before = linearization.vjp(u)
    layers = zip(linearization.layer_passes(u), linearization.layer_passes(u, every=3), strict=True)
    for complete, thinned in layers:
        th.testing.assert_close(thinned.inputs, complete.inputs[::3])
        th.testing.assert_close(thinned.cotangents, complete.cotangents[::3])
    assert th.equal(linearization.vjp(u), before)


@pytest.mark.parametrize(("linearization_of", "name"), [(linearize, "DiagGaussian"), (linearize_mlp, "Categorical")])
def test_inputs_and_cotangents_make_up_the_gradient(linearization_of, name) -> None:
    policy = POLICIES[name]()
    linearization = linearization_of(policy, make_observations(policy, N_STATES))
    u = random_cotangents(linearization, th.Generator().manual_seed(0))
    pieces = linearization.parameters.split(linearization.vjp(u))
    gradient = {id(parameter): piece for parameter, piece in zip(linearization.parameters, pieces, strict=True)}
    for layer in linearization.layer_passes(u):
        th.testing.assert_close(layer.cotangents.t() @ layer.inputs, gradient[id(layer.weight)])
        th.testing.assert_close(layer.cotangents.sum(dim=0), gradient[id(layer.bias)])


class Positions(nn.Module):
    """Applies a layer to each feature alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return nn.functional.relu(self.layer(x.unsqueeze(2)), inplace=True).sum(dim=2)


def test_activations_in_place_change_nothing() -> None:
    """
    They overwrite what left the layer; the gradient that counts is that before the activation. Where the output is a
    view, autograd has no such gradient afterwards, and the layer has no factors.
    """
    policy = make_policy(activation_fn=lambda: nn.ReLU(inplace=True))
    positions = Positions()
    append(policy, positions)
    linearization = linearize(policy, make_observations(policy, N_STATES))
    u = random_cotangents(linearization, th.Generator().manual_seed(0))
    pieces = linearization.parameters.split(linearization.vjp(u))
    gradient = {id(parameter): piece for parameter, piece in zip(linearization.parameters, pieces, strict=True)}
    layers = list(linearization.layer_passes(u))
    assert len(layers) == 3
    assert id(positions.layer.weight) not in {id(layer.weight) for layer in layers}
    for layer in layers:
        th.testing.assert_close(layer.cotangents.t() @ layer.inputs, gradient[id(layer.weight)])


def test_layers_of_images() -> None:
    policy = cnn_policy()
    obs = make_observations(policy, 2)
    linearization = linearize(policy, obs)
    layers = list(linearization.layer_passes(tuple(th.ones_like(part) for part in linearization.z)))
    convolutions = [layer for layer in layers if layer.convolution is not None]
    assert [tuple(layer.weight.shape) for layer in convolutions] == [(3, 2, 3, 3), (2, 3, 2, 3)]
    assert [layer.bias is None for layer in convolutions] == [False, True]
    assert th.equal(convolutions[0].inputs, obs)
    assert len(layers) == 2 + 1 + 3


def append(policy: ActorCriticPolicy, *modules: nn.Module) -> list[nn.Module]:
    for module in modules:
        policy.mlp_extractor.policy_net.append(module.double())
    return list(policy.mlp_extractor.policy_net)


class ByKeyword(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(input=x)


def test_which_layers_have_factors() -> None:
    policy = make_policy(net_arch=[5, 5])
    first, _, second, *_ = policy.mlp_extractor.policy_net
    shares_weight, shares_bias, twice, by_keyword = (nn.Linear(5, 5) for _ in range(4))
    no_bias, frozen_bias = nn.Linear(5, 5, bias=False), nn.Linear(5, 5)
    append(policy, shares_weight, shares_bias, twice, nn.Tanh(), twice, ByKeyword(by_keyword), no_bias, frozen_bias)
    shares_weight.weight = second.weight
    shares_bias.bias = no_bias_owner_bias = nn.Parameter(th.zeros(5).double())
    frozen_bias.bias.requires_grad_(False)
    first.weight.requires_grad_(False)
    linearization = linearize(policy, make_observations(policy, N_STATES))
    layers = layer_passes(linearization, tuple(th.ones_like(part) for part in linearization.z))
    expected = [shares_bias, by_keyword, no_bias, frozen_bias, policy.action_net]
    assert layers.keys() == {id(layer.weight) for layer in expected}
    assert layers[id(shares_bias.weight)].bias is no_bias_owner_bias
    assert layers[id(no_bias.weight)].bias is None
    assert layers[id(frozen_bias.weight)].bias is None
    # A bias in two layers: neither has a block of its own.
    by_keyword.bias = shares_bias.bias
    linearization = linearize(policy, make_observations(policy, N_STATES))
    layers = layer_passes(linearization, tuple(th.ones_like(part) for part in linearization.z))
    assert layers.keys() == {id(layer.weight) for layer in (no_bias, frozen_bias, policy.action_net)}


def test_leaves_no_hooks_behind() -> None:
    policy = make_policy()
    obs = make_observations(policy, N_STATES)
    linearize(policy, obs)
    policy.action_net.weight = nn.Parameter(th.zeros(2, 7).double())
    with pytest.raises(RuntimeError):
        linearize(policy, obs)
    assert not any(module._forward_hooks for module in policy.modules())


class Sequences(nn.Module):
    """Takes the features for a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(1, 5, batch_first=True)

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.used_cudnn = th.backends.cudnn.enabled
        return self.cell(x.unsqueeze(2))[0][:, -1]


def test_recurrent_layers_go_without_cudnn() -> None:
    """Its derivatives can't be differentiated again. Whether it is allowed can be seen without a GPU."""
    policy, sequences = make_policy(), Sequences()
    append(policy, sequences)
    obs = make_observations(policy, N_STATES)
    linearize(policy, obs)
    assert not sequences.used_cudnn
    distribution_of(policy, obs)
    assert sequences.used_cudnn


def test_uses_no_random_numbers() -> None:
    for linearization_of in (linearize, linearize_mlp):
        policy = make_policy()
        state = th.get_rng_state()
        linearization = linearization_of(policy, make_observations(policy, N_STATES))
        linearization.vjp(linearization.jvp(linearization.parameters.vector()))
        assert th.equal(th.get_rng_state(), state)


def test_one_chunk_is_kept_and_several_are_not() -> None:
    policy = make_policy(ACTIONS["Discrete"])
    obs = make_observations(policy, 6)
    whole = Linearizations(lambda chunk: linearize(policy, chunk), [obs])
    assert whole.first() is whole.first()
    assert list(whole) == [whole.first()]
    chunked = Linearizations(lambda chunk: linearize(policy, chunk), obs.split(4))
    assert [len(part) for part in chunked] == [4, 2]
    assert chunked.first() is not chunked.first()
    assert len(chunked.first()) == 4
