"""
``sb3-trpo train``: RL Zoo's ``train`` with this package's options, and an experiment manager that takes them.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager

from sb3_trpo.rl_zoo.options import make_parser, take_options
from sb3_trpo.rl_zoo.resume import ResumableExperimentManager
from sb3_trpo.validation import UserError


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
        with use_manager(make_manager):
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


@contextlib.contextmanager
def use_manager(make_manager: Callable[..., ExperimentManager]) -> Iterator[None]:
    """
    Let RL Zoo's ``train``, in the block, use another experiment manager.

    The function takes the class from a name of its module, and offers no other way to choose one. The name gets its
    value back at the end.

    :param make_manager: the function to call in the place of the class
    """
    original = rl_zoo3.train.ExperimentManager  # type: ignore[attr-defined]
    rl_zoo3.train.ExperimentManager = make_manager  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        rl_zoo3.train.ExperimentManager = original  # type: ignore[attr-defined]
