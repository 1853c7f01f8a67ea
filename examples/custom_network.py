"""
Give the policy a network of one's own: any module of torch, in the trust region without further ado.
"""

import os

import gymnasium as gym
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo import TRPO

STEPS = int(os.environ.get("STEPS", "50_000"))


class Residual(BaseFeaturesExtractor):
    """A layer, and another one that adds to what the first one gives."""

    def __init__(self, observation_space: gym.Space, features_dim: int = 32) -> None:
        super().__init__(observation_space, features_dim)
        self.first = nn.Linear(observation_space.shape[0], features_dim)
        self.second = nn.Sequential(nn.LayerNorm(features_dim), nn.SiLU(), nn.Linear(features_dim, features_dim))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = self.first(observations)
        return features + self.second(features)


policy_kwargs = {"features_extractor_class": Residual, "net_arch": {"pi": [32], "vf": [64, 64]}}
env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
model = TRPO("MlpPolicy", env, n_steps=128, policy_kwargs=policy_kwargs, seed=0, device="cpu", verbose=1)
model.learn(STEPS)
