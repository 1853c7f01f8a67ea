"""
Explore with gSDE: noise that depends on the state, and stays the same for several steps.
"""

import os

from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO

STEPS = int(os.environ.get("STEPS", "100_000"))

env = make_vec_env("Pendulum-v1", n_envs=8, seed=0)
model = TRPO(
    "MlpPolicy",
    env,
    n_steps=128,
    gamma=0.95,
    target_kl=0.02,
    use_sde=True,
    sde_sample_freq=4,  # a new noise matrix every four steps
    seed=0,
    device="cpu",
    verbose=1,
)
model.learn(STEPS)
