"""
``sb3-trpo train``: RL Zoo's ``train`` with this package's options, and an experiment manager that takes them.
"""

import sys
from typing import Any

import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager

from sb3_trpo.rl_zoo.names import use_names
from sb3_trpo.rl_zoo.options import make_parser, take_options
from sb3_trpo.rl_zoo.ranked import print_once
from sb3_trpo.rl_zoo.resume import ResumableExperimentManager
from sb3_trpo.validation.values import UserError


def train() -> None:
    """
    Run RL Zoo's ``train`` with the arguments in ``sys.argv``.

    :raises UserError: if an argument is not allowed
    """
    options, arguments = take_options(sys.argv[1:])
    # RL Zoo's parser reads its arguments there.
    sys.argv[1:] = arguments
    if {"-h", "--help"} & set(arguments):
        print(make_parser().format_help())
    has_manager = False

    def make_manager(*args: Any, **settings: Any) -> ExperimentManager:
        nonlocal has_manager
        has_manager = True
        return ResumableExperimentManager(*args, options=options, **settings)

    try:
        with print_once(), use_names(rl_zoo3.train, ExperimentManager=make_manager):
            rl_zoo3.train.train()
    # Before it makes the manager, RL Zoo does nothing but read and check its arguments.
    except (AssertionError, ValueError) as error:
        if has_manager:
            raise
        raise UserError(str(error)) from error
    except (NameError, SyntaxError) as error:
        if has_manager:
            raise
        raise UserError(
            f"-params and --env-kwargs take name:value with values in Python, a text as \"'text'\": {error}"
        ) from error
