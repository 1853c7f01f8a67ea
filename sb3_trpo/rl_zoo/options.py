"""
The options that ``sb3-trpo train`` has beside RL Zoo's.

They are taken off the command line before RL Zoo's parser reads it, so that the parser stays as it is.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from sb3_trpo.validation.values import check_integer

ENVPOOL = "envpool"


@dataclass(frozen=True)
class TrainOptions:
    """
    The options of a training that RL Zoo does not know.

    :param uses_envpool: whether to train in EnvPool's environments (``--vec-env envpool``)
    :param resume: whether to keep a checkpoint, and to go on with an unfinished run
    :param checkpoint_every: the number of updates between two checkpoints
    :param trusts_checkpoints: whether to load what the log folder holds even if another account has written it
    :param is_seeded: whether the command names a seed; otherwise RL Zoo draws one
    """

    uses_envpool: bool = False
    resume: bool = False
    checkpoint_every: int = 10
    trusts_checkpoints: bool = False
    is_seeded: bool = False


def take_options(arguments: Sequence[str]) -> tuple[TrainOptions, list[str]]:
    """
    Split a command into our options and RL Zoo's arguments.

    :param arguments: the arguments after ``sb3-trpo train``
    :return: the options, and the arguments for RL Zoo's parser
    :raises UserError: if an option has a value that is not allowed
    """
    parsed, others = make_parser().parse_known_args(arguments)
    check_integer("--checkpoint-every", parsed.checkpoint_every, minimum=1)
    uses_envpool = parsed.vec_env == ENVPOOL
    if parsed.vec_env is not None and not uses_envpool:
        others += ["--vec-env", parsed.vec_env]
    if parsed.seed is not None:
        others += ["--seed", str(parsed.seed)]
    options = TrainOptions(
        uses_envpool=uses_envpool,
        resume=parsed.resume,
        checkpoint_every=parsed.checkpoint_every,
        trusts_checkpoints=parsed.trust_checkpoints,
        is_seeded=parsed.seed is not None and parsed.seed >= 0,
    )
    return options, others


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of our options, which takes no shortened names, for these may be RL Zoo's.

    :return: the parser, without ``--help``
    """
    parser = argparse.ArgumentParser(
        usage="sb3-trpo train [OPTION ...]",
        description="Options beside RL Zoo's, which follow.",
        add_help=False,
        allow_abbrev=False,
    )
    # --vec-env and --seed are RL Zoo's options, and it gets them, too.
    parser.add_argument("--vec-env", metavar="{dummy,subproc,envpool}", help="VecEnv type; envpool: train in EnvPool")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Keep a checkpoint, and go on with the run that this command has left unfinished, if there is one",
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=10, help="Updates between two checkpoints (with --resume)"
    )
    parser.add_argument(
        "--trust-checkpoints",
        action="store_true",
        help="Load checkpoints that another account or machine has written as they are, code included (with --resume)",
    )
    return parser
