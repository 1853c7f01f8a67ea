"""
Active checks: silent on what is as it should be, and not on what is not. More faults are in benchmarks/faults.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TransformObservation, TransformReward
from small_models import VECTOR, SpacesEnv
from stable_baselines3.common.buffers import RolloutBuffer
from updates import state

from sb3_trpo import TRPO, check_algorithm, check_task
from sb3_trpo.trust_region.surrogate import LogProb


def names(findings: Any) -> set[str]:
    return {finding.name for finding in findings}


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
def test_nothing_is_found_in_an_ordinary_task(task: str) -> None:
    assert check_task(lambda: gym.make(task)) == []


class Endless(gym.Wrapper):
    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = self.env.step(action)
        return obs, reward, False, False, info


def large(env: gym.Env) -> gym.Env:
    return TransformObservation(env, lambda obs: 100.0 * obs, spaces.Box(-np.inf, np.inf, env.observation_space.shape))


def outside(env: gym.Env) -> gym.Env:
    return TransformObservation(env, lambda obs: obs, spaces.Box(-0.01, 0.01, env.observation_space.shape))


@pytest.mark.parametrize(
    ("task", "wrap", "found"),
    [
        ("MountainCar-v0", Endless, {"no-end-of-episodes"}),
        ("Acrobot-v1", large, {"observations-not-normalised"}),
        ("CartPole-v1", outside, {"space-mismatch"}),
        ("CartPole-v1", lambda env: TransformReward(env, lambda r: 0.0), {"rewards-all-equal"}),
        ("CartPole-v1", lambda env: TransformReward(env, lambda r: 1e4 * r), {"reward-scale"}),
        ("CartPole-v1", lambda env: TransformReward(env, lambda r: 1e-6 * r), {"reward-scale"}),
        ("MountainCarContinuous-v0", lambda env: RescaleAction(env, -1e3, 1e3), {"action-bounds"}),
    ],
)
def test_a_task_is_told_what_is_wrong_with_it(task: str, wrap: Any, found: set[str]) -> None:
    assert names(check_task(lambda: wrap(gym.make(task)))) == found


class Unseeded(gym.ObservationWrapper):
    rng = np.random.default_rng()

    def observation(self, observation: Any) -> Any:
        return (observation + self.rng.normal(size=observation.shape) * 1e-3).astype(np.float32)


def test_an_environment_that_differs_each_time() -> None:
    assert names(check_task(lambda: Unseeded(gym.make("CartPole-v1")))) == {"not-deterministic"}


@pytest.mark.parametrize(
    "actions", [spaces.Box(-1, 1, (3,)), spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]
)
@pytest.mark.parametrize("arguments", [{}, {"normalize_advantage": False, "fisher_chunk_size": 100, "ent_coef": 0.01}])
def test_an_update_is_what_it_is_taken_for(actions: spaces.Space, arguments: dict[str, Any]) -> None:
    model = TRPO("MlpPolicy", SpacesEnv(VECTOR, actions), n_steps=512, seed=0, device="cpu", **arguments)
    before, target_kl = state(model), model.target_kl
    assert check_algorithm(model) == []
    after = state(model)
    assert model.target_kl == target_kl
    assert before.keys() == after.keys()
    assert all(th.equal(before[name], after[name]) for name in before)


class IgnoresLambda(RolloutBuffer):
    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        self.gae_lambda = 1.0
        super().compute_returns_and_advantage(last_values, dones)


class Averages(TRPO):
    """sb3-contrib's mistake, in the other place: log-probabilities are averaged over action dimensions."""

    def _log_prob(self) -> LogProb:
        log_prob = super()._log_prob()
        return lambda distribution, actions: log_prob(distribution, actions) / 3.0


class StopsGradient(TRPO):
    def _log_prob(self) -> LogProb:
        log_prob = super()._log_prob()
        return lambda distribution, actions: (
            0.5 * log_prob(distribution, actions) + 0.5 * log_prob(distribution, actions).detach()
        )


@pytest.mark.parametrize(
    ("algorithm", "arguments", "found"),
    [
        (TRPO, {"rollout_buffer_class": IgnoresLambda}, {"gae-differs"}),
        (StopsGradient, {}, {"gradient-differs"}),
        # Consistent with itself: another objective, and no mistake of its derivative.
        (Averages, {}, set()),
    ],
)
def test_an_update_that_is_something_else(algorithm: type[TRPO], arguments: dict[str, Any], found: set[str]) -> None:
    model = algorithm(
        "MlpPolicy", SpacesEnv(VECTOR, spaces.Box(-1, 1, (3,))), n_steps=512, seed=0, device="cpu", **arguments
    )
    assert names(check_algorithm(model)) == found
