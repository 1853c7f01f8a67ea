"""
What a rollout tells: returns of rewards alone, ends of episodes, clipped actions, sizes.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import VECTOR, SpacesEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from updates import collect, log, pendulum, with_rollout

from sb3_trpo import TRPO
from sb3_trpo.rollouts.statistics import clipped_share, discounted_sums, resident_memory


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_returns_are_discounted_sums_within_an_episode(n_steps: int, n_envs: int, gamma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, is_end = rng.normal(size=(n_steps, n_envs)), rng.random((n_steps, n_envs)) < 0.2
    expected, after = np.zeros((n_steps, n_envs)), np.zeros(n_envs)
    for t in reversed(range(n_steps)):
        after = rewards[t] + gamma * np.where(is_end[t], 0.0, after)
        expected[t] = after
    before = rewards.copy()
    np.testing.assert_allclose(discounted_sums(rewards, is_end, gamma), expected, rtol=1e-9, atol=1e-9)
    assert np.array_equal(rewards, before)


class OwnBuffer(RolloutBuffer):
    """Not SB3's own, so that SB3's own loop fills it."""


@pytest.mark.parametrize("buffer", [RolloutBuffer, OwnBuffer])
@pytest.mark.parametrize(("limit", "terminated", "truncated"), [(7, 0.0, 2 * 18.0), (500, None, 0.0)])
def test_ends_of_episodes_are_counted_by_their_kind(
    buffer: type[RolloutBuffer], limit: int, terminated: float | None, truncated: float
) -> None:
    env = make_vec_env(lambda: TimeLimit(gym.make("CartPole-v1"), limit), 2, seed=0)
    model = with_rollout(TRPO("MlpPolicy", env, n_steps=128, rollout_buffer_class=buffer, seed=0, device="cpu"))
    starts = model.rollout_buffer.episode_starts
    n_ends = starts[1:].sum() + model._last_episode_starts.sum()
    logged = log(model)
    assert logged["rollout/truncated"] == truncated
    assert logged["rollout/terminated"] == n_ends - truncated
    assert terminated is None or logged["rollout/terminated"] == terminated


@pytest.mark.parametrize("buffer", [RolloutBuffer, OwnBuffer])
def test_returns_are_of_rewards_alone(buffer: type[RolloutBuffer]) -> None:
    """Where an episode is truncated, the buffer's rewards have the critic's value of what would follow."""
    env = make_vec_env(lambda: TimeLimit(gym.make("CartPole-v1"), 4), 1, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=64, gamma=0.5, rollout_buffer_class=buffer, seed=0, device="cpu")
    model.policy.value_net.bias.data.fill_(1000.0)
    with_rollout(model)
    assert model.rollout_buffer.rewards.max() > 100.0
    model.train()
    # Rewards of 1 in episodes of 4 steps.
    returns = np.array([1.875, 1.75, 1.5, 1.0])
    assert log(model)["train/return_mean"] == pytest.approx(returns.mean())
    assert log(model)["train/return_std"] == pytest.approx(returns.std())


def test_numbers_are_those_of_the_rollout() -> None:
    model = pendulum()
    buffer = model.rollout_buffer
    assert log(model)["rollout/obs_std_max"] == pytest.approx(buffer.observations.std(axis=(0, 1)).max(), rel=1e-5)
    assert log(model)["rollout/clipped_actions"] == np.mean(np.abs(buffer.actions) >= 2.0)
    assert log(model)["time/memory_mib"] == pytest.approx(resident_memory(), rel=0.5)


@pytest.mark.parametrize(
    ("observations", "actions", "absent"),
    [
        (spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(2), {"obs_std_max", "clipped_actions"}),
        (spaces.Discrete(4), spaces.MultiBinary(3), {"obs_std_max", "clipped_actions"}),
        (spaces.Dict(a=VECTOR, b=spaces.Discrete(3)), spaces.Box(-1, 1, (2,)), set()),
    ],
)
def test_what_has_no_meaning_is_not_logged(observations: Any, actions: Any, absent: set[str]) -> None:
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    model = with_rollout(TRPO(policy, SpacesEnv(observations, actions), n_steps=16, batch_size=16, device="cpu"))
    keys = {key.partition("/")[2] for key in log(model) if key.startswith("rollout/")}
    assert keys >= {"terminated", "truncated"}
    assert {"obs_std_max", "clipped_actions"} - keys == absent


def test_actions_at_a_bound_count_as_clipped() -> None:
    actions = np.array([[[-1.0, 0.0]], [[0.5, 3.0]]])
    assert clipped_share(actions, spaces.Box(-1, 1, (2,))) == 0.5
    assert clipped_share(actions, spaces.Box(-np.inf, np.inf, (2,))) == 0.0


def test_rollouts_between_two_entries_are_averaged(tmp_path) -> None:
    model = pendulum(n_steps=100)
    first = log(model)["rollout/truncated"]
    collect(model)
    assert (first, log(model)["rollout/truncated"]) == (0.0, 0.5)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    collect(model)
    assert log(model)["rollout/truncated"] == 0.0
