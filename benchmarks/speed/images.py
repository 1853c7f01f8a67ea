"""
Measure ``train()`` with images: time, and memory in processes of their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import sb3_trpo
from speed.measure import alternate
from speed.quality import direction_quality
from speed.run import Run
from speed.updates import critic_losses, make_ppo_workload
from speed.workload import Setting, Workload, make_workload, resized

ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {
    "sb3_trpo": sb3_trpo.TRPO,
    "sb3-contrib": sb3_contrib.TRPO,
    "PPO": stable_baselines3.PPO,
}
SIDE, FRAMES = 84, 4
N_IMAGES, CHUNK = 1024, 64
GROWING = (1024, 4096, 16384)
CG_MAX_STEPS, N_CRITIC_UPDATES = 15, 10
MIB = 2**20


class Catch(gym.Env):
    """
    A ball falls, a paddle at the bottom can be moved under it: the last four frames, as from an Atari game.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (FRAMES, SIDE, SIDE), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.frames = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
        self.ball, self.drift, self.paddle = np.zeros(2, dtype=int), 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.ball = np.array([0, self.np_random.integers(8, SIDE - 8)])
        self.drift, self.paddle = int(self.np_random.integers(-2, 3)), int(self.np_random.integers(0, SIDE - 12))
        self.frames = np.zeros_like(self.frames)
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle = int(np.clip(self.paddle + 4 * (int(action) - 1), 0, SIDE - 12))
        self.ball = np.array([self.ball[0] + 3, np.clip(self.ball[1] + self.drift, 0, SIDE - 4)])
        landed = bool(self.ball[0] >= SIDE - 8)
        caught = landed and self.paddle - 4 < self.ball[1] < self.paddle + 12
        return self._observation(), float(caught) - 0.5 * landed, landed, False, {}

    def _observation(self) -> np.ndarray:
        frame = np.zeros((SIDE, SIDE), np.uint8)
        frame[self.ball[0] : self.ball[0] + 4, self.ball[1] : self.ball[1] + 4] = 236
        frame[SIDE - 4 :, self.paddle : self.paddle + 12] = 148
        self.frames = np.concatenate([self.frames[1:], frame[np.newaxis]])
        return self.frames.copy()


def images_setting(n_images: int, n_critic_updates: int = N_CRITIC_UPDATES, device: str = "cpu") -> Setting:
    hyperparameters = {
        "n_steps": n_images,
        "batch_size": 128,
        "cg_max_steps": CG_MAX_STEPS,
        "n_critic_updates": n_critic_updates,
        # sb3-contrib's only way, which ours has too.
        "policy_kwargs": {"share_features_extractor": True},
    }
    return Setting(hyperparameters, policy="CnnPolicy", make_env=Catch, device=device)


def images(run: Run) -> dict[str, Any]:
    n_images = run.pick(N_IMAGES, 16)
    setting = images_setting(n_images, run.pick(N_CRITIC_UPDATES, 1), run.device)
    workload = make_workload(setting, run.pick(2, 0))
    updates = {name: _workload_of(name, workload).update(algorithm) for name, algorithm in ALGORITHMS.items()}
    repetitions = run.pick(3 if run.threads == 1 else 2, 1)
    measured = {
        # The slowest takes half a minute: what a warm-up would take out of it is not worth another one.
        "seconds": alternate({name: update.contender for name, update in updates.items()}, repetitions, warm_up=0),
        "quality": direction_quality(workload, CG_MAX_STEPS, run.pick(3, 1)),
        "critic_loss": critic_losses(updates),
        "samples": n_images,
    }
    if run.threads == 1:
        measured["memory"] = {name: memory_of(name, n_images, None, run) for name in ALGORITHMS}
        measured["growing"] = {
            str(n): memory_of("sb3_trpo", n, run.pick(CHUNK, 8), run) for n in run.pick(GROWING, (16, 32))
        }
    return measured


def _workload_of(name: str, workload: Workload) -> Workload:
    return make_ppo_workload(workload, {"n_steps": workload.n_samples}) if name == "PPO" else workload


def memory_of(name: str, n_images: int, chunk: int | None, run: Run) -> dict[str, float]:
    """
    Measure the memory of an update on images.

    :param name: of an algorithm
    :param n_images: of the rollout
    :param chunk: ``fisher_chunk_size``; None leaves it out
    :param run: how
    :return: in MiB, what ``train()`` takes of the device's memory at its peak above what was taken before (``extra``),
        and the size of the rollout (``rollout``); measured in a process of its own
    """
    request = json.dumps({"name": name, "n_images": n_images, "chunk": chunk, "device": run.device})
    command = [sys.executable, "-m", "speed.images", request]
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads)}
    # Where this process found its modules, the other one should.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[1]
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(name: str, n_images: int, chunk: int | None, device: str) -> dict[str, float]:
    """
    See ``memory_of``; in this process.
    """
    # The critic's epochs add nothing to the peak but time; one will do where only memory is asked for.
    small = make_workload(images_setting(min(n_images, 64), 1, device), n_updates=0)
    workload = resized(small, n_images)
    changes = {} if chunk is None else {"fisher_chunk_size": chunk}
    update = _workload_of(name, workload).update(ALGORITHMS[name], **changes)
    update.prepare()
    update.release()
    extra = _gpu_memory_of(update.model.train) if device != "cpu" else memory_of_call(update.model.train)
    return {"extra": extra, "rollout": update.n_bytes / MIB}


def memory_of_call(function: Callable[[], None]) -> float:
    """
    Measure what a call takes.

    :param function: what is called
    :return: in MiB, this process's memory at its peak during the call, less what it was before
    """
    reset_peak()
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before


def _gpu_memory_of(function: Callable[[], None]) -> float:
    th.cuda.reset_peak_memory_stats()
    before = th.cuda.memory_allocated()
    function()
    return (th.cuda.max_memory_allocated() - before) / MIB


def reset_peak() -> None:
    """
    Let the kernel forget this process's largest memory so far (Linux).
    """
    Path("/proc/self/clear_refs").write_text("5")


def memory(key: str) -> float:
    """
    Read a figure of this process's memory.

    :param key: VmRSS for the resident memory of this process, VmHWM for its largest
    :return: MiB
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[key].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure_memory(**json.loads(sys.argv[1]))))
