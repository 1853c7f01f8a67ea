"""
What a rollout tells: returns of rewards alone, ends of episodes, clipped actions, sizes.
"""

import math
import re
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
from stable_baselines3.common.vec_env import DummyVecEnv
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


class Telling(SpacesEnv):
    """
    Puts something of its own into the infos of its second episode's last step, as of Monitor.

    :param told: what it puts there
    :param always: whether it does so at every step
    """

    def __init__(self, told: dict[str, Any], always: bool = False) -> None:
        super().__init__(VECTOR, spaces.Box(-1, 1, (1,)))
        self.told, self.always, self.n_ends = told, always, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = super().step(action)
        self.n_ends += truncated
        told = self.told if self.always or (truncated and self.n_ends == 2) else {}
        return obs, reward, terminated, truncated, told.copy()


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"episode": 5}, 'info["episode"] is 5, but must be a dictionary'),
    ({"episode": "r"}, "info[\"episode\"] is 'r', but must be a dictionary"),
    ({"episode": {"score": 1.0}}, "info[\"episode\"] is {'score': 1.0}, but must be a dictionary"),
    ({"episode": {"r": "12", "l": 3}}, "info[\"episode\"] is {'r': '12', 'l': 3}"),
    ({"episode": {"r": 1.0, "l": None}}, "info[\"episode\"] is {'r': 1.0, 'l': None}"),
    ({"episode": {"r": np.zeros(2), "l": 3}}, 'info["episode"] is '),
    ({"is_success": "yes"}, "info[\"is_success\"] is 'yes', but must be true or false"),
]


@pytest.mark.parametrize("use_sde", [False, True], ids=["fast path", "SB3's loop"])
@pytest.mark.parametrize(("told", "said"), UNREADABLE)
def test_what_the_log_can_not_read_is_told_once_and_left_out(told: dict[str, Any], said: str, use_sde: bool) -> None:
    buffer = {"rollout_buffer_class": OwnBuffer} if use_sde else {}
    honest = {"episode": {"r": 1.0, "l": 20}, "is_success": True}
    tellers = iter([Telling(honest, True), Telling({**honest, **told})])
    # No Monitor, whose own infos would take their place.
    env = DummyVecEnv(2 * [lambda: next(tellers)])
    model = TRPO("MlpPolicy", env, n_steps=50, batch_size=50, device="cpu", **buffer)
    with pytest.warns(UserWarning, match=re.escape(said)) as caught:
        model.learn(300)
    (warning,) = [str(w.message) for w in caught if said in str(w.message)]
    assert "(first in environment 1, after 80 steps)" in warning
    assert model.num_timesteps == 300
    assert all(episode == honest["episode"] for episode in model.ep_info_buffer)
    assert set(model.ep_success_buffer) == {True}


@pytest.mark.parametrize(
    "told", [{"episode": {"r": math.nan, "l": 3}}, {"episode": {"r": np.float32(1), "l": np.int64(3)}}, {"episode": {}}]
)
def test_what_sb3_reads_stays(told: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    model = TRPO("MlpPolicy", DummyVecEnv([lambda: Telling(told, True)]), n_steps=50, batch_size=50, device="cpu")
    model.learn(50)
    assert list(model.ep_info_buffer) == 50 * [told["episode"]]
    assert not [w for w in recwarn if "left out of the log" in str(w.message)]
