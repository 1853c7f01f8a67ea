"""
RL Zoo's commands, run in a process that knows this package's algorithms.
"""

import argparse
import contextlib
import importlib
import io
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]  # It has no types.
from rl_zoo3.utils import get_model_path

from sb3_trpo.rl_zoo.masked_runs import play_with_masks
from sb3_trpo.shipped.mujoco_warnings import say_warnings_once
from sb3_trpo.validation.values import UserError

# RL Zoo's folder of published agents, from which it downloads what is missing.
PUBLISHED = "rl-trained-agents"


def run(module: str, function: str, loads_run: bool) -> None:
    """
    Run a command with the arguments in ``sys.argv``.

    :param module: the module with the command
    :param function: the module's entry point; empty if the module is a script, which is run as ``__main__``
    :param loads_run: whether the command loads the model of a run
    :raises UserError: if something is the user's to mend
    """
    # As for `python -m rl_zoo3...`, names in arguments and hyperparameters may be modules of the current folder. The
    # folder comes last, so that nothing in it takes the place of what is installed.
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        import_packages(sys.argv[1:])
        if loads_run:
            check_run(sys.argv[1:])
        render_without_display(module, sys.argv[1:])
        masks = play_with_masks(_read_algo(sys.argv[1:]) if loads_run else "")
        with masks, say_warnings_once(_read_task(sys.argv[1:])):
            if function:
                getattr(importlib.import_module(module), function)()
            else:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
    except TypeError as error:
        # Gymnasium's sentence about a task's arguments.
        if "raised from the environment creator" not in str(error):
            raise
        raise UserError(f"--env-kwargs: {error}") from error
    finally:
        sys.path.remove(folder)


def _read_algo(arguments: Sequence[str]) -> str:
    parser = make_reader()
    parser.add_argument("--algo", default="")
    return str(parser.parse_known_args(arguments)[0].algo)


def import_packages(arguments: Sequence[str]) -> None:
    """
    Import the modules that ``--gym-packages`` names, before RL Zoo does, to say which one is missing.

    :param arguments: the arguments of the command
    :raises UserError: if there is no such module; errors of a module itself are passed on
    """
    parser = make_reader()
    parser.add_argument("--gym-packages", nargs="+", default=[])
    for name in parser.parse_known_args(arguments)[0].gym_packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # If such a module imports another one that is missing, the traceback shows where.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UserError(f"--gym-packages names {name!r}, but there is no such module.") from error


def _read_task(arguments: Sequence[str]) -> str:
    parser = make_reader()
    # plot-train takes several.
    parser.add_argument("--env", nargs="*", default=[])
    return " ".join(parser.parse_known_args(arguments)[0].env)


def render_without_display(module: str, arguments: Sequence[str]) -> None:
    """
    Prepare rendering on a server: pictures are drawn without a window, and what needs a window is refused.

    :param module: the module with the command
    :param arguments: the arguments of the command
    :raises UserError: if the command opens a window, and there is no display
    """
    has_display = {"DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"} & os.environ.keys()
    if has_display or not sys.platform.startswith("linux") or {"-h", "--help"} & set(arguments):
        return
    # MuJoCo looks for a window otherwise, and ends the process when there is none.
    os.environ.setdefault("MUJOCO_GL", "egl")
    if module == "rl_zoo3.enjoy" and "--no-render" not in arguments:
        raise UserError(
            "there is no display to show the environment on: add --no-render, or record it with `sb3-trpo "
            "record-video`, which takes the same --env and --folder."
        )


def check_run(arguments: Sequence[str]) -> None:
    """
    Check that the model which a command loads is there.

    :param arguments: the arguments of the command
    :raises UserError: if it is not
    """
    parser = make_reader()
    parser.add_argument("--algo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-f", "--folder", default=PUBLISHED)
    parser.add_argument("--exp-id", type=int, default=0)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--load-checkpoint")
    parser.add_argument("--load-last-checkpoint", action="store_true")
    args, _ = parser.parse_known_args(arguments)
    if PUBLISHED in args.folder:
        return
    name = EnvironmentName(args.env)
    which = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    try:
        # RL Zoo prints the number of the run here, and will do so again.
        with contextlib.redirect_stdout(io.StringIO()):
            get_model_path(args.exp_id, args.folder, args.algo, name, *which)
    except (AssertionError, ValueError) as error:
        # The newest run is taken, even if it was stopped before it left a model.
        finished = Path(args.folder, args.algo or "").glob(f"{name}_*/{name}.zip")
        numbers = sorted(int(number) for file in finished if (number := file.parent.name.rpartition("_")[2]).isdigit())
        hint = f"; --exp-id {numbers[-1]} has one" if numbers and not any(which) else ""
        raise UserError(f"{error}{hint}") from error


def make_reader() -> argparse.ArgumentParser:
    """
    Make a parser that reads a few of a command's arguments, before RL Zoo's parser reads all of them.

    :return: the parser, without options
    """
    return argparse.ArgumentParser(prog=sys.argv[0], add_help=False, allow_abbrev=False)
