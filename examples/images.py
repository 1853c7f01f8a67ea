"""
Learn from images, in an environment of one's own: move to the side on which the screen is bright.
"""

import os

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO

STEPS = int(os.environ.get("STEPS", "20_000"))


class BrightSide(gym.Env):
    """One of two sides is bright; the reward is 1 for choosing it. An episode has 20 choices."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_choices = 0
        return self.draw(), {}

    def step(self, action):
        reward = float(action == self.side)
        self.n_choices += 1
        return self.draw(), reward, False, self.n_choices == 20, {}

    def draw(self):
        self.side = self.np_random.integers(2)
        screen = self.np_random.integers(0, 100, (36, 36, 1), dtype=np.uint8)
        screen[:, 18 * self.side : 18 * (self.side + 1)] += 100
        return screen


# Images are stored as uint8, divided by 255 for the network, and turned to channels first, all by SB3.
env = make_vec_env(BrightSide, n_envs=4, seed=0)
model = TRPO("CnnPolicy", env, n_steps=64, batch_size=64, n_critic_updates=4, seed=0, device="cpu", verbose=1)
model.learn(STEPS)
