"""
Environments that fail while a rollout is collected, or do not answer: which one it was, and at what step.
"""

import contextlib
import math
import multiprocessing.connection
import os
import socket
import struct
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trpo.validation.values import short, warn_user

# A pipe is closed a little before its process is seen to have ended.
SECONDS_TO_END = 5.0
# A wait for environments is looked at as often as this.
SECONDS_TO_A_LOOK = 1.0
# After this time without an answer of the environments there is a warning, once.
SECONDS_TO_A_WARNING = 60.0
_AFTERWARDS = "The environments are closed; the model can be saved, and trained in others (set_env)."


class Failures:
    """
    What is done when an environment fails.

    :param env: the environments below all wrappers
    :param when: a function that gives the moment in words, such as "after 10 steps"
    """

    def __init__(self, env: VecEnv, when: Callable[[], str]) -> None:
        self._env = env
        self._when = when
        self._is_told = False

    def blame(self, error: Exception, index: int) -> NoReturn:
        """
        Raise an environment's error, with the environment's number and the step.

        An environment's own exception keeps its type. Of an environment in another process we see only that the process
        has ended, or does not answer. Then the processes of the other environments are ended too, for SB3 can no longer
        close them.

        :param error: the exception
        :param index: the environment's number
        :raises RuntimeError: if the environment's process has ended, or does not answer
        """
        self._is_told = True
        if isinstance(self._env, SubprocVecEnv) and isinstance(error, (EOFError, OSError)):
            self._raise_end_of_process(error, index)
        _add_note(error, f"This happened in environment {index} of {self._env.num_envs}, {self._when()}.{_hint(error)}")
        raise error

    def explain(self, error: Exception) -> None:
        """
        Raise an error once more, with the environment's number and the step, if it can be told whose it is.

        This is for errors from steps that are not ours.

        :param error: the exception, raised while the environments were stepped or reset
        :raises RuntimeError: if the process of an environment has ended, or does not answer
        """
        if not self._is_told:
            index = self._failing_environment(error)
            if index is not None:
                self.blame(error, index)

    def _raise_end_of_process(self, error: Exception, index: int) -> NoReturn:
        assert isinstance(self._env, SubprocVecEnv)
        n_envs = self._env.num_envs
        if isinstance(error, BlockingIOError):
            _end_workers(self._env)
            raise RuntimeError(
                f"Environment {index} of {n_envs} did not answer {self._when()}, for longer than env_timeout allows. "
                f"{_AFTERWARDS}"
            ) from error
        ended = _ended_workers(self._env)
        if not ended:
            raise error
        _end_workers(self._env)
        who = ", ".join(map(str, ended))
        how = ", ".join(map(_how_it_ended, ended.values()))
        raise RuntimeError(
            f"Environment {who} of {n_envs} failed {self._when()}: its process {how}. {_AFTERWARDS}"
        ) from error

    def _failing_environment(self, error: Exception) -> int | None:
        """
        Find out which environment an exception comes from.

        :param error: the exception, raised while the environments were stepped or reset
        :return: the environment's number; None if it comes from elsewhere, or that can't be told
        """
        if isinstance(self._env, DummyVecEnv):
            index = _first_at_work(error.__traceback__, self._env.envs)
            return _counted_by_loop(error.__traceback__, self._env) if index is None else index
        if isinstance(self._env, SubprocVecEnv):
            index = _first_at_work(error.__traceback__, self._env.remotes)
            if index is None and isinstance(error, (EOFError, OSError)) and _ended_workers(self._env):
                return 0  # The message names the processes that have ended, whatever this number is.
            return index
        return None


@contextlib.contextmanager
def limit_waiting(env: VecEnv, seconds: float | None) -> Iterator[None]:
    """
    Limit how long a read from an environment in another process may take, in the block.

    A read that takes longer ends with a BlockingIOError. The operating system keeps the time, as a property of the
    socket, so that it costs nothing at a step. There is no limit for environments in the training's own process, nor on
    Windows.

    :param env: the environments below all wrappers
    :param seconds: the limit; None for none, and then nothing is touched
    """
    if seconds is None:
        yield
        return
    try:
        _set_receive_timeout(env, seconds)
        yield
    finally:
        _set_receive_timeout(env, 0.0)


def _set_receive_timeout(env: VecEnv, seconds: float) -> None:
    if os.name != "posix" or not isinstance(env, SubprocVecEnv) or env.closed:
        return
    fraction, whole = math.modf(seconds)
    # At least a microsecond, for 0 means no limit.
    timeval = struct.pack("ll", int(whole), max(int(fraction * 1e6), 1 if seconds else 0))
    for remote in env.remotes:
        # What is not a socket, in a subclass, stays as it is.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(remote.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


class WaitingWatch:
    """
    A watch that warns, once, when a step of the environments takes long, and ends the wait for processes that are gone.

    Whoever steps the environments counts steps in ``n_begun`` and ``n_done``.

    :param env: the environments below all wrappers
    :param when: a function that gives the moment in words
    :param said: the warnings that were given already in this training
    """

    def __init__(self, env: VecEnv, when: Callable[[], str], said: set[str]) -> None:
        self.n_begun = 0
        self.n_done = 0
        # Environments that have answered in the current step, in their order; None where they do not answer one by one.
        self.n_answered: int | None = None
        self._said = said
        self._env = env
        self._when = when
        self._is_over = threading.Event()

    def __enter__(self) -> "WaitingWatch":
        # A thread that sleeps costs nothing at a step, where an alarm that is set and taken back would.
        threading.Thread(target=self._watch, daemon=True, name="sb3_trpo waiting watch").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        seen, since = 0, 0.0
        while not self._is_over.wait(min(SECONDS_TO_A_LOOK, SECONDS_TO_A_WARNING)):
            if self.n_begun == self.n_done or self.n_begun != seen:
                seen, since = self.n_begun, time.monotonic()
                continue
            _hang_up_on_the_dead(self._env)
            if time.monotonic() - since >= SECONDS_TO_A_WARNING and "waiting" not in self._said:
                self._said.add("waiting")
                warnings.warn(
                    f"{self._who()} not answered for {SECONDS_TO_A_WARNING:g} seconds, {self._when()}. Training waits; "
                    "env_timeout=SECONDS would end it with an error. (This is said once.)",
                    stacklevel=1,  # A thread of its own has no line of the user's above it.
                )

    def _who(self) -> str:
        env = self._env
        if isinstance(env, SubprocVecEnv) and not env.closed and self.n_answered is not None:
            waited_for = range(self.n_answered, env.num_envs)
            silent = [str(i) for i in waited_for if not env.remotes[i].poll(0)]
            if silent:
                return f"Environment {', '.join(silent)} of {env.num_envs} {'has' if len(silent) == 1 else 'have'}"
        return "The environments have"


def _hang_up_on_the_dead(env: VecEnv) -> None:
    """
    End the wait for environments whose processes have ended.

    Where processes are forked, each holds the pipes of the others open: without this, the end of one is never seen.

    :param env: the environments below all wrappers
    """
    if os.name != "posix" or not isinstance(env, SubprocVecEnv) or env.closed:
        return
    for process, remote in zip(env.processes, env.remotes, strict=True):
        # The sentinel can be asked by any thread; an exit code is fetched from the system once.
        if multiprocessing.connection.wait([process.sentinel], 0):
            # What the process has sent can still be read. What is not a socket, in a subclass, stays as it is.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(remote.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)


def _ended_workers(env: SubprocVecEnv) -> dict[int, int]:
    """
    Return the exit codes of processes that have ended.

    :param env: the environments
    :return: exit codes, by the numbers of the environments
    """
    processes = [] if env.closed else env.processes
    deadline = time.monotonic() + SECONDS_TO_END
    while processes and time.monotonic() < deadline:
        ended = {i: int(process.exitcode) for i, process in enumerate(processes) if process.exitcode is not None}
        if ended:
            return ended
        time.sleep(0.01)
    return {}


def _end_workers(env: SubprocVecEnv) -> None:
    for process in env.processes:
        process.terminate()
    for process in env.processes:
        process.join(SECONDS_TO_END)
        if process.exitcode is None:
            process.kill()
            process.join()
    for remote in env.remotes:
        remote.close()
    env.waiting, env.closed = False, True


def _how_it_ended(exit_code: int) -> str:
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with code {exit_code} (see its output)"


def _first_at_work(traceback: TracebackType | None, objects: Sequence[object]) -> int | None:
    """
    Find out which of several objects was at work when an exception was raised.

    :param traceback: the exception's traceback
    :param objects: the objects
    :return: the number of the first object that one of the frames works on; None if there is none
    """
    while traceback is not None:
        at_work = list(traceback.tb_frame.f_locals.values())
        for i, candidate in enumerate(objects):
            if any(candidate is value for value in at_work):
                return i
        traceback = traceback.tb_next
    return None


def _hint(error: Exception) -> str:
    """
    Say what SB3's code could not read of what an environment gave, where its error shows neither.

    :param error: the exception
    :return: a sentence, after a space; empty if it was raised elsewhere
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames:
        # It was not raised yet, but made from what another process has given.
        return ""
    code, shown = frames[-1].f_code, frames[-1].f_locals
    is_unpacked = "unpack" in str(error)
    if code is Monitor.step.__code__ and is_unpacked:
        return (
            " A step must give five things: observation, reward, terminated, truncated, info (Gym's old interface has "
            "four)."
        )
    if code is Monitor.step.__code__ and not _is_number(shown.get("reward", 0.0)):
        return f" The reward is {short(shown['reward'])}, but must be a number."
    if code is DummyVecEnv.reset.__code__ and is_unpacked:
        return " A reset must give two things: observation and info (Gym's old interface has the observation alone)."
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error) and "reset" in str(error):
        return " A reset must take the arguments seed and options."
    return ""


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _counted_by_loop(traceback: TracebackType | None, env: DummyVecEnv) -> int | None:
    """
    Find out at which environment's results SB3's loop over the environments has failed: their number, shape or type.

    No environment is at work then. Only the loop knows the number, in a local variable, and shows it in no other way.

    :param traceback: the exception's traceback
    :param env: the environments
    :return: the environment's number; None if it is not SB3's loop that has failed
    """
    loops = {getattr(DummyVecEnv, name).__code__ for name in ("step_wait", "reset", "_save_obs")}
    while traceback is not None:
        shown = traceback.tb_frame.f_locals
        if traceback.tb_frame.f_code in loops and shown["self"] is env and "env_idx" in shown:
            return int(shown["env_idx"])
        traceback = traceback.tb_next
    return None


def _add_note(error: Exception, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        warn_user(f"{type(error).__name__}: {note}")
