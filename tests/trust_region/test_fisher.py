"""
F v against the definition of the Fisher information, state by state and action by action, in float64.
"""

import pytest
import torch as th
from curvlinops import GGNLinearOperator
from sample_policies import (
    ACTIONS,
    PLAIN,
    POLICIES,
    as_matrix,
    cnn_policy,
    distribution_of,
    explicit_fisher,
    linearize,
    linearize_mlp,
    make_observations,
    make_policy,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import kl_divergence

from sb3_trpo.trust_region.conjugate_gradient import Stop, conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.preconditioner import kronecker_preconditioner

N_STATES = 4


def graph_fisher(policy: ActorCriticPolicy, obs: th.Tensor, chunk_size: int | None = None) -> Fisher:
    return Fisher(Linearizations(lambda chunk: linearize(policy, chunk), obs.split(chunk_size or len(obs))))


def mlp_fisher(policy: ActorCriticPolicy, obs: th.Tensor, chunk_size: int | None = None) -> Fisher:
    """Compute the same with the Jacobian written out."""
    return Fisher(Linearizations(lambda chunk: linearize_mlp(policy, chunk), obs.split(chunk_size or len(obs))))


CASES = [pytest.param(graph_fisher, POLICIES[name], id=f"graph-{name}") for name in POLICIES] + [
    pytest.param(mlp_fisher, POLICIES[name], id=f"mlp-{name}") for name in PLAIN
]


@pytest.mark.parametrize(("fisher_of", "make"), CASES)
def test_product_equals_definition(fisher_of, make) -> None:
    policy = make()
    obs = make_observations(policy, N_STATES)
    fisher = fisher_of(policy, obs)
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    expected = explicit_fisher(policy, obs, fisher.parameters.tensors)
    assert expected.abs().max() > 0.1
    th.testing.assert_close(matrix, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("fisher_of", "make"), CASES)
def test_symmetric_and_positive_semidefinite(fisher_of, make) -> None:
    policy = make()
    fisher = fisher_of(policy, make_observations(policy, N_STATES))
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    th.testing.assert_close(matrix, matrix.t(), rtol=1e-12, atol=1e-14)
    assert th.linalg.eigvalsh(matrix).min() > -1e-12 * matrix.abs().max()


@pytest.mark.parametrize(("fisher_of", "make"), CASES)
def test_linear(fisher_of, make) -> None:
    policy = make()
    fisher = fisher_of(policy, make_observations(policy, N_STATES))
    v, w = th.randn(2, len(fisher.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    th.testing.assert_close(fisher @ (2.0 * v - 3.0 * w), 2.0 * (fisher @ v) - 3.0 * (fisher @ w))


@pytest.mark.parametrize(("fisher_of", "make"), CASES)
@pytest.mark.parametrize("chunk_size", [1, 3, 7])
def test_chunks_make_no_difference(fisher_of, make, chunk_size) -> None:
    policy = make()
    obs = make_observations(policy, 7)
    whole, chunked = fisher_of(policy, obs), fisher_of(policy, obs, chunk_size)
    v = th.randn(len(whole.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    th.testing.assert_close(chunked @ v, whole @ v, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PLAIN)
def test_both_linearizations_agree(name) -> None:
    policy = POLICIES[name]()
    obs = make_observations(policy, N_STATES)
    mlp = mlp_fisher(policy, obs)
    graph = Fisher(Linearizations(lambda chunk: linearize(policy, chunk, mlp.parameters), [obs]))
    v = th.randn(len(mlp.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    th.testing.assert_close(mlp @ v, graph @ v, rtol=1e-12, atol=1e-14)


def test_single_precision_comes_close() -> None:
    policy, single = make_policy(net_arch=[64, 64]), make_policy(net_arch=[64, 64], dtype=th.float32)
    obs = make_observations(policy, 256)
    exact, rounded = mlp_fisher(policy, obs), mlp_fisher(single, obs.float())
    v = th.randn(len(exact.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    assert ((rounded @ v.float()).double() - exact @ v).norm() < 1e-5 * (exact @ v).norm()


@pytest.mark.parametrize("name", ["DiagGaussian", "gSDE", "Categorical"])
def test_frozen_parameters_are_left_out(name) -> None:
    policy = POLICIES[name]()
    policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
    if name == "DiagGaussian":
        policy.log_std.requires_grad_(False)
    obs = make_observations(policy, N_STATES)
    fisher = graph_fisher(policy, obs)
    own = [id(parameter) for parameter in fisher.parameters]
    assert id(policy.mlp_extractor.policy_net[0].weight) not in own
    assert id(policy.mlp_extractor.policy_net[0].bias) in own
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    th.testing.assert_close(matrix, explicit_fisher(policy, obs, fisher.parameters.tensors), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_images(share_features_extractor) -> None:
    policy = cnn_policy(share_features_extractor=share_features_extractor)
    obs = make_observations(policy, 3)
    fisher = graph_fisher(policy, obs)
    own = {id(parameter) for parameter in fisher.parameters}
    assert {id(parameter) for parameter in policy.pi_features_extractor.parameters()} <= own
    assert not {id(parameter) for parameter in policy.value_net.parameters()} & own
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    th.testing.assert_close(matrix, explicit_fisher(policy, obs, fisher.parameters.tensors), rtol=1e-7, atol=1e-9)


def test_tied_weights_count_once() -> None:
    policy = make_policy(net_arch=[6, 6])
    policy.mlp_extractor.policy_net.append(nn.Linear(6, 6).double()).append(nn.Tanh())
    policy.mlp_extractor.policy_net[4].weight = policy.mlp_extractor.policy_net[2].weight
    obs = make_observations(policy, N_STATES)
    fisher = graph_fisher(policy, obs)
    assert sum(parameter is policy.mlp_extractor.policy_net[2].weight for parameter in fisher.parameters) == 1
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    th.testing.assert_close(matrix, explicit_fisher(policy, obs, fisher.parameters.tensors), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_modules(backend) -> None:
    """AOTAutograd, which every backend that generates code is behind, has no double backward."""
    policy = make_policy()
    obs = make_observations(policy, N_STATES)
    expected = graph_fisher(policy, obs)
    policy.mlp_extractor.policy_net = th.compile(policy.mlp_extractor.policy_net, backend=backend)
    policy.action_net = th.compile(policy.action_net, backend=backend)
    fisher = graph_fisher(policy, obs)
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    th.testing.assert_close(matrix, as_matrix(expected.__matmul__, len(fisher.parameters)), rtol=1e-12, atol=1e-14)
    th.testing.assert_close(matrix, explicit_fisher(policy, obs, fisher.parameters.tensors), rtol=1e-7, atol=1e-9)


class Attention(nn.Module):
    """Each feature is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, nhead=2, dim_feedforward=3, batch_first=True)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.encoder(x.unsqueeze(2) * th.linspace(0.5, 1.5, 4, dtype=x.dtype)).mean(dim=2)


def test_attention() -> None:
    """Fused attention has no double backward."""
    policy = make_policy()
    policy.mlp_extractor.policy_net.append(Attention().double().eval())
    obs = make_observations(policy, N_STATES)
    fisher = graph_fisher(policy, obs)
    matrix = as_matrix(fisher.__matmul__, len(fisher.parameters))
    th.testing.assert_close(matrix, explicit_fisher(policy, obs, fisher.parameters.tensors), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["DiagGaussian", "gSDE, learned features", "Categorical", "Bernoulli"])
def test_hessian_of_kl(name) -> None:
    """F is what the paper differentiates KL(π_old ‖ π_θ) twice for."""
    policy = POLICIES[name]()
    obs = make_observations(policy, N_STATES)
    fisher = graph_fisher(policy, obs)
    old, new = (distribution_of(policy, obs).distribution for _ in range(2))
    detached = {key: getattr(old, key).detach() for key in ("loc", "scale", "logits") if key in old.__dict__}
    old = type(old)(**detached)
    kl = kl_divergence(old, new).sum() / N_STATES
    theta = fisher.parameters.tensors
    gradient = th.autograd.grad(kl, theta, create_graph=True)
    v = th.randn(len(fisher.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    along_v = sum((g * v_i).sum() for g, v_i in zip(gradient, fisher.parameters.split(v), strict=True))
    hessian_v = fisher.parameters.flatten_gradients(th.autograd.grad(along_v, theta, allow_unused=True))
    th.testing.assert_close(fisher @ v, hessian_v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("action_space", "loss", "scale"),
    [("Discrete", nn.CrossEntropyLoss(), 1.0), ("MultiBinary", nn.BCEWithLogitsLoss(), 3.0)],
)
def test_generalized_gauss_newton_of_curvlinops(action_space, loss, scale) -> None:
    """For logits the Fisher information is the GGN of the log-likelihood, whatever the labels are."""
    policy = make_policy(ACTIONS[action_space])
    obs = make_observations(policy, N_STATES)
    fisher = mlp_fisher(policy, obs)
    network = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
    labels = th.zeros(N_STATES, dtype=th.long) if action_space == "Discrete" else th.zeros(N_STATES, 3).double()
    parameters = list(network.parameters())
    ggn = GGNLinearOperator(network, loss, parameters, [(obs, labels)], check_deterministic=False)
    v = th.randn(len(fisher.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    # BCEWithLogitsLoss averages over the bits.
    th.testing.assert_close(fisher @ v, scale * (ggn @ v), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("is_preconditioned", [False, True])
def test_search_direction_equals_dense_solution(name, is_preconditioned) -> None:
    policy = POLICIES[name]()
    obs = make_observations(policy, N_STATES)
    fisher = graph_fisher(policy, obs)
    size, damping = len(fisher.parameters), 0.01
    g = th.randn(size, dtype=th.float64, generator=th.Generator().manual_seed(0))
    dense = explicit_fisher(policy, obs, fisher.parameters.tensors) + damping * th.eye(size, dtype=th.float64)
    solution = conjugate_gradient(
        lambda v: fisher @ v + damping * v,
        g,
        max_steps=3 * size,
        residual_tol=1e-6,
        preconditioner=kronecker_preconditioner(fisher.linearizations.first(), damping) if is_preconditioned else None,
    )
    x = solution.x
    assert solution.stop is Stop.TOLERANCE
    assert th.cosine_similarity(x, th.linalg.solve(dense, g), dim=0) > 0.9999


@pytest.mark.parametrize("damping", [0.0, 0.1, 1e6])
def test_quadratic_form_is_undamped(damping) -> None:
    policy = make_policy()
    fisher = graph_fisher(policy, make_observations(policy, N_STATES))
    x = th.randn(len(fisher.parameters), dtype=th.float64, generator=th.Generator().manual_seed(0))
    expected = float(x.dot(fisher @ x))
    assert fisher.quadratic_form(x, fisher @ x + damping * x, damping) == pytest.approx(expected, rel=1e-10)


def test_quadratic_form_survives_cancellation() -> None:
    """In float32 xᵀ(F + λI)x - λ xᵀx has no digit left when λ is a million times F."""
    policy = make_policy(dtype=th.float32)
    fisher = graph_fisher(policy, make_observations(policy, N_STATES))
    x = th.randn(len(fisher.parameters), generator=th.Generator().manual_seed(0))
    damping = 1e8
    product = fisher @ x
    assert fisher.quadratic_form(x, product + damping * x, damping) == pytest.approx(float(x.dot(product)), rel=1e-4)
