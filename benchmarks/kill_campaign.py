"""
Kill one training a hundred times, at random moments, and compare it with the same training left alone.

    python benchmarks/kill_campaign.py [--kills 100]

Each session is a process that goes on from the last checkpoint until SIGKILL ends it; the last one is left to finish.
Writes ``benchmarks/results/reliability/kill_campaign.json``: how many steps each kill has cost, and whether the end is
that of the training that was left alone, bit for bit: weights, optimizer, statistics of ``VecNormalize``, evaluations,
and episodes in the monitor files.
"""

import argparse
import hashlib
import json
import mmap
import os
import platform
import random
import signal
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.checkpoints import Checkpoint

RESULT = Path(__file__).parent / "results" / "reliability" / "kill_campaign.json"
TASK = "Hopper-v5"
N_ENVS, N_STEPS, EVERY = 4, 128, 2
TOTAL_STEPS = 600_000
# A session is killed when it has used so many seconds of a processor, at most; it does not matter then what else runs.
LONGEST_LIFE = 1.6
COUNTERS = struct.Struct("qqq")


class Shared:
    """Numbers that outlive the process that writes them."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, COUNTERS.size)

    def write(self, started_at: int, steps: int, checkpoint: int) -> None:
        """
        Write the counts.

        :param started_at: steps at the start of the session
        :param steps: done
        :param checkpoint: steps at the last checkpoint
        """
        COUNTERS.pack_into(self.memory, 0, started_at, steps, checkpoint)

    def read(self) -> tuple[int, int, int]:
        return COUNTERS.unpack_from(self.memory, 0)


class Count(BaseCallback):
    """
    A callback that counts steps where another process can read them.

    :param shared: gets the number of steps
    :param checkpoint: whose file is watched
    """

    def __init__(self, shared: Shared, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.shared = shared
        self.checkpoint = checkpoint
        self.started_at = self.saved_at = -1

    def _on_rollout_start(self) -> None:
        # After the checkpoint has been written, or training has gone on from it.
        steps = self.model.num_timesteps
        if self.started_at < 0:
            self.started_at = self.saved_at = steps
        if self.model._n_updates % self.checkpoint.every == 0:
            self.saved_at = steps

    def _on_step(self) -> bool:
        self.shared.write(self.started_at, self.model.num_timesteps, self.saved_at)
        return True


def make_env(folder: Path | None, seed: int, is_training: bool) -> VecNormalize:
    env = make_vec_env(
        TASK,
        N_ENVS if is_training else 1,
        seed=seed,
        monitor_dir=None if folder is None else str(folder),
        monitor_kwargs={"override_existing": not (folder and (folder / "0.monitor.csv").exists())},
    )
    return VecNormalize(env, training=is_training, norm_reward=is_training)


def train(folder: Path, shared: Shared) -> None:
    """
    Train to the end, from the folder's checkpoint if there is one.
    """
    checkpoint = Checkpoint(folder / "checkpoint.zip", EVERY)
    is_resumed = checkpoint.exists()
    if not is_resumed:
        for begun in folder.glob("*.monitor.csv"):
            begun.unlink()
    env = make_env(folder, 1, True)
    evaluation = EvalCallback(
        make_env(None, 2, False), eval_freq=2500, n_eval_episodes=2, verbose=0, log_path=str(folder)
    )
    settings: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 128, "n_critic_updates": 5, "seed": 1}
    model = checkpoint.load(env, device="cpu") if is_resumed else TRPO("MlpPolicy", env, device="cpu", **settings)
    model.learn(TOTAL_STEPS, [evaluation, checkpoint, Count(shared, checkpoint)])
    model.save(folder / "model.zip")
    env.save(str(folder / "vecnormalize.pkl"))
    env.close()


def session(folder: Path, shared: Shared, life: float | None) -> bool:
    """
    Train in a process of its own, which is killed perhaps.

    :param folder: of the run
    :param shared: for its count of steps
    :param life: seconds of a processor until it is killed; None leaves it alone
    :return: whether it has come to the end
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            train(folder, shared)
            code = 0
        finally:
            os._exit(code)
    ended, status = os.waitpid(process, os.WNOHANG if life is not None else 0)
    while ended == 0:
        time.sleep(0.001)
        if processor_time(process) >= (life or 0.0):
            os.kill(process, signal.SIGKILL)
        ended, status = os.waitpid(process, os.WNOHANG)
    if life is None and status != 0:
        raise RuntimeError(f"A session failed ({status}).")
    return status == 0


def processor_time(process: int) -> float:
    """
    Measure the processor time of a process.

    :param process: that has not been waited for
    :return: seconds of a processor that it has used
    """
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def digests(folder: Path) -> dict[str, str]:
    """
    Digest what a run has left.

    :param folder: of a run that has ended
    :return: of each thing that it has produced
    """
    model = TRPO.load(folder / "model.zip", device="cpu")
    optimizer = [x for state in model.policy.optimizer.state_dict()["state"].values() for x in state.values()]
    env = VecNormalize.load(str(folder / "vecnormalize.pkl"), make_vec_env(TASK, N_ENVS))
    normalizers: list[Any] = [env.obs_rms, env.ret_rms]
    statistics = [x for rms in normalizers for x in (rms.mean, rms.var, np.asarray(rms.count))]
    with np.load(folder / "evaluations.npz") as evaluations:
        evaluated = [evaluations[name] for name in sorted(evaluations)]
    # Return and length of episodes; the third column is the time.
    rows = [
        row.rsplit(",", 1)[0]
        for path in sorted(folder.glob("*.monitor.csv"))
        for row in path.read_text().splitlines()[1:]
    ]
    return {
        "weights": _digest([x.numpy().tobytes() for x in model.policy.state_dict().values()]),
        "optimizer": _digest([th.as_tensor(x).numpy().tobytes() for x in optimizer]),
        "VecNormalize": _digest([np.asarray(x).tobytes() for x in statistics]),
        "evaluations": _digest([x.tobytes() for x in evaluated]),
        "episodes": _digest([row.encode() for row in rows]),
    }


def _digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


def campaign(folder: Path, n_kills: int, rng: random.Random) -> dict[str, Any]:
    """
    Kill a training at random moments and go on with it.

    :param folder: of the run
    :param n_kills: at most; fewer if the training has ended before
    :param rng: of the moments
    :return: what the kills have cost
    """
    lost, n_before_first_step, n_while_saving, went_back, checkpoint = [], 0, 0, 0, 0
    start = time.perf_counter()
    for _ in range(n_kills):
        shared = Shared()
        shared.write(-1, -1, -1)
        if session(folder, shared, rng.uniform(0.0, LONGEST_LIFE)):
            break
        started_at, steps, saved_at = shared.read()
        for half_written in folder.glob(".checkpoint.zip.*.tmp"):
            n_while_saving += 1
            half_written.unlink()
        if steps < 0:
            n_before_first_step += 1
            continue
        # A session starts where the last checkpoint was written, or after it.
        went_back += started_at < checkpoint
        checkpoint = saved_at
        lost.append(steps - saved_at)
    n_done = len(lost) + n_before_first_step
    steps_at_last_kill = checkpoint
    session(folder, Shared(), None)
    return {
        "kills": n_done,
        "of_these_before_the_first_step": n_before_first_step,
        "of_these_while_a_checkpoint_was_written": n_while_saving,
        "sessions_that_started_before_the_last_checkpoint": went_back,
        "steps_at_the_last_kill": steps_at_last_kill,
        "steps_lost_per_kill": {"mean": float(np.mean(lost or 0)), "max": max(lost, default=0)},
        "steps_between_checkpoints": EVERY * N_STEPS * N_ENVS,
        "minutes": (time.perf_counter() - start) / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a training again and again, and see what is lost.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    th.set_num_threads(1)
    # What is imported late is imported once, not in each session.
    TRPO("MlpPolicy", make_env(None, 0, True), n_steps=32, batch_size=32, device="cpu").learn(32)
    with tempfile.TemporaryDirectory() as name:
        alone, killed = Path(name, "alone"), Path(name, "killed")
        for folder in (alone, killed):
            folder.mkdir()
        session(alone, Shared(), None)
        result = {
            "task": TASK,
            "steps": TOTAL_STEPS,
            "n_envs": N_ENVS,
            "n_steps": N_STEPS,
            **campaign(killed, args.kills, random.Random(args.seed)),
        }
        expected, found = digests(alone), digests(killed)
    result["same_as_without_kills"] = {name: found[name] == expected[name] for name in expected}
    result["versions"] = {
        "sb3_trpo": sb3_trpo.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "gymnasium": gymnasium.__version__,
        "torch": th.__version__,
        "python": platform.python_version(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
