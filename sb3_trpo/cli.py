"""
``sb3-trpo``: RL Zoo's commands, which find this package's TRPO and hyperparameters under ``trpo``.

Every option is RL Zoo's own. What is added: ``--algo trpo`` need not be typed; ``train`` ends with an evaluation of the
final policy and a picture of the learning curve, its ``--vec-env`` can be ``envpool``, and with ``--resume`` it goes on
after a crash; ``enjoy-untrusted`` runs a model without running what it holds. RL Zoo's ``record_training`` and
``benchmark`` are left out: they start other scripts as processes of their own, which a registration in this process
does not reach.
"""

import importlib
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType

from gymnasium.error import DependencyNotInstalled

from sb3_trpo import __version__


@dataclass(frozen=True)
class Command:
    """
    One of RL Zoo's commands, or of ours.

    :param summary: what it does, for ``sb3-trpo --help``
    :param module: the module that holds it
    :param function: the module's entry point; empty if the module is a script, to be run as ``__main__``
    :param defaults: arguments taken for granted; they come before the user's, and the last one given wins
    """

    summary: str
    module: str
    function: str = ""
    defaults: tuple[str, ...] = ("--algo", "trpo")

    def run(self) -> None:
        if self.function:
            getattr(importlib.import_module(self.module), self.function)()
        else:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)


COMMANDS = {
    "train": Command("train a policy, or tune hyperparameters", "rl_zoo3.train", "train"),
    "enjoy": Command("run a trained policy", "rl_zoo3.enjoy", "enjoy"),
    "enjoy-untrusted": Command("run a model of unknown origin", "sb3_trpo.commands.enjoy_untrusted", "main", ()),
    "migrate": Command("convert files of sb3-contrib's TRPO", "sb3_trpo.commands.migrate", "main", ()),
    "plot-train": Command("plot training returns", "rl_zoo3.plots.plot_train", "plot_train"),
    "all-plots": Command("plot evaluations, make tables", "rl_zoo3.plots.all_plots", "all_plots", ("--algos", "trpo")),
    "plot-from-file": Command("plot what all-plots saved", "rl_zoo3.plots.plot_from_file", "plot_from_file", ()),
    "record-video": Command("record a video of a trained policy", "rl_zoo3.record_video"),
    "load-from-hub": Command("download a trained policy", "rl_zoo3.load_from_hub"),
    "push-to-hub": Command("upload a trained policy", "sb3_trpo.rl_zoo.hub", "push_to_hub"),
}

MODULES_THAT_CHECK_ARGUMENTS = (
    "sb3_trpo.validation",
    "sb3_trpo.commands.migrate",
    "sb3_trpo.envpool",
    "sb3_trpo.checkpoints.checkpoint",
    "sb3_trpo.rl_zoo.plugin",
    "sb3_trpo.rl_zoo.envpool_training",
    "sb3_trpo.rl_zoo.resume",
)

USAGE = "usage: sb3-trpo COMMAND [OPTION ...]\n\n{commands}\n\n`sb3-trpo COMMAND --help` lists the options of one."


def main(argv: Sequence[str] | None = None) -> None:
    """
    Entry point of the console script.

    :param argv: the arguments after the program's name; ``sys.argv[1:]`` if None
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0).replace("_", "-") if arguments else "--help"
    if name in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:15} {command.summary}" for name, command in COMMANDS.items())))
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        _run(name, arguments)
    else:
        sys.exit(f"sb3-trpo: no command {name!r}; there are {', '.join(COMMANDS)}.")


def _run(name: str, arguments: list[str]) -> None:
    """
    :param name: a key of ``COMMANDS``
    :param arguments: the user's, for RL Zoo's parser
    """
    command = COMMANDS[name]
    callers_argv = sys.argv
    # RL Zoo's parsers read sys.argv.
    sys.argv = [f"sb3-trpo {name}", *command.defaults, *arguments]
    try:
        _register()
        command.run()
    except DependencyNotInstalled as error:
        sys.exit(f"sb3-trpo {name}: {error} (or the matching extra of sb3-trpo: mujoco, box2d)")
    except (AssertionError, ImportError, ValueError) as error:
        # A word on an argument, as for an unknown task; anything from deeper down keeps its traceback.
        if _innermost_module(error.__traceback__) not in (command.module, *MODULES_THAT_CHECK_ARGUMENTS):
            raise
        sys.exit(f"sb3-trpo {name}: {error}")
    finally:
        sys.argv = callers_argv


def _register() -> None:
    try:
        import rl_zoo3.train

        from sb3_trpo.rl_zoo.resume import ResumableExperimentManager, ResumableTrainParser
    except ImportError as error:
        sys.exit(f"sb3-trpo needs RL Zoo ({error}): install it with `pip install 'sb3-trpo[zoo]'`.")
    # The two names of that module through which its parser and its environments are made.
    rl_zoo3.train.argparse = SimpleNamespace(ArgumentParser=ResumableTrainParser)  # type: ignore[assignment, attr-defined]
    rl_zoo3.train.ExperimentManager = ResumableExperimentManager  # type: ignore[attr-defined]


def _innermost_module(traceback: TracebackType | None) -> str:
    """
    :param traceback: of an exception
    :return: the name of the module that raised it
    """
    module = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module
