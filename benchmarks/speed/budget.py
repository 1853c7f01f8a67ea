"""
Measure where the time of `make train` goes, from the start of its process to the end.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speed.run import Run
from speed.timed_run import END, PARTS, REST
from speed.workload import TASK

N_TIMESTEPS = 200_000
# A short training of a small task, to try out the code.
QUICK_TASK, QUICK_TIMESTEPS = "Pendulum-v1", 2000


def arguments_of(run: Run, folder: Path) -> list[str]:
    """
    Write the command that `make train` runs.

    :param run: the threads and sizes
    :param folder: of the logs
    :return: the arguments of ``sb3-trpo``
    """
    task, n_timesteps = run.pick((TASK, N_TIMESTEPS), (QUICK_TASK, QUICK_TIMESTEPS))
    options = {
        "env": task,
        "seed": 0,
        "n-timesteps": n_timesteps,
        "n-eval-envs": 5,
        "device": run.device,
        "num-threads": run.threads,
        "log-folder": folder,
        "tensorboard-log": folder / "tensorboard",
        "verbose": 0,
    }
    return ["train", *(text for name, value in options.items() for text in (f"--{name}", str(value))), "--progress"]


def budget(run: Run) -> dict[str, Any]:
    """
    Train once in a process of its own, whose parts are timed there and whose whole is timed here.

    :param run: the threads and sizes
    :return: the seconds of each part, and what was trained
    """
    with tempfile.TemporaryDirectory(prefix="budget-") as folder:
        arguments = arguments_of(run, Path(folder))
        path = Path(folder) / "seconds.json"
        # Where this process found its modules, the other one should.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment["OMP_NUM_THREADS"] = str(run.threads)
        begun = time.time()
        request = json.dumps({"begun": begun, "arguments": arguments, "path": str(path)})
        command = [sys.executable, "-m", "speed.timed_run", request]
        subprocess.run(command, capture_output=True, check=True, env=environment, cwd=folder)
        ended = time.time()
        timed = json.loads(path.read_text())
    seconds = {**timed["seconds"], END: ended - timed["ended"]}
    seconds[REST] = ended - begun - sum(seconds.values())
    task, n_timesteps = (arguments[arguments.index(name) + 1] for name in ("--env", "--n-timesteps"))
    return {
        "seconds": {part: seconds.get(part, 0.0) for part in PARTS},
        "task": task,
        "timesteps": int(n_timesteps),
    }
