"""
Measure how often an update makes the policy worse.

    python benchmarks/monotonic.py --tasks HalfCheetah-v5 --algos sb3_trpo ppo policy_gradient --seeds 0-2

At each stage of training the true return J is measured before and after every update, on the same episodes. Works as
learning.py does: finished runs are never repeated, a stopped campaign goes on with the same command.
"""

from argparse import ArgumentParser, Namespace

from campaign import command_line
from campaign.algorithms import ALGORITHMS
from campaign.improvement_run import PROTOCOL
from campaign.plan import SEEDS_OF_STUDIES
from campaign.specification import RunSpecification

ALGOS = ("sb3_trpo", "ppo", "policy_gradient")


def make_runs(options: Namespace) -> list[RunSpecification]:
    """
    List the runs of this campaign.

    :param options: the command line's
    :return: the runs
    """
    options.stages = sorted(options.stages)
    if min(options.n_updates, options.n_episodes - 1) < 1:
        raise ValueError(
            f"n_updates={options.n_updates} must be at least 1, n_episodes={options.n_episodes} at least 2."
        )
    if options.stages[-1] >= options.steps:
        raise ValueError(f"stages={options.stages} must all lie below steps={options.steps}.")
    return [
        command_line.specify(options, "improvement", PROTOCOL, algo, task, seed)
        for seed in options.seeds
        for algo in options.algos
        for task in options.tasks
    ]


def make_parser() -> ArgumentParser:
    tasks = ("HalfCheetah-v5", "Hopper-v5")
    parser = command_line.parser(__doc__, "benchmarks/results/monotonic", tasks, SEEDS_OF_STUDIES)
    parser.add_argument("--algos", nargs="+", default=list(ALGOS), metavar="ALGO", help=", ".join(ALGORITHMS))
    parser.add_argument("--stages", nargs="+", type=int, default=PROTOCOL["stages"], help="steps of training")
    parser.add_argument("--n-updates", type=int, default=PROTOCOL["n_updates"], help="measured from each stage on")
    parser.add_argument("--n-episodes", type=int, default=PROTOCOL["n_episodes"], help="for one measurement of J")
    return parser


if __name__ == "__main__":
    command_line.main(make_runs, make_parser().parse_args())
