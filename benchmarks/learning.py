"""
Train for the learning curves: tasks x algorithms x seeds.

    python benchmarks/learning.py --tasks HalfCheetah-v5 Ant-v5 --algos sb3_trpo ppo --seeds 0-9

Finished runs are never repeated and a stopped campaign goes on with the same command. `--set` and `--label` make runs
with other hyperparameters:

    python benchmarks/learning.py --algos sb3_trpo --seeds 100-102 --set target_kl=0.05 --label kl.05 --out /tmp/tuning
"""

from argparse import ArgumentParser, Namespace

from campaign import command_line
from campaign.algorithms import ALGORITHMS
from campaign.learning_run import PROTOCOL
from campaign.plan import MUJOCO_TASKS, SEEDS_OF_OURS
from campaign.specification import RunSpecification


def make_runs(options: Namespace) -> list[RunSpecification]:
    """
    List the runs of this campaign.

    :param options: the command line's
    :return: the runs; seeds in the outer loop, so that a stopped campaign has something of everything
    """
    if not 1 <= options.n_eval_episodes <= options.n_final_episodes or options.eval_freq < 1:
        raise ValueError(
            f"eval_freq={options.eval_freq}, n_eval_episodes={options.n_eval_episodes} and "
            f"n_final_episodes={options.n_final_episodes} must be at least 1, the last not below the one before."
        )
    if options.set and not options.label:
        raise ValueError("--set needs a --label: the name under which the changed runs are kept.")
    return [
        command_line.specify(options, "learning", PROTOCOL, algo, task, seed, options.set, options.label)
        for seed in options.seeds
        for algo in options.algos
        for task in options.tasks
    ]


def make_parser() -> ArgumentParser:
    parser = command_line.parser(__doc__, "benchmarks/results/learning", MUJOCO_TASKS, SEEDS_OF_OURS)
    parser.add_argument("--algos", nargs="+", default=["sb3_trpo"], metavar="ALGO", help=", ".join(ALGORITHMS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in policy_kwargs.a=1")
    parser.add_argument("--label", default="", help="name of the changed settings")
    parser.add_argument("--eval-freq", type=int, default=PROTOCOL["eval_freq"], help="steps between evaluations")
    parser.add_argument("--n-eval-episodes", type=int, default=PROTOCOL["n_eval_episodes"])
    parser.add_argument("--n-final-episodes", type=int, default=PROTOCOL["n_final_episodes"])
    return parser


if __name__ == "__main__":
    command_line.main(make_runs, make_parser().parse_args())
