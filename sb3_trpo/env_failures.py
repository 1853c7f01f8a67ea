"""
Environments that fail while a rollout is collected: which one it was, at what step; and no process is left behind.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

# A pipe is closed a little before its process is seen to have ended.
SECONDS_TO_END = 5.0


@contextlib.contextmanager
def explained_failures(env: VecEnv, count_steps: Callable[[], int]) -> Iterator[None]:
    """
    While it is open, an error of an environment is told with the environment's number and the step.

    An environment's own exception keeps its type. Of one in another process only the end of the process is seen: then
    the processes of the other environments are ended too, for SB3 can no longer close them.

    :param env: the innermost training environments
    :param count_steps: gives the number of steps at the end of the present one
    :raises RuntimeError: if the process of an environment has ended
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        ended = _ended_workers(env)
        if not ended:
            raise
        _end_workers(env)
        who = ", ".join(map(str, ended))
        how = ", ".join(map(_how_it_ended, ended.values()))
        raise RuntimeError(
            f"Environment {who} of {env.num_envs} failed after {count_steps()} steps: its process {how}. The "
            "environments are closed; the model can be saved, and trained in others (set_env)."
        ) from error
    except Exception as error:
        index = _failing_environment(env, error.__traceback__)
        if index is not None:
            _add_note(error, f"This happened in environment {index} of {env.num_envs}, after {count_steps()} steps.")
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
        if name.endswith("step_wait") and env in (scope.get("self"), scope.get("env")):
            if isinstance(env, DummyVecEnv):
                return scope.get("env_idx", scope.get("i"))
            return _first_of_wrong_shape(env, scope.get("results", []))
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
