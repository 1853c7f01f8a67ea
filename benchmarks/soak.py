"""
Train on a cheap task for long, and see that memory, open files and threads stay what they are after the warm-up.

    python benchmarks/soak.py [--steps 10000000]

Writes ``benchmarks/results/reliability/soak.json``: what was measured every so many steps, and whether it is flat. The
speed is reported, not judged, by the clock and by the processor's time: the first depends on whatever else runs on the
machine, the second less so.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import sb3_trpo
from sb3_trpo import TRPO

RESULT = Path(__file__).parent / "results" / "reliability" / "soak.json"
TASK = "CartPole-v1"
N_ENVS = 16
N_STEPS = 128
# Of all steps; what comes before fills caches, pools and the queues of recent episodes.
WARM_UP = 0.1
# MiB per million steps. SB3's Monitor keeps three numbers of every episode, which comes to about 0.2 on this task.
MAX_GROWTH = 1.0


class Gauge(BaseCallback):
    """
    Notes the process's resources at the end of rollouts.

    :param interval: steps between two notes
    """

    # Rollouts take the same way as without it.
    def __init__(self, interval: int) -> None:
        super().__init__()
        self.interval = interval
        self.notes: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.start, self.processor_start = time.perf_counter(), time.process_time()

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self.interval * (len(self.notes) + 1):
            seconds = {
                "seconds": time.perf_counter() - self.start,
                "processor_seconds": time.process_time() - self.processor_start,
            }
            self.notes.append({"steps": self.num_timesteps, **seconds, **resources()})
            print(json.dumps(self.notes[-1]), flush=True)

    def _on_step(self) -> bool:
        return True


def resources() -> dict[str, Any]:
    """Return resident memory in MiB, open files and threads of this process."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }


def judge(notes: list[dict[str, Any]], total_steps: int) -> dict[str, Any]:
    """
    Judge whether anything grows.

    :param notes: of the whole training
    :param total_steps: its length
    :return: growth after the warm-up, and whether there is none
    """
    after = [note for note in notes if note["steps"] >= WARM_UP * total_steps]
    steps = np.array([note["steps"] for note in after]) / 1e6
    growth = float(np.polyfit(steps, [note["memory_mib"] for note in after], 1)[0])
    is_flat = {
        "memory": growth <= MAX_GROWTH,
        "files": len({note["files"] for note in after}) == 1,
        "threads": len({note["threads"] for note in after}) == 1,
    }
    return {
        "memory_growth_mib_per_million_steps": growth,
        "memory_growth_allowed": MAX_GROWTH,
        "steps_per_second": speed(after, "seconds"),
        "steps_per_second_of_the_processor": speed(after, "processor_seconds"),
        "is_flat": is_flat,
    }


def speed(notes: list[dict[str, Any]], clock: str) -> dict[str, float]:
    """
    Measure the speed at the beginning, in the middle and at the end.

    :param notes: after the warm-up
    :param clock: ``seconds`` or ``processor_seconds``
    :return: the median speed in each third
    """
    speeds = np.diff([note["steps"] for note in notes]) / np.diff([note[clock] for note in notes])
    names = ("first_third", "second_third", "last_third")
    return {name: float(np.median(part)) for name, part in zip(names, np.array_split(speeds, 3), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train for long, and see whether memory and files grow.")
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    th.set_num_threads(1)
    env = make_vec_env(TASK, N_ENVS, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, n_critic_updates=5, seed=0, device="cpu")
    gauge = Gauge(args.steps // 100)
    model.learn(args.steps, gauge)
    episodes = [info["r"] for info in model.ep_info_buffer or []]
    result = {
        "task": TASK,
        "n_envs": N_ENVS,
        "n_steps": N_STEPS,
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "minutes": gauge.notes[-1]["seconds"] / 60,
        "return_of_last_episodes": float(np.mean(episodes)),
        **judge(gauge.notes, args.steps),
        "versions": {
            "sb3_trpo": sb3_trpo.__version__,
            "stable_baselines3": stable_baselines3.__version__,
            "torch": th.__version__,
            "python": platform.python_version(),
        },
        "notes": gauge.notes,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "notes"}, indent=1))


if __name__ == "__main__":
    main()
