"""
One run of ``sb3-trpo train``, whose parts are timed in its own process: ``python -m speed.timed_run REQUEST``.

Nothing that takes time is imported before the clock is set: how long imports take is one of the questions.
"""

import builtins
import importlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from speed.stopwatch import Stopwatch

IMPORTS = "start-up: Python and imports"
SET_UP = "set-up: hyperparameters and model"
ENVIRONMENTS = "making environments"
ROLLOUTS = "rollouts"
UPDATES = "updates"
EVALUATIONS = "evaluations"
LOG = "log"
SAVING = "models and checkpoints"
REPORT = "picture and diagnosis"
END = "the end of the process"
REST = "the rest"
PARTS = (IMPORTS, SET_UP, ENVIRONMENTS, ROLLOUTS, UPDATES, EVALUATIONS, LOG, SAVING, REPORT, END, REST)

# What is timed: module, class (or none), name, part. Time in a function that is in the list itself counts for that one
# only: evaluations take place within rollouts.
TIMED = (
    ("sb3_trpo.rl_zoo.resume", "ResumableExperimentManager", "setup_experiment", SET_UP),
    ("sb3_trpo.rl_zoo.resume", "ResumableExperimentManager", "create_envs", ENVIRONMENTS),
    ("sb3_trpo.trpo", "TRPO", "collect_rollouts", ROLLOUTS),
    ("sb3_trpo.trpo", "TRPO", "train", UPDATES),
    ("stable_baselines3.common.callbacks", "", "evaluate_policy", EVALUATIONS),
    ("sb3_trpo.rl_zoo.report", "", "evaluate_policy", EVALUATIONS),
    ("stable_baselines3.common.logger", "Logger", "dump", LOG),
    ("stable_baselines3.common.base_class", "BaseAlgorithm", "save", SAVING),
    ("sb3_trpo.checkpoints.checkpoint", "Checkpoint", "_write", SAVING),
    ("sb3_trpo.rl_zoo.report", "", "draw_learning_curve", REPORT),
    ("sb3_trpo.rl_zoo.report", "", "print_diagnosis", REPORT),
)


def time_imports(watch: Stopwatch) -> None:
    """
    Time every import of the main thread from now on, also those in the middle of the run.

    :param watch: the clock, which other threads would confuse
    """
    plain, main = builtins.__import__, threading.get_ident()
    timed = watch.timed(plain, IMPORTS)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (timed if threading.get_ident() == main else plain)(*args, **kwargs)

    builtins.__import__ = call


def time_functions(watch: Stopwatch) -> None:
    """
    Time the functions of ``TIMED``.

    :param watch: the clock
    """
    for module, owner_name, name, part in TIMED:
        owner = importlib.import_module(module)
        if owner_name:
            owner = getattr(owner, owner_name)
        setattr(owner, name, watch.timed(getattr(owner, name), part))


def main(begun: float, arguments: list[str], path: str) -> None:
    """
    Train, and write the seconds of each part, and when that was.

    :param begun: when this process was started, in seconds since the epoch
    :param arguments: of ``sb3-trpo``
    :param path: of the file to write
    """
    watch = Stopwatch()
    watch.seconds[IMPORTS] = time.time() - begun
    time_imports(watch)
    cli = importlib.import_module("sb3_trpo.cli")
    time_functions(watch)
    cli.main(arguments)
    Path(path).write_text(json.dumps({"seconds": watch.seconds, "ended": time.time()}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
