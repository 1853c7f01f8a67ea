"""
Load every model in a folder, in bounds of time and memory: ``load_hostile.py FOLDER``.

Prints, as JSON, for each file the error, and the growth of the process's memory at its peak, in bytes.
"""

import contextlib
import json
import resource
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import torch as th

from sb3_trpo import TRPO

MAX_SECONDS = 120
MAX_BYTES = 2**30


def outcome(path: Path) -> str:
    """
    Load a model that may mean harm.

    :param path: of a model
    :return: the error of loading it; empty if there is none, and then it has acted and been trained
    """
    try:
        model = TRPO.load(path, device="cpu", trusted=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    # Numbers that are wrong may end in an error; what must not be is a crash of the process, or memory without end.
    with contextlib.suppress(Exception):
        model.predict(model.observation_space.sample())
        model.set_env(model._wrap_env(gym.make("Pendulum-v1")))
        model.n_steps, model.verbose = min(model.n_steps, 128), 0
        model.learn(1)
    return ""


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    outcomes = {path.name: outcome(path) for path in sorted(folder.iterdir())}
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps({"outcomes": outcomes, "growth": growth}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
