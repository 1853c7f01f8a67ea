"""
Learn from a dictionary of a vector and an image, with the vector alone normalised.
"""

import os

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO

STEPS = int(os.environ.get("STEPS", "20_000"))

# A walk through a grid, which is seen as a vector and as an image.
env = make_vec_env(lambda: SimpleMultiObsEnv(random_start=False), n_envs=4, seed=0)
env = VecNormalize(env, norm_obs_keys=["vec"])
# The critic has features of its own; features_extractor_kwargs size those of both.
policy_kwargs = {"net_arch": [32], "features_extractor_kwargs": {"cnn_output_dim": 32}}
model = TRPO("MultiInputPolicy", env, n_steps=64, batch_size=64, policy_kwargs=policy_kwargs, seed=0, device="cpu")
model.learn(STEPS)
print(f"Return of the last episodes: {sum(e['r'] for e in model.ep_info_buffer) / len(model.ep_info_buffer):.1f}")
