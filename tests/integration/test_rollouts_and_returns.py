"""
Advantages and returns are left to SB3: an update sees what SB3's own PPO would see, and the end of an episode counts
as what it was.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rollout_envs import PATHS, paths
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from updates import with_rollout

from sb3_trpo import TRPO

ARRAYS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


@pytest.mark.parametrize(
    ("env_id", "use_sde"),
    [("Pendulum-v1", False), ("Pendulum-v1", True), ("CartPole-v1", False), ("Hopper-v5", False)],
)
def test_the_rollout_is_that_of_ppo(env_id: str, use_sde: bool) -> None:
    buffers = []
    for algorithm in (TRPO, PPO):
        env = make_vec_env(env_id, n_envs=3, seed=1)
        options: dict[str, Any] = {"gamma": 0.95, "gae_lambda": 0.9, "use_sde": use_sde, "seed": 0, "device": "cpu"}
        buffers.append(with_rollout(algorithm("MlpPolicy", env, n_steps=300, batch_size=300, **options)).rollout_buffer)
    for name in ARRAYS:
        ours, theirs = (getattr(buffer, name) for buffer in buffers)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)
    assert buffers[0].episode_starts[1:].any(), "no episode ended"


class FiveSteps(gym.Env):
    """
    A reward of 1 at each of five steps; the observation counts them.

    :param is_terminal: whether the episode is over then, or only cut off
    """

    observation_space = spaces.Box(0.0, 5.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.n_steps += 1
        is_over = self.n_steps == 5
        return self._observation(), 1.0, is_over and self.is_terminal, is_over and not self.is_terminal, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.n_steps], dtype=np.float32)


@paths
@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_follows_a_terminal_state_and_what_is_expected_follows_a_truncated_one(
    is_terminal: bool, path: str
) -> None:
    gamma = 0.9
    model = TRPO(
        "MlpPolicy",
        Monitor(FiveSteps(is_terminal)),
        n_steps=64,
        batch_size=64,
        gamma=gamma,
        gae_lambda=1.0,
        **PATHS[path],
        seed=0,
        device="cpu",
    )
    with th.no_grad():
        model.policy.value_net.bias.fill_(100.0)
    with_rollout(model)
    with th.no_grad():
        value = model.policy.predict_values(th.tensor([[5.0]])).item()
    discounted_rewards = [sum(gamma**i for i in range(5 - step)) for step in range(5)]
    bootstrap = [0.0 if is_terminal else gamma ** (5 - step) * value for step in range(5)]
    expected = np.add(discounted_rewards, bootstrap)
    np.testing.assert_allclose(model.rollout_buffer.returns[:60, 0], np.tile(expected, 12), rtol=1e-4)
    np.testing.assert_allclose(
        model.rollout_buffer.advantages, model.rollout_buffer.returns - model.rollout_buffer.values, rtol=1e-4
    )
