"""
Train with one hyperparameter of ours changed, and all else as it is.

    python benchmarks/sensitivity.py --tasks HalfCheetah-v5 Hopper-v5 --seeds 0-2

Works as learning.py does, whose results are the reference: finished runs are never repeated, a stopped campaign goes on
with the same command.
"""

from argparse import ArgumentParser, Namespace

from campaign import command_line
from campaign.learning_run import PROTOCOL
from campaign.plan import SEEDS_OF_STUDIES
from campaign.specification import RunSpecification

TASKS = ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5")
VALUES = {"target_kl": (0.001, 0.01, 0.02, 0.05), "gae_lambda": (0.9, 0.95, 0.99)}


def make_runs(options: Namespace) -> list[RunSpecification]:
    """
    List the runs of this campaign.

    :param options: the command line's
    :return: the runs
    """
    return [
        command_line.specify(options, "learning", PROTOCOL, "sb3_trpo", task, seed, [setting], label=setting)
        for seed in options.seeds
        for setting in settings()
        for task in options.tasks
    ]


def settings() -> list[str]:
    """Return the changes to try, one each, ``key=value``."""
    return [f"{key}={value}" for key, values in VALUES.items() for value in values]


def make_parser() -> ArgumentParser:
    return command_line.parser(__doc__, "benchmarks/results/sensitivity", TASKS, SEEDS_OF_STUDIES)


if __name__ == "__main__":
    command_line.main(make_runs, make_parser().parse_args())
