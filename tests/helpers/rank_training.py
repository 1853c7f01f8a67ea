"""
Training on several ranks, with the environment variables that torchrun sets: ``rank_training.py FOLDER [FAULT STEP]``.

Each rank leaves what it ended with in the folder. A fault (``raise``, ``kill``, ``hang``, ``stop``) happens on the last
rank after so many steps, unless this is a restart.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO, Checkpoint, GrowingHorizon, PolicyAverage

TOTAL_STEPS = 1000
SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu"}


class Fault(BaseCallback):
    """
    Goes wrong on the last rank.

    :param kind: how; empty for never
    :param step: when, in steps of all ranks
    """

    runs_on_all_ranks = True

    def __init__(self, kind: str, step: int) -> None:
        super().__init__()
        self.kind, self.step = kind, step
        # Of each iteration: sums over ranks and their bytes, conjugate gradient's iterations, tries of the line search.
        self.costs: list[tuple[int, int, float, float]] = []

    def _on_rollout_start(self) -> None:
        ranks, logged = self.model.ranks, self.logger.name_to_value  # type: ignore[attr-defined]
        if not ranks.is_alone and "train/cg_iterations" in logged:
            counts = ranks.n_collectives, ranks.n_bytes
            self.costs.append((*counts, logged["train/cg_iterations"], logged["train/line_search_steps"]))

    def _on_step(self) -> bool:
        ranks = self.model.ranks  # type: ignore[attr-defined]
        is_restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if self.kind and ranks.rank == ranks.size - 1 and self.num_timesteps >= self.step and not is_restart:
            if self.kind == "raise":
                raise ArithmeticError("the fault of this test")
            if self.kind == "hang":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)
        return True


class Count(BaseCallback):
    """Counts the steps at which it is called, as a callback that says nothing of ranks."""

    def _on_step(self) -> bool:
        return True


def digest(model: Any) -> str:
    """
    Summarise a model's parameters.

    :param model: the model
    :return: a text that is the same for the same bits
    """
    content = b"".join(tensor.numpy().tobytes() for tensor in model.policy.state_dict().values())
    return hashlib.sha256(content).hexdigest()


def train(folder: Path, fault: Fault) -> dict[str, Any]:
    """
    Train, or go on with the training of which there is a checkpoint.

    :param folder: the folder for the checkpoint
    :param fault: a callback that may end it
    :return: what it ended with
    """
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    checkpoint = Checkpoint(folder / "checkpoint.zip", every=1)
    model: Any = checkpoint.load(env) if checkpoint.exists() else TRPO("MlpPolicy", env, **SETTINGS)
    count = Count()
    model.learn(TOTAL_STEPS, [GrowingHorizon(), PolicyAverage(0.5), checkpoint, count, fault])
    return {
        "digest": digest(model),
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "gamma": model.gamma,
        "statistics": [env.obs_rms.mean.tolist(), env.obs_rms.var.tolist(), float(env.ret_rms.var)],
        "n_observed": env.obs_rms.count,
        "episodes": [episode["r"] for episode in model.ep_info_buffer],
        "calls": count.n_calls,
        "costs": fault.costs,
        "parameters": [sum(p.numel() for p in model.policy.parameters()), SETTINGS["n_critic_updates"]],
        "logs": len(model.logger.output_formats) > 0,
        "why_reset": checkpoint.why_reset,
    }


def leave_result(folder: Path, fault: Fault) -> None:
    """
    Train, and leave what this rank has ended with in a folder.

    :param folder: the folder
    :param fault: a callback that may end it
    """
    began = time.monotonic()
    place = folder / f"result.{os.environ.get('RANK', '0')}"
    try:
        place.write_text(json.dumps(train(folder, fault)))
    except Exception as error:
        said = {"type": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
        place.write_text(json.dumps(said))
        raise


if __name__ == "__main__":
    th.set_num_threads(1)
    leave_result(Path(sys.argv[1]), Fault(sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else Fault("", 0))
