"""
Which run a command with ``--resume`` goes on with.

A run is known by the note in its checkpoint: the arguments of its command, its hyperparameters, its seed and its
length. A command that names the same goes on with it; so does one that asks for more steps.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sb3_trpo.checkpoints.checkpoint import read_note
from sb3_trpo.rl_zoo.seal import has_own_seal
from sb3_trpo.saved_models.refused import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT = "checkpoint.zip"
# The last checkpoint of a run that has come to its end, for a command that asks for more steps.
FINISHED = "last_checkpoint.zip"
# Locked by the process that trains; the system takes the lock away when that ends, however it ends.
LOCK = ".in_use"
# The arguments that make two commands one run, besides hyperparameters, seed and length.
ARGUMENTS = (
    "algo",
    "env",
    "env_kwargs",
    "eval_env_kwargs",
    "vec_env",
    "eval_freq",
    "eval_episodes",
    "n_eval_envs",
    "trained_agent",
)


@dataclass(frozen=True)
class Note:
    """
    What a checkpoint says about its run.

    :param arguments: the arguments of the command, by name, as texts
    :param hyperparameters: the hyperparameters, by name, as texts
    :param seed: the seed of the run
    :param n_timesteps: the length of the run, in environment steps
    """

    arguments: dict[str, str]
    hyperparameters: dict[str, str]
    seed: int
    n_timesteps: int

    def to_texts(self) -> dict[str, str]:
        """
        Write the note as texts, which ``Checkpoint`` keeps.

        :return: the texts, by name
        """
        return {name: json.dumps(value) for name, value in vars(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Note":
        """
        Read a note.

        :param texts: the texts from ``to_texts``, or any others
        :return: the note
        :raises ValueError: if the texts are no note
        """
        try:
            values = {name: json.loads(texts[name]) for name in cls.__dataclass_fields__}
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError("its note is not one of `sb3-trpo train`") from error
        are_texts = all(
            isinstance(values[group], dict) and all(isinstance(value, str) for value in values[group].values())
            for group in ("arguments", "hyperparameters")
        )
        if not (are_texts and type(values["seed"]) is type(values["n_timesteps"]) is int):
            raise ValueError("its note is not one of `sb3-trpo train`")
        return cls(**values)


@dataclass(frozen=True)
class Run:
    """
    A run that has left a checkpoint.

    :param checkpoint: the path of the checkpoint
    :param note: the note in it
    :param is_own: whether this account has written the file, and nobody has changed it since
    """

    checkpoint: Path
    note: Note
    is_own: bool


def describe_run(args: argparse.Namespace, hyperparams: Mapping[str, Any], seed: int, n_timesteps: int) -> Note:
    """
    Describe the run that a command asks for.

    :param args: RL Zoo's arguments
    :param hyperparams: the hyperparameters of the task, as RL Zoo saves them
    :param seed: the seed
    :param n_timesteps: the number of environment steps
    :return: the description
    """
    arguments = {name: str(getattr(args, name, None)) for name in ARGUMENTS}
    values = {name: _to_text(value) for name, value in hyperparams.items() if name != "n_timesteps"}
    return Note(arguments, values, seed, n_timesteps)


def _to_text(value: Any) -> str:
    # Functions and some objects print their address in memory, which differs from process to process.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def find_run(
    folder: Path, env_name: str, wanted: Note, is_seeded: bool, accepts: Callable[[Run], bool]
) -> tuple[Run, IO[bytes]] | None:
    """
    Find the run that a command goes on with.

    The account's own runs come before others, then unfinished runs before finished ones, then later before earlier.

    :param folder: the folder with runs, one folder each
    :param env_name: the beginning of the runs' names
    :param wanted: the run that the command asks for
    :param is_seeded: whether the command names the seed; otherwise any seed will do
    :param accepts: a function that tells whether the command can go on with a run that fits, and prints why not
    :return: the run and its lock; None if there is none
    """
    says_difference = True
    for run in sorted(_read_runs(folder, env_name), key=_rank, reverse=True):
        if not _fits(run, wanted, is_seeded):
            continue
        lock = try_lock(run.checkpoint.parent)
        if lock is None:
            continue
        differences = [
            *_differences(run.note.arguments, wanted.arguments),
            *_differences(run.note.hyperparameters, wanted.hyperparameters),
        ]
        if not differences:
            if accepts(run):
                return run, lock
        elif says_difference:
            say(f"{run.checkpoint.parent} is another run: {', '.join(differences)}.")
            says_difference = False
        lock.close()
    return None


def _read_runs(folder: Path, env_name: str) -> Iterator[Run]:
    for path in [path for name in (CHECKPOINT, FINISHED) for path in folder.glob(f"{env_name}_*/{name}")]:
        try:
            if not path.is_file():
                raise ValueError("it is no file")
            yield Run(path, Note.from_texts(read_note(path)), has_own_seal(path.read_bytes()))
        # A damaged or foreign file may raise any of these.
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            say(f"{path} is passed over: {error}.")


def _rank(run: Run) -> tuple[bool, bool, float]:
    try:
        written = run.checkpoint.stat().st_mtime
    except OSError:
        written = 0.0
    return run.is_own, run.checkpoint.name == CHECKPOINT, written


def _fits(run: Run, wanted: Note, is_seeded: bool) -> bool:
    note = run.note
    has_steps_left = note.n_timesteps < wanted.n_timesteps or (
        note.n_timesteps == wanted.n_timesteps and run.checkpoint.name == CHECKPOINT
    )
    is_same_task = all(note.arguments.get(name) == wanted.arguments[name] for name in ("algo", "env"))
    return has_steps_left and is_same_task and (not is_seeded or note.seed == wanted.seed)


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{name} was {old.get(name, 'not given')} and is {new.get(name, 'not given')}" for name in names]


def say(text: str) -> None:
    """
    Print a line about what was found in the log folder.

    :param text: the line; a stranger may have written parts of it, so that what a terminal would obey is written out
    """
    print(printable(text))


def try_lock(run: Path) -> IO[bytes] | None:
    """
    Lock a run's folder for this process.

    :param run: the folder
    :return: a file whose closing ends the lock; None if another process has it, or the folder can't be written
    """
    # A link in a folder from a stranger could lead to any file.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.fdopen(os.open(run / LOCK, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        say(f"{run} can't be locked: {error}.")
        return None
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            # A file system without locks.
            pass
    return file
