"""
Train with one part of the algorithm taken out, replaced or added, and all else as it is.

    python benchmarks/ablations.py --tasks HalfCheetah-v5 Hopper-v5 --seeds 0-2

Works as learning.py does, whose results are the reference ("full"): finished runs are never repeated, a stopped
campaign goes on with the same command.
"""

from argparse import ArgumentParser, Namespace

from campaign import command_line
from campaign.learning_run import PROTOCOL
from campaign.plan import SEEDS_OF_STUDIES
from campaign.specification import RunSpecification

TASKS = ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5")
# Classes of campaign.variants: a part of the algorithm is another one.
CLASSES = ("gradient_direction", "full_step", "fixed_step", "sampled_actions")
# Hyperparameters: a part is off, or an option is on.
SETTINGS = (
    "gae_lambda=1.0",
    "preconditioner=null",
    "cg_warm_start=true",
    "adaptive_kl=true",
    "ent_coef=0.001",
    "max_grad_norm=0.5",
    "min_std=0.0",
    "max_std=null",
    "noise_correlation=0.5",
    # Without an average at the end, with and without a horizon that grows (HalfCheetah's and Ant's does not).
    "callback=null",
    "callback=sb3_trpo.PolicyAverage",
)


def make_runs(options: Namespace) -> list[RunSpecification]:
    """
    List the runs of this campaign.

    :param options: the command line's
    :return: the runs
    """
    runs = []
    for seed in options.seeds:
        for task in options.tasks:
            for algo in CLASSES:
                runs.append(command_line.specify(options, "learning", PROTOCOL, algo, task, seed))
            for setting in SETTINGS:
                change = [setting]
                runs.append(
                    command_line.specify(options, "learning", PROTOCOL, "sb3_trpo", task, seed, change, label=setting)
                )
    return runs


def make_parser() -> ArgumentParser:
    return command_line.parser(__doc__, "benchmarks/results/ablations", TASKS, SEEDS_OF_STUDIES)


if __name__ == "__main__":
    command_line.main(make_runs, make_parser().parse_args())
