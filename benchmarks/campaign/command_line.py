"""
The options that the scripts share, and the runs that follow from them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from campaign import overrides
from campaign.algorithms import ALGORITHMS, allowed_keys, read_hyperparameters
from campaign.scheduler import Campaign
from campaign.specification import RunSpecification, command

# Where a run of each kind can be repeated by itself.
SCRIPTS = {"learning": "benchmarks/learning.py", "improvement": "benchmarks/monotonic.py"}


def parser(description: str | None, out: str, tasks: Sequence[str], seeds: Sequence[int]) -> argparse.ArgumentParser:
    """
    Make the parser of a campaign's script.

    :param description: a script's docstring
    :param out: default folder of the results
    :param tasks: default tasks
    :param seeds: default seeds
    :return: a parser with the common options
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--tasks", nargs="+", default=list(tasks), metavar="TASK", help="Gymnasium ids")
    result.add_argument("--seeds", type=parse_seeds, default=list(seeds), help="as in 0-9 or 0,3,7-9")
    result.add_argument("--steps", type=int, default=1_000_000, help="environment steps per run")
    result.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    result.add_argument("--out", type=Path, default=Path(out), help="folder of the results")
    result.add_argument("--vec-env", choices=("dummy", "envpool"), default="dummy", help="training environments")
    result.add_argument("--replace", action="store_true", help="run again what was made with other settings")
    result.add_argument("--dry-run", action="store_true", help="only list the runs and their settings")
    return result


def parse_seeds(text: str) -> list[int]:
    """
    Read seeds as they are typed.

    :param text: numbers and ranges, separated by commas
    :return: the seeds, each once, in this order
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be like 0-9 or 0,3,7-9") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} names no seed")
    return list(dict.fromkeys(seeds))


def specify(
    options: argparse.Namespace,
    kind: str,
    protocol: dict[str, Any],
    algo: str,
    task: str,
    seed: int,
    settings: Sequence[str] = (),
    label: str = "",
) -> RunSpecification:
    """
    Specify one run of a campaign.

    :param options: parsed by ``parser``
    :param kind: of the run
    :param protocol: how it is measured
    :param algo: key of ``ALGORITHMS``
    :param task: Gymnasium id
    :param seed: of the run
    :param settings: changes of hyperparameters, ``key=value``
    :param label: name of these changes
    :return: the run
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"algo={algo!r}: there are {', '.join(ALGORITHMS)}.")
    hyperparams, source = read_hyperparameters(algo, task)
    if settings:
        hyperparams = overrides.apply(hyperparams, settings, allowed_keys(algo))
    changed = {key: value for key, value in vars(options).items() if key in protocol and value != protocol[key]}
    named = {"tasks": task, "algos": algo, "seeds": seed, "steps": options.steps, "set": list(settings), "label": label}
    if options.vec_env != "dummy":
        named["vec_env"] = options.vec_env
    return RunSpecification(
        kind=kind,
        task=task,
        algo=algo,
        seed=seed,
        n_timesteps=options.steps,
        hyperparams=hyperparams,
        protocol={**protocol, **changed},
        vec_env=options.vec_env,
        label=label,
        source=source,
        command=command(SCRIPTS[kind], **named, out=options.out, **changed),
    )


def main(make_runs: Callable[[argparse.Namespace], list[RunSpecification]], options: argparse.Namespace) -> None:
    """
    Work off a script's runs, and end the process with a sentence where something is wrong with the request.

    :param make_runs: the script's runs for its options
    :param options: parsed
    """
    try:
        if options.jobs < 1:
            raise ValueError(f"jobs={options.jobs} must be at least 1.")
        for task in options.tasks:
            check_task(task)
        runs = make_runs(options)
        if options.dry_run:
            for run in runs:
                print(f"{run.name}: {run.source}; {run.hyperparams}")
            sys.exit(0)
        status = Campaign(runs, options.out, options.jobs, options.replace).execute()
    except (ImportError, ValueError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    sys.exit(status)


def check_task(task: str) -> None:
    """
    Make the environment once, so that what is missing is said before a campaign starts.

    :param task: Gymnasium id
    """
    try:
        gym.make(task).close()
    except gym.error.DependencyNotInstalled as error:
        entry_point = str(gym.spec(task).entry_point)
        extra = "box2d" if "box2d" in entry_point else "mujoco"
        raise ImportError(f"task={task!r} needs a package: `pip install 'sb3-trpo[{extra}]'` ({error}).") from error
    except gym.error.Error as error:
        raise ValueError(f"task={task!r}: {error}") from error
