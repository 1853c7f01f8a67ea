"""
Train in two workers of Ray Train. After a crash Ray starts them again, and training goes on from the last checkpoint.
"""

import os
import pathlib
import shutil
import tempfile

import ray.train
from ray.train.torch import TorchTrainer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO, Checkpoint

STEPS = int(os.environ.get("STEPS", "50_000"))


class Report(BaseCallback):
    """Hands each new checkpoint to Ray, which keeps it. All workers report, the first with the file."""

    runs_on_all_ranks = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint

    def _on_rollout_start(self) -> None:
        if self.model._n_updates % self.checkpoint.every == 0:
            is_first = ray.train.get_context().get_world_rank() == 0
            folder = ray.train.Checkpoint.from_directory(self.checkpoint.path.parent) if is_first else None
            ray.train.report({"steps": self.num_timesteps}, checkpoint=folder)

    def _on_step(self) -> bool:
        return True


def train() -> None:
    checkpoint = Checkpoint(pathlib.Path(tempfile.mkdtemp()) / "checkpoint.zip", every=5)
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            shutil.copy(pathlib.Path(folder) / "checkpoint.zip", checkpoint.path)
    env = make_vec_env("CartPole-v1", n_envs=4)
    model = checkpoint.load(env) if checkpoint.exists() else TRPO("MlpPolicy", env, n_steps=32, seed=0, device="cpu")
    model.learn(STEPS, [checkpoint, Report(checkpoint)])


if __name__ == "__main__":
    workers = ray.train.ScalingConfig(num_workers=2)
    run = ray.train.RunConfig(
        storage_path=str(pathlib.Path("ray_results").resolve()),
        failure_config=ray.train.FailureConfig(max_failures=3),
    )
    result = TorchTrainer(train, scaling_config=workers, run_config=run).fit()
    print(f"The last checkpoint, after {result.metrics['steps']} steps: {result.checkpoint}")
