"""
Environments of the rollout tests: real tasks, with the action spaces, ends of episodes and faults that they need.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

# What each of SB3's action distributions acts on; CartPole gets a left or right out of it.
ACTION_SPACES: dict[str, tuple[spaces.Space, Callable[[Any], int]]] = {
    "gaussian": (spaces.Box(-1.0, 0.5, (2, 3)), lambda action: int(action.sum() > -0.5)),
    "categorical": (spaces.Discrete(2), int),
    "multi-categorical": (spaces.MultiDiscrete([2, 3]), lambda action: int(action.sum() % 2)),
    "bernoulli": (spaces.MultiBinary(3), lambda action: int(action.sum() % 2)),
}


def cart_pole(distribution: str, max_episode_steps: int = 12) -> gym.Env:
    """
    Make a CartPole with another action space.

    :param distribution: a key of ``ACTION_SPACES``
    :param max_episode_steps: the pole falls before or after, so that some episodes are terminated, others truncated
    :return: CartPole with another action space, monitored
    """
    action_space, to_cart_pole = ACTION_SPACES[distribution]
    env = gym.make("CartPole-v1", max_episode_steps=max_episode_steps)
    return Monitor(TransformAction(env, to_cart_pole, action_space))


def cart_poles(distribution: str, n_envs: int, vec_env: type[VecEnv] = DummyVecEnv) -> VecEnv:
    """
    Make several CartPoles.

    :param distribution: a key of ``ACTION_SPACES``
    :param n_envs: how many
    :param vec_env: what steps them
    :return: the environments, whose episodes have different lengths
    """
    return vec_env([lambda i=i: cart_pole(distribution, 12 + i) for i in range(n_envs)])  # type: ignore[call-arg]


WRAPPERS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "plain": lambda env: env,
    "normalized": VecNormalize,
    "normalized observations": lambda env: VecNormalize(env, norm_reward=False, clip_obs=0.5),
    "normalized rewards": lambda env: VecNormalize(env, norm_obs=False, gamma=0.9),
    "frozen statistics": lambda env: VecNormalize(env, training=False),
    "stacked": lambda env: VecFrameStack(env, 3),
    "stacked and normalized": lambda env: VecFrameStack(VecNormalize(env), 3),
    "normalized and stacked": lambda env: VecNormalize(VecFrameStack(env, 3)),
    "monitored": VecMonitor,
}


class OwnBuffer(RolloutBuffer):
    """A rollout buffer of a class of its own, which only SB3's loop fills."""


# Arguments with which a model of plain networks takes one path or the other.
PATHS: dict[str, dict[str, Any]] = {"fast path": {}, "SB3's loop": {"rollout_buffer_class": OwnBuffer}}
paths = pytest.mark.parametrize("path", PATHS)


class Faulty(gym.Wrapper):
    """
    An environment that goes wrong at one step of its life.

    :param env: to go wrong
    :param fault: ``observation``, ``reward``, or ``last observation``, which also truncates the episode
    :param step: the number of the step, from 1
    :param value: that is given instead
    """

    def __init__(self, env: gym.Env, fault: str, step: int, value: float = np.nan) -> None:
        super().__init__(env)
        self.fault, self.value, self.steps_left = fault, value, step

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps_left -= 1
        if self.steps_left == 0 and self.fault == "reward":
            reward = self.value
        elif self.steps_left == 0:
            obs = np.array(obs)
            obs[1] = self.value
            terminated, truncated = False, self.fault == "last observation"
        return obs, reward, terminated, truncated, info
