"""
Runs that compare an algorithm with its PPO twin: the same environments, the same steps, the same seeds.
"""

import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

PACKAGES = ("sb3-trpo", "sb3-contrib", "stable-baselines3", "torch", "gymnasium", "numpy")


class EpisodeRecorder(BaseCallback):
    """Notes every episode of the training: the steps at its end, in all environments together, and its return."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, float(info["episode"]["r"])))
        return True


def run(
    folder: pathlib.Path,
    task: str,
    name: str,
    seed: int,
    steps: int,
    make_env: Callable[[int], VecEnv],
    make_model: Callable[[VecEnv, int], BaseAlgorithm],
) -> None:
    """
    Train once, unless that is done already, and keep every episode's return.

    :param folder: where results are kept
    :param task: the task's name
    :param name: the algorithm's name
    :param seed: of environments and algorithm
    :param steps: environment steps, in all environments together
    :param make_env: makes the environments from a seed
    :param make_model: makes the algorithm from environments and seed
    """
    path = folder / task / name / f"{seed}.json"
    if path.exists():
        return
    th.set_num_threads(1)
    env = make_env(seed)
    model, recorder = make_model(env, seed), EpisodeRecorder()
    start = time.perf_counter()
    model.learn(steps, callback=recorder)
    seconds = time.perf_counter() - start
    env.close()
    last = [value for at, value in recorder.episodes if at > 0.9 * steps]
    result = {
        "task": task,
        "algorithm": name,
        "seed": seed,
        "steps": model.num_timesteps,
        "mean_of_last_tenth": float(np.mean(last)) if last else None,
        "seconds": round(seconds, 1),
        "episodes": recorder.episodes,
        "command": " ".join(pathlib.Path(argument).name for argument in sys.argv),
        "versions": {package: _version(package) for package in PACKAGES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    print(f"{task} {name} seed {seed}: {result['mean_of_last_tenth']} in {seconds:.0f} s", flush=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_table(folder: pathlib.Path, solved: dict[str, float]) -> None:
    """
    Print, for each task and algorithm, the mean return of the last tenth, and the steps to a level.

    :param folder: where results are kept
    :param solved: for each task, the level: a mean return over 50 episodes
    """
    print("| task | algorithm | seeds | mean return of the last tenth (least, most) | steps to the level |")
    print("|---|---|---|---|---|")
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        for algorithm in sorted(path for path in task.iterdir() if path.is_dir()):
            runs = [json.loads(path.read_text()) for path in sorted(algorithm.glob("*.json"))]
            ends = [one["mean_of_last_tenth"] for one in runs if one["mean_of_last_tenth"] is not None]
            reached = [steps_to(one["episodes"], solved[task.name]) for one in runs]
            said = ", ".join("never" if at is None else f"{at:,}" for at in reached)
            print(
                f"| {task.name} | {algorithm.name} | {len(runs)} | {np.mean(ends):.2f} ({min(ends):.2f}, "
                f"{max(ends):.2f}) | {said} |"
            )


def steps_to(episodes: Sequence[Any], level: float, window: int = 50) -> int | None:
    """
    Find when a mean over episodes first reached a level.

    :param episodes: steps and returns
    :param level: the mean return
    :param window: how many episodes the mean is over
    :return: the steps; None if it never did
    """
    returns = np.array([value for _, value in episodes])
    for end in range(window, len(returns) + 1):
        if returns[end - window : end].mean() >= level:
            return int(episodes[end - 1][0])
    return None
