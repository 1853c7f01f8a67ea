"""
What ranks do that are not about to do the same, or do not go on doing the same, and a rank that raises.
"""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from rank_training import SETTINGS, digest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO

RANK = int(os.environ["RANK"])


def learn(*callbacks: Any, n_envs: int = 2, env_seed: int | None = None, steps: int = 256, **kwargs: Any) -> Any:
    """
    Train a small model.

    :param callbacks: the callbacks
    :param n_envs: the number of environments
    :param env_seed: the seed of the environments
    :param steps: the number of steps
    :param kwargs: arguments for TRPO
    :return: the model
    """
    model = TRPO("MlpPolicy", make_vec_env("Pendulum-v1", n_envs, seed=env_seed), **{**SETTINGS, **kwargs})
    return model.learn(steps, list(callbacks))


class Act(BaseCallback):
    """
    Does something at the end of the first rollout, on all ranks.

    :param action: a function of the model; what is False stops training
    """

    runs_on_all_ranks = True

    def __init__(self, action: Callable[[Any], Any]) -> None:
        super().__init__()
        self.action = action
        self.goes_on = True

    def _on_step(self) -> bool:
        return self.goes_on

    def _on_rollout_end(self) -> None:
        self.goes_on = self.action(self.model) is not False


def change_weight(model: Any) -> None:
    """
    Change one weight a little, on the last rank.

    :param model: the model
    """
    if RANK == 1:
        with th.no_grad():
            next(model.policy.parameters()).view(-1)[0] += 1e-7


def change_gamma(model: Any) -> None:
    """
    Change the discount factor on the last rank.

    :param model: the model
    """
    if RANK == 1:
        model.gamma = 0.5


def fail(model: Any) -> None:
    """
    Raise on the last rank.

    :param model: the model
    """
    if RANK == 1:
        raise LookupError("no luck")


CASES: dict[str, Callable[[], Any]] = {
    "other steps": lambda: learn(n_steps=64 + 32 * RANK),
    "other environments": lambda: learn(n_envs=2 + RANK),
    "other schedule": lambda: learn(target_kl=lambda progress: 0.01 + 0.001 * RANK * progress),
    "other total": lambda: learn(steps=256 + RANK),
    "other weight": lambda: learn(Act(change_weight)),
    "other gamma": lambda: learn(Act(change_gamma)),
    "error": lambda: learn(Act(fail)),
    "stop": lambda: learn(Act(lambda _: RANK == 0), steps=2000),
    "alone": lambda: learn(distributed=False),
    "twins": lambda: learn(env_seed=7, seed=None),
}


def leave_seen(folder: Path) -> None:
    """
    Leave what this rank has seen in a folder.

    :param folder: the folder
    """
    seen: dict[str, Any] = {}
    for name, case in CASES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model = case()
                seen[name] = {"digest": digest(model), "steps": model.num_timesteps}
            except Exception as error:
                seen[name] = {"type": type(error).__name__, "text": str(error)}
        seen[name]["warnings"] = [str(warning.message) for warning in caught]
    (folder / f"seen.{RANK}").write_text(json.dumps(seen))
