"""
The end of environments' processes when their training is killed.

A worker of ``SubprocVecEnv`` ends when its pipe is closed. Two kinds never see that: a worker that was forked, for its
siblings hold the pipe open, too, and a worker whose environment blocks. A small process watches over them.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo.rollouts.checks import innermost

# The watcher: when its parent has ended, it has another parent. A worker's number may have gone to another process
# meanwhile, but that has started at another time.
_WATCH = """
import os, signal, sys, time

def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None

parent, *workers = map(int, sys.argv[1:])
starts = {pid: started(pid) for pid in workers}
while os.getppid() == parent:
    time.sleep(0.5)
for pid, start in starts.items():
    if start is not None and started(pid) == start:
        os.kill(pid, signal.SIGKILL)
"""


@contextlib.contextmanager
def end_workers_with_training(env: VecEnv | None) -> Iterator[None]:
    """
    End the environments' processes if this process is killed in the block.

    :param env: the training environments, with their wrappers
    """
    workers = innermost(env) if env is not None else None
    # Other systems have no such way to tell a process from a later one of the same number.
    if (
        not isinstance(workers, SubprocVecEnv)
        or workers.closed
        or not sys.executable
        or not Path("/proc/self").exists()
    ):
        yield
        return
    pids = [str(pid) for pid in (os.getpid(), *(process.pid for process in workers.processes))]
    # A session of its own: Ctrl-C is for the training.
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, *pids],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()
