"""
Measure updates on an Atari game beside sb3-contrib's TRPO: seconds, memory and KL, with the same hyperparameters.

    python benchmarks/atari.py [--game PongNoFrameskip-v4] [--updates 3] [--algorithms sb3_trpo sb3_contrib]

The hyperparameters are those of the entry ``atari`` that this package ships, but that actor and critic share their
features, for sb3-contrib's knows no other way. Each algorithm runs in a process of its own, with one thread.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import rl_zoo3
import sb3_contrib
import torch as th
from speed.images import memory, reset_peak

import sb3_trpo
from sb3_trpo.rl_zoo.report import ReportingExperimentManager

ALGORITHMS: dict[str, Any] = {"sb3_trpo": sb3_trpo.TRPO, "sb3_contrib": sb3_contrib.TRPO}
COLUMNS = ("seconds", "cpu_seconds", "extra_mib", "rollout_mib", "kl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--game", default="PongNoFrameskip-v4")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--measure", action="store_true", help="the first algorithm, in this process, printing JSON")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.algorithms[0], args.game, args.updates)))
        return
    print("algorithm, update: " + ", ".join(COLUMNS))
    for name in args.algorithms:
        for i, row in enumerate(measure_apart(name, args.game, args.updates), start=1):
            print(f"{name}, {i}: " + ", ".join(f"{row[column]:.4g}" for column in COLUMNS), flush=True)


def measure_apart(name: str, game: str, n_updates: int) -> list[dict[str, float]]:
    """
    ``measure`` in a process of its own.
    """
    command = [sys.executable, __file__, "--measure", "--algorithms", name, "--game", game, "--updates", str(n_updates)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, game: str, n_updates: int) -> list[dict[str, float]]:
    """
    Measure updates of one algorithm on a game.

    :param name: of an algorithm
    :param game: of Atari
    :param n_updates: how many
    :return: for each update its seconds, those that the processor worked on it, the memory in MiB that ``train()`` took
        at its peak above what the process had before, the size of the rollout's observations in MiB, and KL as it was
        logged
    """
    rows: list[dict[str, float]] = []
    algorithm = ALGORITHMS[name]

    class Measured(algorithm):  # type: ignore[valid-type, misc]
        def train(self) -> None:
            reset_peak()
            start, cpu_start, before = time.perf_counter(), time.process_time(), memory("VmRSS")
            super().train()
            rows.append(
                {
                    "seconds": time.perf_counter() - start,
                    "cpu_seconds": time.process_time() - cpu_start,
                    "extra_mib": memory("VmHWM") - before,
                    "rollout_mib": self.rollout_buffer.observations.nbytes / 2**20,
                    "kl": float(self.logger.name_to_value["train/kl_divergence_loss"]),
                }
            )

    th.set_num_threads(1)
    rl_zoo3.ALGOS["trpo"] = Measured
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        manager = ReportingExperimentManager(
            argparse.Namespace(),
            "trpo",
            game,
            folder,
            eval_freq=-1,
            log_interval=-1,
            seed=0,
            device="cpu",
            verbose=0,
            hyperparams={"policy_kwargs": {"share_features_extractor": True}},
        )
        experiment = manager.setup_experiment()
        assert experiment is not None
        model: Any = experiment[0]
        manager.n_timesteps = n_updates * model.n_steps * model.n_envs
        manager.learn(model)
    return rows


if __name__ == "__main__":
    main()
