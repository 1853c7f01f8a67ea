"""
Train a robot with the hyperparameters of the published results, and save all that is needed to use it.
"""

import os

import sb3_trpo

STEPS = int(os.environ.get("STEPS", "1_000_000"))

model = sb3_trpo.make("HalfCheetah-v5", seed=0, n_timesteps=STEPS, device="cpu", verbose=1)
model.learn()

# The policy has seen normalised observations: the statistics belong to it.
model.save("half_cheetah")
model.get_vec_normalize_env().save("half_cheetah_vecnormalize.pkl")
