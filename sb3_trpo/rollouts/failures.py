"""
Environments that fail while a rollout is collected, or do not answer: which one it was, at what step; and no process is
left behind.
"""

import contextlib
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

# A pipe is closed a little before its process is seen to have ended.
SECONDS_TO_END = 5.0
_AFTERWARDS = "The environments are closed; the model can be saved, and trained in others (set_env)."


@contextlib.contextmanager
def limited_waiting(env: VecEnv, seconds: float | None) -> Iterator[None]:
    """
    While it is open, a read from an environment in another process that takes too long ends with a BlockingIOError.

    The time is kept by the system, as a property of the socket, so that it costs nothing at a step. Environments in the
    training's own process can't be told from slow ones; nor can, on Windows, others.

    :param env: the innermost training environments
    :param seconds: None for ever
    """
    _set_receive_timeout(env, seconds)
    try:
        yield
    finally:
        _set_receive_timeout(env, None)


def _set_receive_timeout(env: VecEnv, seconds: float | None) -> None:
    if os.name != "posix" or not isinstance(env, SubprocVecEnv) or env.closed:
        return
    fraction, whole = math.modf(seconds or 0.0)
    # At least a microsecond, for 0 stands for ever.
    timeval = struct.pack("ll", int(whole), max(int(fraction * 1e6), 1 if seconds else 0))
    for remote in env.remotes:
        # What is not a socket, in a subclass, stays as it is.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(remote.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


@contextlib.contextmanager
def explained_failures(env: VecEnv, when: Callable[[], str]) -> Iterator[None]:
    """
    While it is open, an error of an environment is told with the environment's number and the step.

    An environment's own exception keeps its type. Of one in another process only the end of the process is seen, or
    that it does not answer: then the processes of the other environments are ended too, for SB3 can no longer close
    them.

    :param env: the innermost training environments
    :param when: gives the present moment in words, such as "after 10 steps"
    :raises RuntimeError: if the process of an environment has ended, or does not answer
    """
    try:
        yield
    except BlockingIOError as error:
        index = _read_from(env, error.__traceback__)
        if index is None:
            raise
        _end_workers(env)
        raise RuntimeError(
            f"Environment {index} of {env.num_envs} did not answer {when()}, for longer than env_timeout allows. "
            f"{_AFTERWARDS}"
        ) from error
    except (EOFError, ConnectionError) as error:
        ended = _ended_workers(env)
        if not ended:
            raise
        _end_workers(env)
        who = ", ".join(map(str, ended))
        how = ", ".join(map(_how_it_ended, ended.values()))
        raise RuntimeError(
            f"Environment {who} of {env.num_envs} failed {when()}: its process {how}. {_AFTERWARDS}"
        ) from error
    except Exception as error:
        index = _failing_environment(env, error.__traceback__)
        if index is not None:
            _add_note(error, f"This happened in environment {index} of {env.num_envs}, {when()}.")
        raise


def _ended_workers(env: VecEnv) -> dict[int, int]:
    """
    :param env: in processes, or not
    :return: the exit codes of processes that have ended, by the numbers of their environments
    """
    processes = env.processes if isinstance(env, SubprocVecEnv) and not env.closed else []
    deadline = time.monotonic() + SECONDS_TO_END
    while processes and time.monotonic() < deadline:
        ended = {i: int(process.exitcode) for i, process in enumerate(processes) if process.exitcode is not None}
        if ended:
            return ended
        time.sleep(0.01)
    return {}


def _end_workers(env: VecEnv) -> None:
    assert isinstance(env, SubprocVecEnv)
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


def _failing_environment(env: VecEnv, traceback: TracebackType | None) -> int | None:
    """
    :param env: the innermost environments
    :param traceback: of an exception
    :return: the number of the environment that it comes from; None if it comes from elsewhere, or that can't be told
    """
    while traceback is not None:
        scope, name = traceback.tb_frame.f_locals, traceback.tb_frame.f_code.co_name
        if name in ("step_wait", "_dummy_step_wait", "reset") and env in (scope.get("self"), scope.get("env")):
            if isinstance(env, DummyVecEnv):
                return scope.get("env_idx", scope.get("i"))
            return _first_of_wrong_shape(env, scope.get("results", []))
        traceback = traceback.tb_next
    return None


def _read_from(env: VecEnv, traceback: TracebackType | None) -> int | None:
    """
    :param env: the innermost environments
    :param traceback: of an exception
    :return: the number of the environment that was being read from
    """
    remotes = env.remotes if isinstance(env, SubprocVecEnv) else ()
    while traceback is not None:
        reader = traceback.tb_frame.f_locals.get("self")
        for i, remote in enumerate(remotes):
            if remote is reader:
                return i
        traceback = traceback.tb_next
    return None


def _first_of_wrong_shape(env: VecEnv, results: list[Any]) -> int | None:
    shape = env.observation_space.shape
    wrong = (i for i, result in enumerate(results) if shape is not None and np.shape(result[0]) != shape)
    return next(wrong, None)


def _add_note(error: Exception, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        warnings.warn(f"{type(error).__name__}: {note}", stacklevel=2)
