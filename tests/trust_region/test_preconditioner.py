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

from sb3_trpo.trust_region import kronecker_factor, preconditioner
from sb3_trpo.trust_region.conjugate_gradient import Operator, conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.linearization import Linearization, Linearizations
from sb3_trpo.trust_region.preconditioner import PreconditionerError, kronecker_preconditioner
from sb3_trpo.update.transaction import no_distribution_checks

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


@pytest.mark.parametrize("n_states", [3, 40])
@pytest.mark.parametrize("linearization_of", [linearize, linearize_mlp])
def test_blocks_are_inverses_of_damped_kronecker_products(linearization_of, n_states) -> None:
    policy = make_policy(box(1))
    linearization = linearization_of(policy, make_observations(policy, n_states))
    inverse = matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization)
    position, offset = {}, 0
    for parameter in linearization.parameters:
        position[id(parameter)] = range(offset, offset + parameter.numel())
        offset += parameter.numel()
    # With one action, g Mgᵀ does not depend on ε.
    u = linearization.family.metric_root(linearization.z, (th.ones(n_states, 1).double(), th.zeros(n_states, 1)))
    left = th.ones_like(inverse, dtype=th.bool)
    for layer in linearization.layer_passes(u):
        inputs = th.cat([layer.inputs, th.ones(n_states, 1)], dim=1)
        kronecker = th.kron(layer.cotangents.t() @ layer.cotangents, inputs.t() @ inputs) / n_states**2
        expected = th.linalg.inv(kronecker + DAMPING * th.eye(len(kronecker)))
        weight, bias = list(position[id(layer.weight)]), list(position[id(layer.bias)])
        n_in = layer.weight.shape[1]
        rows = [i for k, b in enumerate(bias) for i in (*weight[k * n_in : (k + 1) * n_in], b)]
        th.testing.assert_close(inverse[rows][:, rows], expected)
        left[th.tensor(rows).unsqueeze(1), th.tensor(rows)] = False
    # Outside of the layers' blocks there is log σ alone.
    assert left.sum() > 0
    outside = inverse[left]
    assert (outside != 0).sum() == 1


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


def test_patches_and_cotangents_of_a_convolution_make_up_its_gradient() -> None:
    """Padding, strides and dilation are the layer's."""
    policy = cnn_policy()
    linearization = linearize(policy, make_observations(policy, 3))
    u = tuple(th.ones_like(part) for part in linearization.z)
    pieces = linearization.parameters.split(linearization.vjp(u))
    gradient = {id(parameter): piece for parameter, piece in zip(linearization.parameters, pieces, strict=True)}
    n_positions = []
    for layer in linearization.layer_passes(u):
        inputs, cotangents, n_samples = preconditioner._positions(layer)
        assert n_samples == 3
        n_positions.append(len(inputs) // n_samples)
        th.testing.assert_close((cotangents.t() @ inputs).view_as(layer.weight), gradient[id(layer.weight)])
    assert n_positions == [36, 10, 1, 1, 1, 1]


class Tokens(BaseFeaturesExtractor):
    """The same layer at each of four positions."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=5)
        self.layer = nn.Linear(3, 5)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(obs.view(len(obs), 4, 3))).mean(dim=1)


def test_a_layer_at_several_positions() -> None:
    """A sums over positions and G averages over them, as for a convolution."""
    policy = make_policy(box(1), box(12), features_extractor_class=Tokens)
    linearization = linearize(policy, make_observations(policy, 6))
    u = linearization.family.metric_root(linearization.z, tuple(th.ones_like(part) for part in linearization.z))
    layer = next(iter(linearization.layer_passes(u)))
    inputs, cotangents, n_samples = preconditioner._positions(layer)
    assert (len(inputs), len(cotangents), n_samples) == (24, 24, 6)
    expected = linearization.parameters.split(linearization.vjp(u))[1]
    assert layer.weight is linearization.parameters.parameters[1]
    th.testing.assert_close(cotangents.t() @ inputs, expected)
    inputs = th.cat([inputs, th.ones(24, 1)], dim=1)
    kronecker = th.kron(cotangents.t() @ cotangents / 24, inputs.t() @ inputs / 6)
    block = th.linalg.inv(kronecker + DAMPING * th.eye(len(kronecker)))
    inverse = matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization)
    # After log σ come the weight, (5, 3), and the bias; the block has them row by row.
    rows = [i for k in range(5) for i in (1 + 3 * k, 2 + 3 * k, 3 + 3 * k, 16 + k)]
    th.testing.assert_close(inverse[rows][:, rows], block)


def test_other_parameters_get_an_unbiased_estimate_of_their_mean_curvature(monkeypatch) -> None:
    policy = make_policy(box(2), net_arch=[8])
    norm = nn.LayerNorm(8).double()
    policy.mlp_extractor.policy_net.append(norm)
    linearization = linearize(policy, make_observations(policy, 20))
    parameters = linearization.parameters
    ones = th.ones(len(parameters), dtype=th.float64)
    estimates = []
    for seed in range(200):
        monkeypatch.setattr(preconditioner, "_SEED", seed)
        estimates.append(1.0 / kronecker_preconditioner(linearization, DAMPING)(ones) - DAMPING)
    curvature = matrix_of(fisher_of(linearization).__matmul__, linearization).diag()
    pairs = zip(parameters.split(th.stack(estimates).mean(dim=0)), parameters.split(curvature), strict=True)
    by_parameter = dict(zip(parameters, pairs, strict=True))
    for parameter in (norm.weight, norm.bias, policy.log_std):
        estimate, exact = by_parameter[parameter]
        assert (estimate == estimate[0]).all()
        assert float(estimate[0]) == pytest.approx(float(exact.mean()), rel=0.25)


@pytest.mark.parametrize("n_states", [3, 6])
def test_leading_eigenvectors_are_all_if_there_are_no_more(n_states, monkeypatch) -> None:
    policy = make_policy(box(1), net_arch=[40, 40])
    linearization = linearize(policy, make_observations(policy, n_states).repeat(20, 1))
    # The signs differ from copy to copy; their squares, and so a layer of one action, do not.
    expected = _matrix_of_last_layer(linearization, policy)
    monkeypatch.setattr(kronecker_factor, "MAX_EXACT_SIZE", 10)
    th.testing.assert_close(_matrix_of_last_layer(linearization, policy), expected, rtol=1e-6, atol=1e-6)


def _matrix_of_last_layer(linearization: Linearization, policy: ActorCriticPolicy) -> th.Tensor:
    names = [id(p) for p in linearization.parameters]
    start = sum(p.numel() for p in list(linearization.parameters)[: names.index(id(policy.action_net.weight))])
    matrix = matrix_of(kronecker_preconditioner(linearization, DAMPING), linearization)
    return matrix[start : start + 41, start : start + 41]


@pytest.mark.parametrize("with_ones", [False, True])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_leading_eigenvectors_of_a_falling_spectrum(dtype, with_ones) -> None:
    """Tropp et al., theorem 4.1, at half the rank: the trace of what is left out, in the mean over the directions."""
    generator = th.Generator().manual_seed(0)
    rows = th.randn(400, 300, generator=generator, dtype=dtype) * th.logspace(0, -3, 300, dtype=dtype)
    factor = kronecker_factor.KroneckerFactor.of(rows, 400, with_ones)
    full = th.cat([rows, th.ones(400, 1, dtype=dtype)], dim=1) if with_ones else rows
    exact = full.t() @ full / 400
    k = kronecker_factor.N_LEADING
    identity = th.eye(k, dtype=dtype)
    th.testing.assert_close(
        factor.basis.t() @ factor.basis, identity, rtol=0, atol=1e-4 if dtype is th.float32 else 1e-9
    )
    left_out = exact - factor.basis * factor.values @ factor.basis.t()
    assert left_out.trace() < (1 + (k / 2) / (k / 2 - 1)) * th.linalg.eigvalsh(exact)[: -k // 2].sum()
    # It never overestimates: P stays between λ and F's blocks.
    assert th.linalg.eigvalsh(left_out)[0] > -1e-5


@pytest.mark.parametrize("damping", [1e-2, 1e-1])
def test_leading_eigenvectors_cost_one_iteration_at_most(damping, monkeypatch) -> None:
    """To a few percent, where inputs and gradient are noise, which has no leading directions."""
    policy = make_policy(box(3), box(17), dtype=th.float32, net_arch=[256, 256])
    linearization = linearize_mlp(policy, make_observations(policy, 1024))
    g = noisy_gradient(linearization)
    operator = damped(fisher_of(linearization), damping)

    def reached(n_iterations: int) -> float:
        solve = kronecker_preconditioner(linearization, damping)
        x = conjugate_gradient(operator, g, max_steps=n_iterations, residual_tol=0.0, preconditioner=solve).x
        return quality(linearization, damping, x, g)

    leading = reached(5)
    monkeypatch.setattr(kronecker_factor, "MAX_EXACT_SIZE", 1000)
    assert leading > 0.97 * reached(4)


@pytest.mark.parametrize(
    ("linearization_of", "bound"), [(linearize, "MAX_FACTOR_ELEMENTS"), (linearize_mlp, "N_FACTOR_SAMPLES")]
)
def test_some_samples_stand_for_all(monkeypatch, linearization_of, bound) -> None:
    """If all samples are alike, and only then, those that are left out make no difference."""
    policy = make_policy(box(1), net_arch=[8, 8])
    alike = linearization_of(policy, make_observations(policy, 1).expand(30, -1))
    different = linearization_of(policy, make_observations(policy, 30))
    of_all = [matrix_of(kronecker_preconditioner(each, DAMPING), each) for each in (alike, different)]
    monkeypatch.setattr(preconditioner, bound, 7)
    of_some = [matrix_of(kronecker_preconditioner(each, DAMPING), each) for each in (alike, different)]
    th.testing.assert_close(of_some[0], of_all[0])
    assert not th.allclose(of_some[1], of_all[1], rtol=0.01)


def quality(linearization: Linearization, damping: float, x: th.Tensor, g: th.Tensor) -> float:
    """
    :return: (g·x) / √(xᵀ(F+λ)x), the improvement for a step of given length
    """
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
    """
    :return: a policy whose last hidden layer is all zeros, so that nothing comes back through it either
    """
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
def test_singular_factors_without_damping_are_hopeless(n_hidden, n_states) -> None:
    policy = dead_policy(n_hidden)
    linearization = linearize(policy, make_observations(policy, n_states))
    with pytest.raises(PreconditionerError, match="singular"):
        kronecker_preconditioner(linearization, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_factors_that_are_singular_but_for_rounding_are_hopeless_without_damping(seed) -> None:
    policy = make_policy(box(1), box(6), seed, net_arch=[])
    obs = make_observations(policy, 20, seed)
    obs[:, 5] = obs[:, :5] @ obs[0, :5]
    with pytest.raises(PreconditionerError, match="singular"):
        kronecker_preconditioner(linearize(policy, obs), 0.0)


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
    with no_distribution_checks():
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
