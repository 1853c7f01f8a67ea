"""
Runs that compare an algorithm with its PPO twin: the same environments, the same steps, the same seeds.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from campaign.provenance import provenance
from campaign.tables import table
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

RESULTS = Path(__file__).parent / "results"
# Episodes whose mean return is to reach the level: CartPole's have up to 500 steps, so that more would take too long.
WINDOW = 20
# Seeds of a complete cell of the table.
SEEDS = range(5)


@dataclass(frozen=True)
class Task:
    """
    A task for all algorithms alike.

    :param make: the function that makes an environment
    :param steps: the environment steps of a training, in all environments together
    :param level: the mean return over ``WINDOW`` training episodes whose first time is noted
    :param n_envs: the number of environments
    :param normalize: whether VecNormalize is around them
    """

    make: Callable[[], gym.Env[Any, Any]]
    steps: int
    level: float
    n_envs: int = 8
    normalize: bool = False


# Makes an algorithm from environments, seed and the task's name.
Maker = Callable[[VecEnv, int, str], BaseAlgorithm]


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


def run(path: Path, task: Task, maker: Callable[[VecEnv], BaseAlgorithm], seed: int) -> dict[str, Any]:
    """
    Train once, and keep every episode's return.

    :param path: the file of the result
    :param task: the task
    :param maker: the function that makes the algorithm
    :param seed: the seed of the environments
    :return: the result
    """
    th.set_num_threads(1)
    env: VecEnv = make_vec_env(task.make, task.n_envs, seed=seed)
    model = maker(VecNormalize(env) if task.normalize else env)
    recorder, start = EpisodeRecorder(), (time.perf_counter(), time.process_time())
    model.learn(task.steps, callback=recorder)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    env.close()
    names = dict(zip(("task", "algorithm"), path.parts[-3:-1], strict=True))
    result = {
        **names,
        "seed": seed,
        "steps": model.num_timesteps,
        "level": task.level,
        "mean_of_last_tenth": last_tenth(recorder.episodes, task.steps),
        "seconds": round(seconds[0], 1),
        "processor_seconds": round(seconds[1], 1),
        "episodes": recorder.episodes,
        **provenance(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result) + "\n")
    temporary.replace(path)
    return result


def last_tenth(episodes: Sequence[tuple[int, float]], steps: int) -> float | None:
    """
    Average the returns at the end of a training.

    :param episodes: the steps at each episode's end, and its return
    :param steps: the steps of the training
    :return: the mean over the episodes that ended in the last tenth; None if none did
    """
    last = [value for at, value in episodes if at > 0.9 * steps]
    return float(np.mean(last)) if last else None


def steps_to(episodes: Sequence[tuple[int, float]], level: float, window: int = WINDOW) -> int | None:
    """
    Find when a mean over episodes first reached a level.

    :param episodes: the steps at each episode's end, and its return
    :param level: the mean return
    :param window: the number of episodes that the mean is over
    :return: the steps; None if it never did
    """
    returns = np.array([value for _, value in episodes])
    for end in range(window, len(returns) + 1):
        if returns[end - window : end].mean() >= level:
            return int(episodes[end - 1][0])
    return None


def twin_table(folder: Path) -> str:
    """
    List each task and algorithm: the return at the end, and the steps to the level.

    :param folder: the folder of the raw files, ``TASK/ALGORITHM/SEED.json``
    :return: the table, in Markdown; empty without runs
    """
    lines = []
    for algorithm in sorted(folder.glob("*/*/")):
        runs = [json.loads(path.read_text()) for path in sorted(algorithm.glob("*.json"))]
        if not runs:
            continue
        ends = np.array([values["mean_of_last_tenth"] for values in runs], dtype=float)
        reached = [steps_to(values["episodes"], values["level"]) for values in runs]
        median = float(np.median([np.inf if at is None else at for at in reached]))
        steps = f"{median:,.0f}" if np.isfinite(median) else "–"
        n_seeds = str(len(runs)) if len(runs) >= len(SEEDS) else f"**{len(runs)} of {len(SEEDS)}**"
        spread = f" ± {ends.std(ddof=1):.2f}" if len(runs) > 1 else ""
        lines.append(
            [
                f"{algorithm.parent.name}, {runs[0]['steps']:,} steps",
                algorithm.name,
                n_seeds,
                f"{ends.mean():.2f}{spread}",
                f"{ends.min():.2f} to {ends.max():.2f}",
                f"{runs[0]['level']:g}: {steps} ({sum(at is not None for at in reached)} of {len(runs)})",
                f"{np.median([values['processor_seconds'] for values in runs]):.0f} s",
            ]
        )
    header = ["task", "algorithm", "seeds", "return at the end", "over seeds", "steps to", "processor time"]
    return table(header, lines) if lines else ""


def main(description: str | None, folder: str, tasks: Mapping[str, Task], algorithms: Mapping[str, Maker]) -> None:
    """
    Run what is asked for on the command line and not there yet, one run after the other.

    :param description: the text of ``--help``
    :param folder: the name of the campaign
    :param tasks: the tasks by name
    :param algorithms: the algorithms by name
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=tasks)
    parser.add_argument("--algos", nargs="+", default=list(algorithms), choices=algorithms)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS / folder)
    options = parser.parse_args()
    for task in options.tasks:
        for seed in options.seeds:
            for name in options.algos:
                path = options.out / task / name / f"{seed}.json"
                if path.exists():
                    continue
                maker = algorithms[name]
                result = run(path, tasks[task], lambda env, s=seed, t=task, m=maker: m(env, s, t), seed)  # type: ignore[misc]
                print(
                    f"{task}, {name}, seed {seed}: {result['mean_of_last_tenth']} in {result['seconds']} s", flush=True
                )
    print(twin_table(options.out))
