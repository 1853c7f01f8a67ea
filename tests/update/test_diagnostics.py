import itertools
import warnings
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from small_models import VECTOR, SpacesEnv
from stable_baselines3.common.env_util import make_vec_env
from updates import collect, log, pendulum

from sb3_trpo import TRPO
from sb3_trpo.update.clipped_actions import log_prob_of_executed
from sb3_trpo.update.diagnostics import PATIENCE, Advice, action_dimensions

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
    "line_search_steps",
    "step_fraction",
    "grad_norm",
    "expected_improvement",
    "surrogate_improvement",
    "target_kl",
    "learning_rate",
}


def train_keys(model: Any) -> set[str]:
    return {key.removeprefix("train/") for key in log(model) if key.startswith("train/")}


def test_every_key_is_logged() -> None:
    model = pendulum()
    model.train()
    assert train_keys(model) == KEYS | {"std"}


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
    assert logged["target_kl"] == model.target_kl
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


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 6))
def test_a_symptom_is_reported_once_and_only_when_it_lasts(presences: list[bool], patience: int) -> None:
    advice = Advice()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for is_present in presences:
            advice.observe("symptom", is_present, "do something else.", patience)
    longest = max((len(list(run)) for present, run in itertools.groupby(presences) if present), default=0)
    assert len(caught) == (longest >= patience)


def test_conjugate_gradient_that_has_hardly_begun() -> None:
    pytest.importorskip("Box2D", reason="needs sb3-trpo[box2d]")
    model = pendulum(env="LunarLander-v3", preconditioner=None, cg_max_steps=1, cg_damping=0.0)
    with pytest.warns(UserWarning, match="raise cg_max_steps or cg_damping") as caught:
        update(model, 2 * PATIENCE)
    assert len([w for w in caught if "conjugate gradient" in str(w.message)]) == 1


def test_a_line_search_that_keeps_failing() -> None:
    model = pendulum(line_search_max_iter=1)
    model._scale_to_trust_region = lambda fisher, solution: 100.0 * solution.x
    with pytest.warns(UserWarning, match=r"collect more steps.*raise cg_damping, or lower target_kl") as caught:
        update(model, 2 * PATIENCE)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("value_loss", "mean_squared_return", "has_diverged"),
    [(3e4, 1e4, True), (1.5e4, 1e4, False), (0.1, 1e-9, False), (10.0, 1e-9, True)],
)
def test_the_error_is_measured_by_the_returns(
    value_loss: float, mean_squared_return: float, has_diverged: bool
) -> None:
    advice = Advice()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(PATIENCE):
            advice.on_critic_step(value_loss, mean_squared_return)
    assert len(caught) == has_diverged


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_critic_that_has_diverged(parameter: str) -> None:
    # Returns that hardly depend on the values.
    model = pendulum(learning_rate=0.0, gae_lambda=1.0, gamma=0.5)
    with th.no_grad():
        getattr(model.policy.value_net, parameter).add_(1.0).mul_(1e4)
    with pytest.warns(UserWarning, match=r"lower learning_rate .*max_grad_norm.*VecNormalize") as caught:
        update(model, 2 * PATIENCE + 1)
    assert len([w for w in caught if "critic diverges" in str(w.message)]) == 1


def test_a_batch_that_is_small_for_the_action_space() -> None:
    env = SpacesEnv(VECTOR, spaces.Box(-1, 1, (17,)))
    with pytest.warns(UserWarning, match=r"n_steps \* n_envs = 128 .* 17 dimensions.*at least 544"):
        TRPO("MlpPolicy", env, n_steps=128)


def test_an_ordinary_run_warns_of_nothing() -> None:
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRPO("MlpPolicy", env, n_steps=128, seed=0, device="cpu", gamma=0.9).learn(20 * 512)


@pytest.mark.parametrize(
    ("space", "dimensions"),
    [
        (spaces.Discrete(7), 1),
        (spaces.Box(-1, 1, (3,)), 3),
        (spaces.Box(-1, 1, (3, 2)), 6),
        (spaces.MultiDiscrete([2, 5]), 2),
        (spaces.MultiBinary(4), 4),
    ],
)
def test_action_dimensions(space: gym.Space, dimensions: int) -> None:
    assert action_dimensions(space) == dimensions


def update(model: Any, n_updates: int) -> None:
    """
    Make updates, each with a rollout of its own.

    :param model: with a rollout
    :param n_updates: each with a rollout of its own
    """
    for _ in range(n_updates):
        model.train()
        collect(model)
