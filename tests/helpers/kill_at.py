"""
A callback that ends its process as a crash does, at a step that the environment variable ``KILL_AT`` names.
"""

import os
import signal

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor


class KillAt(BaseCallback):
    """Does nothing where the variable is not set."""

    def _on_step(self) -> bool:
        if self.num_timesteps >= float(os.environ.get("KILL_AT", "inf")):
            os.kill(os.getpid(), signal.SIGKILL)
        return True


class OwnExtractor(FlattenExtractor):
    """What only a trusted file may name."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) * 2
