"""
Train on CartPole, and evaluate on environments with other seeds.
"""

import os

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO

STEPS = int(os.environ.get("STEPS", "50_000"))

env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
model = TRPO("MlpPolicy", env, n_steps=128, target_kl=0.02, seed=0, device="cpu", verbose=1)
model.learn(STEPS)

mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1_000_000), n_eval_episodes=10)
print(f"Return: {mean:.1f} ± {std:.1f}")
