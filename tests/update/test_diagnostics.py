from typing import Any

import pytest
import torch as th
from updates import log, pendulum

from sb3_trpo.trust_region.conjugate_gradient import Stop
from sb3_trpo.update.clipped_actions import log_prob_of_executed
from sb3_trpo.update.diagnostics import STOP_CODES

KEYS = {
    "policy_objective",
    "value_loss",
    "kl_divergence_loss",
    "explained_variance",
    "is_line_search_success",
    "n_updates",
    "entropy",
    "cg_iterations",
    "cg_residual",
    "cg_stop",
    "line_search_steps",
    "rejected_by_kl",
    "rejected_by_gain",
    "step_fraction",
    "grad_norm",
    "expected_improvement",
    "surrogate_improvement",
    "target_kl",
    "learning_rate",
    "advantage_mean",
    "advantage_std",
    "return_mean",
    "return_std",
}


def train_keys(model: Any) -> set[str]:
    return {key.removeprefix("train/") for key in log(model) if key.startswith("train/")}


def test_every_key_is_logged() -> None:
    model = pendulum()
    model.train()
    assert train_keys(model) == KEYS | {"std", "std_min"}


def test_a_policy_without_log_std_logs_no_std() -> None:
    model = pendulum(env="CartPole-v1")
    model.train()
    assert train_keys(model) == KEYS


def test_what_is_logged_is_what_happened() -> None:
    model = pendulum(normalize_advantage=False, cg_progress_tol=0.0)
    samples = next(model.rollout_buffer.get())
    with th.no_grad():
        old = model.policy.get_distribution(samples.observations)
        entropy = old.entropy().mean().item()
        log_prob = log_prob_of_executed(model.policy)
        old_log_prob = log_prob(old, samples.actions)
    model.train()
    with th.no_grad():
        new = model.policy.get_distribution(samples.observations)
        ratio = (log_prob(new, samples.actions) - old_log_prob).exp()
    objective = (ratio * samples.advantages).mean().item()

    logged = {key.removeprefix("train/"): value for key, value in log(model).items()}
    assert logged["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert logged["policy_objective"] == pytest.approx(objective, rel=1e-4)
    assert logged["surrogate_improvement"] == pytest.approx(objective - samples.advantages.mean().item(), rel=1e-3)
    assert logged["std"] == pytest.approx(model.policy.log_std.exp().mean().item())
    assert logged["std_min"] == pytest.approx(model.policy.log_std.exp().min().item())
    assert logged["target_kl"] == model.target_kl
    assert logged["advantage_mean"] == pytest.approx(samples.advantages.mean().item(), rel=1e-5)
    assert logged["advantage_std"] == pytest.approx(samples.advantages.std(correction=0).item(), rel=1e-5)
    assert logged["cg_stop"] == STOP_CODES[Stop.TOLERANCE]
    assert logged["rejected_by_kl"] + logged["rejected_by_gain"] == logged["line_search_steps"] - 1
    assert 0.0 < logged["step_fraction"] <= 1.0
    assert 1 <= logged["line_search_steps"] <= model.line_search_max_iter
    assert 1 <= logged["cg_iterations"] <= model.cg_max_steps
    assert 0.0 <= logged["cg_residual"] <= model.cg_residual_tol
    assert logged["grad_norm"] > 0.0
    # To first order, over a small step; the accepted share of the full step is less than it.
    assert logged["expected_improvement"] == pytest.approx(
        logged["surrogate_improvement"] / logged["step_fraction"], rel=0.2
    )


def test_the_first_value_loss_is_the_error_of_the_old_values() -> None:
    model = pendulum(n_critic_updates=1, batch_size=256)
    samples = next(model.rollout_buffer.get())
    model.train()
    error = (samples.old_values.flatten() - samples.returns).square().mean().item()
    assert log(model)["train/value_loss"] == pytest.approx(error, rel=1e-4)
