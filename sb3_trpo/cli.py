"""
``sb3-trpo``: RL Zoo's commands, with this package's TRPO and hyperparameters as ``trpo``, and a few of our own.

RL Zoo's commands have RL Zoo's options. Nobody needs to type ``--algo trpo``. ``train`` ends with an evaluation of the
final policy and a picture of the learning curve, its ``--vec-env`` can be ``envpool``, and with ``--resume`` it goes on
after a crash. RL Zoo's ``record_training`` and ``benchmark`` are left out: they start other scripts in processes of
their own, which do not know what is registered in this one.

Our own commands import nothing of RL Zoo, nor anything else that reads the current folder, which may be a stranger's.
"""

import errno
import importlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from gymnasium.error import DependencyNotInstalled, UnregisteredEnv

from sb3_trpo import __version__
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError


@dataclass(frozen=True)
class Command:
    """
    A command of our own.

    :param summary: the line in ``sb3-trpo --help``
    :param module: the module with the command
    :param function: the module's entry point, which reads ``sys.argv``
    :param defaults: the arguments that come before the user's, so that the user's win
    """

    summary: str
    module: str
    function: str = "main"
    defaults: tuple[str, ...] = ()

    def run(self) -> None:
        """
        Run the command with the arguments in ``sys.argv``.

        :raises UserError: if something is the user's to mend
        """
        getattr(importlib.import_module(self.module), self.function)()


@dataclass(frozen=True)
class RLZooCommand(Command):
    """
    A command of RL Zoo, or one of ours that needs RL Zoo.

    :param function: the module's entry point; empty if the module is a script, which is run as ``__main__``
    :param loads_run: whether the command loads the model of a run
    """

    defaults: tuple[str, ...] = ("--algo", "trpo")
    loads_run: bool = False

    def run(self) -> None:
        """
        Tell RL Zoo of this package's algorithms, and run the command with the arguments in ``sys.argv``.

        :raises UserError: if something is the user's to mend
        """
        try:
            from sb3_trpo.rl_zoo.commands import run
        except ImportError as error:
            raise UserError(str(error)) from error
        run(self.module, self.function, self.loads_run)


COMMANDS: dict[str, Command] = {
    "train": RLZooCommand("train a policy, or tune hyperparameters", "sb3_trpo.rl_zoo.train", "train"),
    "enjoy": RLZooCommand("run a trained policy", "rl_zoo3.enjoy", "enjoy", loads_run=True),
    "enjoy-untrusted": Command("run a model of unknown origin", "sb3_trpo.commands.enjoy_untrusted"),
    "compare": Command("compare runs: mean and interval by settings", "sb3_trpo.commands.compare"),
    "diagnose": Command("say why a run does not learn, or check an environment", "sb3_trpo.commands.diagnose"),
    "export": Command("write the policy of a run to an ONNX file", "sb3_trpo.commands.export"),
    "migrate": Command("convert files of sb3-contrib's TRPO", "sb3_trpo.commands.migrate"),
    "plot-train": RLZooCommand("plot training returns", "sb3_trpo.rl_zoo.plots", "plot_train"),
    "all-plots": RLZooCommand(
        "plot evaluations, make tables", "rl_zoo3.plots.all_plots", "all_plots", ("--algos", "trpo")
    ),
    "plot-from-file": RLZooCommand("plot what all-plots saved", "rl_zoo3.plots.plot_from_file", "plot_from_file", ()),
    "record-video": RLZooCommand("record a video of a trained policy", "rl_zoo3.record_video", "", loads_run=True),
    "load-from-hub": RLZooCommand("download a trained policy", "rl_zoo3.load_from_hub", ""),
    "push-to-hub": RLZooCommand("upload a trained policy", "sb3_trpo.rl_zoo.hub", "push_to_hub", loads_run=True),
}

_pythons_format = warnings.formatwarning

# The system's answers where a file has no place.
NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
# The status of a program that Ctrl-C has ended, as shells have it.
INTERRUPTED = 130
USAGE = "usage: sb3-trpo COMMAND [OPTION ...]\n\n{commands}\n\n`sb3-trpo COMMAND --help` lists the options of one."


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the console script.

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
    Run a command.

    If something is the user's to mend, the program ends with one sentence. Other errors keep their traceback.

    :param name: the command's name, a key of ``COMMANDS``
    :param arguments: the user's arguments
    """
    command = COMMANDS[name]
    callers_argv, callers_format = sys.argv, warnings.formatwarning
    warnings.formatwarning = _format_warning
    # The commands' parsers read sys.argv.
    sys.argv = [f"sb3-trpo {name}", *command.defaults, *arguments]
    try:
        command.run()
    except DependencyNotInstalled as error:
        extra = next((extra for extra in ("mujoco", "box2d") if extra in str(error).lower()), "extra")
        sys.exit(f"sb3-trpo {name}: {error} (or {how_to_install(extra)})")
    except (UserError, UnregisteredEnv) as error:
        sys.exit(f"sb3-trpo {name}: {error}")
    except KeyboardInterrupt:
        # A training ends by itself, and saves. This comes while something is imported, say.
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        sys.exit(f"sb3-trpo {name}: {error}")
    finally:
        sys.argv, warnings.formatwarning = callers_argv, callers_format


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """
    Format a warning: the line that it points at is left out if it is the program's, which is not the user's.

    :param message: the warning
    :param category: its class
    :param filename: the file that it points at
    :param lineno: the number of the line
    :param line: the line
    :return: what is printed
    """
    if filename == getattr(sys.modules["__main__"], "__file__", None):
        return f"Warning: {message}\n"
    return _pythons_format(message, category, filename, lineno, line)
