"""
What several ranks cost: the latency of a sum, the number of sums in an update, and the time of an iteration.

    python benchmarks/distributed.py latency --ranks 2
    python benchmarks/distributed.py scaling --env HalfCheetah-v5
    python benchmarks/distributed.py scaling --env Humanoid-v5
    python benchmarks/distributed.py model

``scaling`` compares two processes that train together with two that train for themselves at the same time, each on one
thread with as many environments: what is more is what the sums take. The two take turns. For figures worth keeping the
machine must do nothing else; the load is in the result. The last line is JSON. ``model`` computes from the files of the
other two, under ``results/distributed``, what more ranks would take.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch as th
import torch.distributed as dist
from campaign.tables import table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.ranks.connected import ConnectedRanks
from sb3_trpo.ranks.joining import join

# Numbers in a vector: a few, those of the critic on HalfCheetah-v5, and on Humanoid-v5.
SIZES = (2, 5_400, 26_500)
N_REPETITIONS = 300
RESULTS = pathlib.Path(__file__).parent / "results" / "distributed"
# Of the model: numbers of ranks, and milliseconds for a message with its answer, besides what was measured here.
SIZES_OF_MODEL = (8, 64, 512)
MESSAGES = (0.02, 1.0)
# What sb3_trpo/shipped/hyperparams/trpo.yml says of sizes; the rest has no part in the time.
TASKS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {"n_envs": 4, "n_steps": 512, "batch_size": 128, "n_critic_updates": 10},
    "Humanoid-v5": {"n_envs": 4, "n_steps": 512, "batch_size": 128, "n_critic_updates": 10},
    "Pendulum-v1": {"n_envs": 2, "n_steps": 128, "batch_size": 128, "n_critic_updates": 2},
}


class Clock(BaseCallback):
    """Notes when each rollout begins, and how many sums there have been."""

    runs_on_all_ranks = True

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.sums: list[int] = []
        self.bytes: list[int] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        ranks = self.model.ranks  # type: ignore[attr-defined]
        self.times.append(time.perf_counter())
        self.sums.append(ranks.n_collectives if isinstance(ranks, ConnectedRanks) else 0)
        self.bytes.append(ranks.n_bytes if isinstance(ranks, ConnectedRanks) else 0)


def differences(numbers: list[Any]) -> list[Any]:
    """
    Subtract from each number the one before.

    :param numbers: the numbers
    :return: the differences, one less
    """
    return [later - earlier for earlier, later in itertools.pairwise(numbers)]


def iterate(task: str, n_iterations: int) -> dict[str, Any]:
    """
    Train, in this process, for a few iterations.

    :param task: one of ``TASKS``
    :param n_iterations: the number of iterations; the first is not counted
    :return: medians per iteration: milliseconds, sums and bytes; a hash of the parameters at the end
    """
    settings = dict(TASKS[task])
    env = VecNormalize(make_vec_env(task, settings.pop("n_envs")))
    clock = Clock()
    model = TRPO("MlpPolicy", env, **settings, seed=0, device="cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    model.learn((n_iterations + 1) * model.n_steps * env.num_envs * size, clock)
    seconds = differences(clock.times)[1:]
    return {
        "milliseconds": 1e3 * statistics.median(seconds),
        "sums": statistics.median(differences(clock.sums)[1:]),
        "bytes": statistics.median(differences(clock.bytes)[1:]),
        "parameters": hash_of(model.policy.state_dict()),
    }


def hash_of(tensors: Mapping[str, th.Tensor]) -> str:
    """
    Compute a hash of tensors.

    :param tensors: the tensors, by name
    :return: the hash
    """
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()


def measure_latency() -> dict[str, Any]:
    """
    Time sums of this process with the others.

    :return: microseconds, by the way and the number of numbers
    """
    ranks = join(th.device("cpu"))
    assert isinstance(ranks, ConnectedRanks)
    found: dict[str, Any] = {}
    for size in SIZES:
        vector = th.ones(size)
        for name, add in (("pairs", lambda v: ranks.sum(v)), ("gloo", lambda v: dist.all_reduce(v))):
            times = []
            for _ in range(N_REPETITIONS):
                began = time.perf_counter()
                add(vector)
                times.append(time.perf_counter() - began)
            microseconds = {"median": 1e6 * statistics.median(times), "least": 1e6 * min(times)}
            found[f"{name}, {size} numbers"] = {key: round(value, 1) for key, value in microseconds.items()}
    return found


def run(worker: list[str], n_processes: int, *, together: bool) -> list[dict[str, Any]]:
    """
    Run this script in several processes at once.

    :param worker: its arguments
    :param n_processes: the number of processes
    :param together: whether they are ranks of one training
    :return: what each has found
    """
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(n_processes):
        variables = {"OMP_NUM_THREADS": "1"}
        if together:
            variables |= {"RANK": str(rank), "WORLD_SIZE": str(n_processes)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, __file__, *worker, "--worker"]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
        processes.append(process)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process has failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Compare ranks with processes that train for themselves.

    :param arguments: the command's
    :return: the figures
    """
    worker = ["scaling", "--env", arguments.env, "--iterations", str(arguments.iterations)]
    rounds: dict[str, list[float]] = {"apart": [], "together": []}
    sums = {}
    for _ in range(arguments.rounds):
        for name, times in rounds.items():
            results = run(worker, arguments.ranks, together=name == "together")
            times.append(max(result["milliseconds"] for result in results))
            sums = {key: results[0][key] for key in ("sums", "bytes")}
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    efficiency = medians["apart"] / medians["together"]
    return {"env": arguments.env, "milliseconds": rounds, "efficiency": efficiency, **sums}


def model() -> str:
    """
    Compute the time of an iteration on more ranks, from the files of ``latency`` and ``scaling``.

    :return: the table, in Markdown
    """
    latency = json.loads((RESULTS / "latency.json").read_text())
    least, _, most = (1e-3 * latency[f"pairs, {size} numbers"]["median"] for size in SIZES)
    milliseconds_per_byte = (most - least) / (4 * (SIZES[-1] - SIZES[0]))
    lines = []
    for path in sorted(RESULTS.glob("scaling-*.json")):
        measured = json.loads(path.read_text())
        alone = statistics.median(measured["milliseconds"]["apart"])
        n_sums, n_bytes = measured["sums"], measured["bytes"]
        cells = [measured["env"], f"{alone:.0f}", f"{n_sums:.0f}", f"{n_bytes / 1e6:.1f}"]
        for message in (least, *MESSAGES):
            for size in SIZES_OF_MODEL:
                exchanges = (size - 1).bit_length()
                total = alone + exchanges * (n_sums * message + n_bytes * milliseconds_per_byte)
                cells.append(f"{total:.0f} ({100 * alone / total:.0f}%)")
        lines.append(cells)
    header = ["task", "one rank, ms", "sums", "MB"]
    for message in (least, *MESSAGES):
        header += [f"{size} ranks, {message:.2g} ms a message" for size in SIZES_OF_MODEL]
    return table(header, lines)


def leave(found: dict[str, Any], path: pathlib.Path | None) -> None:
    """
    Print what was found, in one line, and write it into a file.

    :param found: the figures
    :param path: the file; None for none
    """
    text = json.dumps(found)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    print(text)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=("latency", "scaling", "model"))
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--env", choices=TASKS, default="HalfCheetah-v5")
    parser.add_argument("--iterations", type=int, default=10, help="of each process, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="a file for the result")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "model":
        print(model())
        return
    th.set_num_threads(1)
    if arguments.worker:
        is_latency = arguments.what == "latency"
        print(json.dumps(measure_latency() if is_latency else iterate(arguments.env, arguments.iterations)))
        return
    load = os.getloadavg()[0]
    found = run(["latency"], arguments.ranks, together=True)[0] if arguments.what == "latency" else compare(arguments)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "load before": load}
    leave({"ranks": arguments.ranks, **machine, "torch": th.__version__, **found}, arguments.output)


if __name__ == "__main__":
    main()
