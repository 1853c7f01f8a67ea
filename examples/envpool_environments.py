"""
Step many environments at once, in C++ (pip install '.[envpool]', Python 3.11 or newer).
"""

import os
import time

from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO, make_envpool_vec_env

STEPS = int(os.environ.get("STEPS", "200_000"))

env = VecNormalize(make_envpool_vec_env("HalfCheetah-v5", 16, 0), gamma=0.99)
model = TRPO("MlpPolicy", env, n_steps=128, target_kl=0.03, gae_lambda=0.8, seed=0, device="cpu")
start = time.perf_counter()
model.learn(STEPS)
print(f"{model.num_timesteps / (time.perf_counter() - start):.0f} steps per second, updates included")
