"""
Evaluate on the way, stop when it is good enough, keep a checkpoint, and watch the trust region.
"""

import os

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO, Checkpoint

STEPS = int(os.environ.get("STEPS", "100_000"))


class LargestKL(BaseCallback):
    """Note the largest KL divergence of an update."""

    largest = 0.0

    def _on_rollout_start(self) -> None:
        self.largest = max(self.largest, self.logger.name_to_value.get("train/kl_divergence_loss", 0.0))

    def _on_step(self) -> bool:
        return True


env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
evaluate = EvalCallback(
    make_vec_env("CartPole-v1", seed=1_000_000),
    callback_on_new_best=StopTrainingOnRewardThreshold(475),
    eval_freq=1000,
    best_model_save_path="best",
)
largest = LargestKL()
model = TRPO("MlpPolicy", env, n_steps=128, target_kl=0.02, seed=0, device="cpu")
model.learn(STEPS, callback=[evaluate, Checkpoint("checkpoint.zip"), largest])
print(f"Steps: {model.num_timesteps}. Largest KL of an update: {largest.largest:.4f}, at most 0.02")
