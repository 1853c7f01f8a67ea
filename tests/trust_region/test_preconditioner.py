"""
The Kronecker-factored preconditioner: exact where the theory says so, and never worse than it has to be.
"""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sample_policies import (
    POLICIES,
    as_matrix,
    cnn_policy,
    linearize,
    linearize_mlp,
    make_observations,
    make_policy,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo.trust_region.conjugate_gradient import Operator, conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kronecker_factor import KroneckerFactor
from sb3_trpo.trust_region.linearization import LayerPass, Linearization, Linearizations
from sb3_trpo.trust_region.preconditioner import PreconditionerError, kronecker_preconditioner
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks

DAMPING = 0.1


def box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,))


def fisher_of(linearization: Linearization) -> Fisher:
    return Fisher(Linearizations(lambda _: linearization, [None]))


def matrix_of(operator: Operator, linearization: Linearization) -> th.Tensor:
    return as_matrix(operator, len(linearization.parameters))


def damped(fisher: Fisher, damping: float) -> Operator:
    return lambda v: (fisher @ v).add_(v, alpha=damping)


def noisy_gradient(linearization: Linearization, seed: int = 0) -> th.Tensor:
    """
    Draw what gradients are like when advantages are noise.

    :param linearization: of N states
    :param seed: of the noise
    :return: Jᵀ R ε / √N, a vector of covariance F: what gradients are like when advantages are noise
    """
    generator = th.Generator().manual_seed(seed)
    noise = tuple(th.randn(part.shape, generator=generator, dtype=part.dtype) for part in linearization.z)
    return linearization.vjp(linearization.family.metric_root(linearization.z, noise)) / len(linearization) ** 0.5


@pytest.mark.parametrize("n_states", [1, 3, 50])
def test_exact_for_a_linear_policy_of_one_action(n_states) -> None:
    """F = E[aaᵀ] / σ² is a Kronecker product, and E[ε²] = 1 has no sampling error."""
    policy = make_policy(box(1), box(6), net_arch=[])
    policy.log_std.requires_grad_(False)
    linearization = linearize(policy, make_observations(policy, n_states))
    solve = kronecker_preconditioner(linearization, DAMPING)
    fisher = fisher_of(linearization)
    identity = th.eye(len(linearization.parameters), dtype=th.float64)
    th.testing.assert_close(matrix_of(lambda v: solve(damped(fisher, DAMPING)(v)), linearization), identity)
    g = th.randn(len(identity), generator=th.Generator().manual_seed(0), dtype=th.float64)
    solution = conjugate_gradient(damped(fisher, DAMPING), g, max_steps=9, residual_tol=1e-8, preconditioner=solve)
    assert solution.iterations == 1


def test_estimate_of_a_linear_policy_of_several_actions_is_unbiased() -> None:
    """The error is that of averages over random signs, 1 / √N."""
    policy = make_policy(box(3), box(6), net_arch=[])
    errors = []
    for n_states in (100, 3000):
        linearization = linearize(policy, make_observations(policy, n_states))
        exact = matrix_of(damped(fisher_of(linearization), DAMPING), linearization)
        weights = slice(-(6 * 3 + 3), None)
        assert [p.shape for p in linearization.parameters] == [(3,), (3, 6), (3,)]
        inverse = matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization)
        product = inverse[weights, weights] @ exact[weights, weights]
        errors.append(float((product - th.eye(len(product))).norm()))
    assert errors[0] < 2.0
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("n_states", [3, 40])
@pytest.mark.parametrize("name", [*POLICIES, "images"])
def test_symmetric_and_positive_definite(name, n_states, damping) -> None:
    """With fewer states than the layers are wide, too; and nowhere beyond 1/λ."""
    policy = cnn_policy() if name == "images" else POLICIES[name]()
    linearization = linearize(policy, make_observations(policy, n_states))
    matrix = matrix_of(kronecker_preconditioner(linearization, damping), linearization)
    th.testing.assert_close(matrix, matrix.t(), rtol=0, atol=1e-10 / damping)
    values = th.linalg.eigvalsh(matrix)
    assert values.min() > 0.0
    assert values.max() <= (1.0 + 1e-9) / damping


def rows_of(layer: LayerPass) -> tuple[th.Tensor, th.Tensor]:
    """
    List the rows that a layer's factors are made of.

    :param layer: what went through it
    :return: inputs, with a 1 for the bias, and cotangents, a row for each position of each state
    """
    inputs, cotangents = layer.inputs, layer.cotangents
    if layer.convolution is not None:
        conv = layer.convolution
        patches = nn.functional.unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        inputs, cotangents = patches.transpose(1, 2), cotangents.flatten(2).transpose(1, 2)
    inputs, cotangents = inputs.reshape(-1, inputs.shape[-1]), cotangents.reshape(-1, cotangents.shape[-1])
    return inputs if layer.bias is None else th.cat([inputs, th.ones(len(inputs), 1)], dim=1), cotangents


def block_of(layer: LayerPass, parameters: FlatParameters) -> list[int]:
    """
    Find a layer's parameters in θ.

    :param layer: with a weight (m, ...) and perhaps a bias
    :param parameters: θ
    :return: where the layer's parameters lie in θ, as a vector: row by row, each with its bias
    """
    places = parameters.split(th.arange(len(parameters)))
    place = {id(parameter): piece for parameter, piece in zip(parameters, places, strict=True)}
    weight = place[id(layer.weight)].flatten(1)
    whole = weight if layer.bias is None else th.cat([weight, place[id(layer.bias)].unsqueeze(1)], dim=1)
    return whole.flatten().tolist()


class Tokens(BaseFeaturesExtractor):
    """The same layer at each of four positions, which may come first or be rows of their own."""

    def __init__(self, observation_space: spaces.Box, order: str = "batch first") -> None:
        super().__init__(observation_space, features_dim=5)
        self.layer = nn.Linear(3, 5)
        self.order = order

    def forward(self, obs: th.Tensor) -> th.Tensor:
        tokens = obs.view(len(obs), 4, 3)
        if self.order == "tokens first":
            return th.tanh(self.layer(tokens.transpose(0, 1))).mean(dim=0)
        if self.order == "rows":
            return th.tanh(self.layer(tokens.flatten(0, 1))).view(len(obs), 4, 5).mean(dim=1)
        return th.tanh(self.layer(tokens)).mean(dim=1)


def tokens_policy(order: str) -> ActorCriticPolicy:
    return make_policy(box(1), box(12), features_extractor_class=Tokens, features_extractor_kwargs={"order": order})


# With one action, g Mgᵀ does not depend on ε.
OF_ONE_ACTION = {
    "plain": (linearize, lambda: make_policy(box(1))),
    "plain, written out": (linearize_mlp, lambda: make_policy(box(1))),
    "images": (linearize, lambda: cnn_policy(action_space=box(1))),
    "tokens, batch first": (linearize, lambda: tokens_policy("batch first")),
    "tokens, tokens first": (linearize, lambda: tokens_policy("tokens first")),
    "tokens, in rows": (linearize, lambda: tokens_policy("rows")),
}


@pytest.mark.parametrize("n_states", [3, 40])
@pytest.mark.parametrize("name", list(OF_ONE_ACTION))
def test_blocks_are_inverses_of_damped_kronecker_products(name, n_states) -> None:
    """A sums over the positions of a state and G averages over them, wherever the axis of the positions is."""
    linearization_of, make = OF_ONE_ACTION[name]
    policy = make()
    linearization = linearization_of(policy, make_observations(policy, n_states))
    inverse = matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization)
    u = linearization.family.metric_root(linearization.z, (th.ones(n_states, 1).double(), th.zeros(n_states, 1)))
    left = th.ones_like(inverse, dtype=th.bool)
    for layer in linearization.layer_passes(u):
        inputs, cotangents = rows_of(layer)
        product = (cotangents.t() @ inputs).flatten()
        block = block_of(layer, linearization.parameters)
        # Rows are right if they make up the gradient.
        th.testing.assert_close(product, linearization.vjp(u)[block])
        kronecker = th.kron(cotangents.t() @ cotangents / len(cotangents), inputs.t() @ inputs / n_states)
        expected = th.linalg.inv(kronecker + DAMPING * th.eye(len(kronecker)))
        th.testing.assert_close(inverse[block][:, block], expected)
        left[th.tensor(block).unsqueeze(1), th.tensor(block)] = False
    # Outside of the layers' blocks there is log σ alone.
    assert (inverse[left] != 0).sum() == 1


class LinearExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, convolution: bool) -> None:
        super().__init__(observation_space, features_dim=3)
        self.layer = nn.Conv2d(2, 3, (2, 4)) if convolution else nn.Linear(16, 3)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(obs).flatten(1))


def test_a_convolution_at_one_position_is_a_linear_layer() -> None:
    inverses, state = [], None
    for convolution, shape in ((True, (2, 2, 4)), (False, (16,))):
        policy = make_policy(
            observation_space=spaces.Box(-np.inf, np.inf, shape),
            features_extractor_class=LinearExtractor,
            features_extractor_kwargs={"convolution": convolution},
            normalize_images=False,
        )
        state = state or policy.state_dict()
        policy.load_state_dict({key: state[key].view_as(value) for key, value in policy.state_dict().items()})
        obs = th.randn(9, *shape, generator=th.Generator().manual_seed(0), dtype=th.float64)
        linearization = linearize(policy, obs)
        inverses.append(matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization))
    th.testing.assert_close(inverses[0], inverses[1])


def test_other_parameters_get_an_unbiased_estimate_of_their_mean_curvature() -> None:
    """In the mean over orders of the states, which meet the same signs in each."""
    policy = make_policy(box(2), net_arch=[8])
    norm = nn.LayerNorm(8).double()
    policy.mlp_extractor.policy_net.append(norm)
    states = make_observations(policy, 20)
    linearization = linearize(policy, states)
    parameters = linearization.parameters
    ones = th.ones(len(parameters), dtype=th.float64)
    generator = th.Generator().manual_seed(0)
    estimates = []
    for _ in range(200):
        order = th.randperm(100, generator=generator)
        shuffled = linearize(policy, states.repeat(5, 1)[order])
        estimates.append(1.0 / kronecker_preconditioner(shuffled, DAMPING)(ones) - DAMPING)
    curvature = matrix_of(fisher_of(linearization).__matmul__, linearization).diag()
    pairs = zip(parameters.split(th.stack(estimates).mean(dim=0)), parameters.split(curvature), strict=True)
    by_parameter = dict(zip(parameters, pairs, strict=True))
    for parameter in (norm.weight, norm.bias, policy.log_std):
        estimate, exact = by_parameter[parameter]
        assert (estimate == estimate[0]).all()
        assert float(estimate[0]) == pytest.approx(float(exact.mean()), rel=0.25)


@pytest.mark.parametrize("n_states", [3, 6])
def test_leading_eigenvectors_are_all_if_there_are_no_more(n_states) -> None:
    """Of copies of a few states, beyond the size up to which all eigenvectors are computed."""
    policy = make_policy(box(1), net_arch=[200])
    states = make_observations(policy, n_states)
    few, many = linearize(policy, states), linearize(policy, states.repeat(100, 1))
    # The signs differ from copy to copy; their squares, and so a layer of one action, do not.
    block = block_of(list(few.layer_passes(tuple(map(th.ones_like, few.z))))[-1], few.parameters)
    assert len(block) == 201
    r = th.randn(len(few.parameters), generator=th.Generator().manual_seed(0), dtype=th.float64)
    expected, solution = (kronecker_preconditioner(each, DAMPING)(r)[block] for each in (few, many))
    th.testing.assert_close(solution, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_ones", [False, True])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_leading_eigenvectors_of_a_falling_spectrum(dtype, with_ones) -> None:
    """Tropp et al., theorem 4.1, at half the rank: the trace of what is left out, in the mean over the directions."""
    generator = th.Generator().manual_seed(0)
    rows = th.randn(400, 300, generator=generator, dtype=dtype) * th.logspace(0, -3, 300, dtype=dtype)
    factor = KroneckerFactor.of(rows, 400, with_ones)
    full = th.cat([rows, th.ones(400, 1, dtype=dtype)], dim=1) if with_ones else rows
    exact = full.t() @ full / 400
    k = len(factor.values)
    assert 10 < k < 128
    identity = th.eye(k, dtype=dtype)
    th.testing.assert_close(
        factor.basis.t() @ factor.basis, identity, rtol=0, atol=1e-4 if dtype is th.float32 else 1e-9
    )
    left_out = exact - factor.basis * factor.values @ factor.basis.t()
    assert left_out.trace() < (1 + (k / 2) / (k / 2 - 1)) * th.linalg.eigvalsh(exact)[: -k // 2].sum()
    # It never overestimates: P stays between λ and F's blocks.
    assert th.linalg.eigvalsh(left_out)[0] > -1e-5


@pytest.mark.parametrize("damping", [1e-2, 1e-1])
def test_leading_eigenvectors_are_what_counts(damping) -> None:
    """Even where inputs and gradient are noise, which has no leading directions, few iterations are as good as many."""
    policy = make_policy(box(3), box(17), dtype=th.float32, net_arch=[256, 256])
    linearization = linearize_mlp(policy, make_observations(policy, 1024))
    g = noisy_gradient(linearization)
    operator = damped(fisher_of(linearization), damping)

    def reached(n_iterations: int, preconditioner: Operator | None) -> float:
        solution = conjugate_gradient(
            operator, g, max_steps=n_iterations, residual_tol=0.0, preconditioner=preconditioner
        )
        return quality(linearization, damping, solution.x, g)

    assert reached(5, kronecker_preconditioner(linearization, damping)) > 0.9 * reached(60, None)


def assert_same_layers(one: Linearization, other: Linearization) -> None:
    """
    Check that two linearisations have the same layers.

    :param one: of a policy with one action, whose blocks do not depend on ε
    :param other: of the same policy on other states
    """
    layers = list(one.layer_passes(tuple(map(th.ones_like, one.z))))
    r = th.randn(len(one.parameters), generator=th.Generator().manual_seed(0)).to(one.z[0])
    first, second = (kronecker_preconditioner(each, DAMPING)(r) for each in (one, other))
    for layer in layers:
        block = block_of(layer, one.parameters)
        th.testing.assert_close(first[block], second[block], rtol=1e-4, atol=1e-5)


def test_of_very_many_states_some_stand_for_all() -> None:
    """At equal distances, for neighbours in a rollout are alike."""
    policy = make_policy(box(1), net_arch=[8, 8])
    obs = make_observations(policy, 6200)
    assert_same_layers(linearize_mlp(policy, obs), linearize_mlp(policy, obs[::3]))


def test_of_very_large_inputs_some_stand_for_all() -> None:
    """So that the memory is bounded, as it is for images at many positions."""
    policy = make_policy(box(1), box(2048), dtype=th.float32, net_arch=[])
    obs = make_observations(policy, 6000)
    assert_same_layers(linearize(policy, obs), linearize(policy, obs[::2]))


def quality(linearization: Linearization, damping: float, x: th.Tensor, g: th.Tensor) -> float:
    """Return (g·x) / √(xᵀ(F+λ)x), the improvement for a step of given length."""
    return float(g.dot(x) / x.dot(damped(fisher_of(linearization), damping)(x)).sqrt())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("damping", "worth"), [(1e-3, 15), (1e-1, 8)])
def test_saves_iterations(damping, worth, seed) -> None:
    """Five iterations are worth more than so many plain ones."""
    policy = make_policy(box(3), box(17), seed, th.float32, net_arch=[64, 64])
    linearization = linearize_mlp(policy, make_observations(policy, 1024, seed))
    g = noisy_gradient(linearization, seed)
    operator = damped(fisher_of(linearization), damping)
    plain = conjugate_gradient(operator, g, max_steps=worth, residual_tol=0.0)
    preconditioned = conjugate_gradient(
        operator, g, max_steps=5, residual_tol=0.0, preconditioner=kronecker_preconditioner(linearization, damping)
    )
    assert preconditioned.iterations == 5
    assert quality(linearization, damping, preconditioned.x, g) > quality(linearization, damping, plain.x, g)


def test_saves_iterations_on_images() -> None:
    policy = cnn_policy()
    linearization = linearize(policy, make_observations(policy, 64))
    g = noisy_gradient(linearization)
    operator = damped(fisher_of(linearization), 1e-3)
    solve = kronecker_preconditioner(linearization, 1e-3)
    plain, preconditioned = (
        conjugate_gradient(operator, g, max_steps=8, residual_tol=0.0, preconditioner=p).x for p in (None, solve)
    )
    assert quality(linearization, 1e-3, preconditioned, g) > quality(linearization, 1e-3, plain, g)


def test_helps_with_inputs_that_are_not_normalised() -> None:
    """The largest curvature is 10¹⁰ times the damping: beyond float32's digits, but not beyond use."""
    policy = make_policy(box(3), box(17), dtype=th.float32, net_arch=[64, 64])
    obs = make_observations(policy, 1024) * th.logspace(0.0, 4.0, 17)
    linearization = linearize_mlp(policy, obs)
    g = noisy_gradient(linearization)
    operator = damped(fisher_of(linearization), 1e-3)
    solve = kronecker_preconditioner(linearization, 1e-3)
    plain = conjugate_gradient(operator, g, max_steps=30, residual_tol=0.0)
    preconditioned = conjugate_gradient(operator, g, max_steps=8, residual_tol=0.0, preconditioner=solve)
    assert quality(linearization, 1e-3, preconditioned.x, g) > 1.5 * quality(linearization, 1e-3, plain.x, g)


def dead_policy(n_hidden: int) -> ActorCriticPolicy:
    """Return a policy whose last hidden layer is all zeros, so that nothing comes back through it either."""
    policy = make_policy(box(1), net_arch=[n_hidden, n_hidden], activation_fn=nn.ReLU)
    with th.no_grad():
        policy.mlp_extractor.policy_net[2].bias.fill_(-100.0)
    return policy


@pytest.mark.parametrize(("n_hidden", "n_states"), [(4, 10), (50, 10), (150, 200)])
def test_dead_layers_are_no_hindrance(n_hidden, n_states) -> None:
    """With more and with fewer states than units: where there is no curvature, P is λ."""
    policy = dead_policy(n_hidden)
    linearization = linearize(policy, make_observations(policy, n_states))
    solve = kronecker_preconditioner(linearization, DAMPING)
    r = th.randn(len(linearization.parameters), generator=th.Generator().manual_seed(0), dtype=th.float64)
    pieces = dict(zip(linearization.parameters, linearization.parameters.split(solve(r)), strict=True))
    residuals = dict(zip(linearization.parameters, linearization.parameters.split(r), strict=True))
    for layer in (policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2]):
        th.testing.assert_close(pieces[layer.weight], residuals[layer.weight] / DAMPING)
    th.testing.assert_close(pieces[policy.action_net.weight], residuals[policy.action_net.weight] / DAMPING)
    assert pieces[policy.action_net.bias].abs() < residuals[policy.action_net.bias].abs() / DAMPING


@pytest.mark.parametrize(("n_hidden", "n_states"), [(4, 10), (50, 10), (150, 200)])
def test_without_damping_a_policy_without_curvature_is_hopeless(n_hidden, n_states) -> None:
    policy = dead_policy(n_hidden)
    linearization = linearize(policy, make_observations(policy, n_states))
    with pytest.raises(PreconditionerError, match="curvature"):
        kronecker_preconditioner(linearization, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_without_damping_a_layer_whose_factors_are_singular_but_for_rounding_gets_its_mean_curvature(seed) -> None:
    policy = make_policy(box(1), box(6), seed, net_arch=[])
    obs = make_observations(policy, 20, seed)
    obs[:, 5] = obs[:, :5] @ obs[0, :5]
    matrix = matrix_of(kronecker_preconditioner(linearization := linearize(policy, obs), 0.0), linearization)
    assert th.equal(matrix, th.diag(matrix.diag()))
    assert 0.0 < matrix.diag().min() < matrix.diag().max() < math.inf


def test_without_damping_regular_factors_will_do() -> None:
    policy = make_policy(box(1), net_arch=[])
    linearization = linearize(policy, make_observations(policy, 20))
    solve = kronecker_preconditioner(linearization, 0.0)
    r = noisy_gradient(linearization)
    weights = slice(1, None)
    th.testing.assert_close((fisher_of(linearization) @ solve(r))[weights], r[weights])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_values_that_are_not_finite_are_hopeless(bad, dtype) -> None:
    policy = make_policy(dtype=dtype)
    with skip_distribution_checks():
        linearization = linearize_mlp(policy, th.full((10, 3), bad, dtype=dtype))
    with pytest.raises(PreconditionerError):
        kronecker_preconditioner(linearization, DAMPING)


def test_uses_no_random_numbers_of_anybody_else() -> None:
    policy = POLICIES["DiagGaussian"]()
    linearization = linearize(policy, make_observations(policy, 10))
    state = th.get_rng_state()
    first, second = (kronecker_preconditioner(linearization, DAMPING) for _ in range(2))
    assert th.equal(th.get_rng_state(), state)
    r = noisy_gradient(linearization)
    assert th.equal(first(r), second(r))


def test_residuals_are_left_alone() -> None:
    policy = cnn_policy()
    linearization = linearize(policy, make_observations(policy, 10))
    r = noisy_gradient(linearization)
    before = r.clone()
    kronecker_preconditioner(linearization, DAMPING)(r)
    assert th.equal(r, before)


def test_layers_that_share_a_weight_keep_it_symmetric() -> None:
    """Such a weight has no block of its own, but its mean curvature."""
    policy = make_policy(net_arch=[6, 6])
    tied = nn.Linear(6, 6).double()
    tied.weight = policy.mlp_extractor.policy_net[2].weight
    policy.mlp_extractor.policy_net.append(tied)
    linearization = linearize(policy, make_observations(policy, 10))
    matrix = matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization)
    th.testing.assert_close(matrix, matrix.t())
    assert th.linalg.eigvalsh(matrix).min() > 0.0
