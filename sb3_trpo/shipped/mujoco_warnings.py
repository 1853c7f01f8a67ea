"""
MuJoCo's warnings, each said once.

MuJoCo prints its warnings for each simulation that is made, and writes them all to ``MUJOCO_LOG.TXT`` in the current
folder. A training makes a simulation for each environment, and Gymnasium's tasks bring the same few warnings each time.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator

import gymnasium as gym


@contextlib.contextmanager
def say_warnings_once(task: str) -> Iterator[None]:
    """
    Print each of MuJoCo's warnings once, and write no file, in the block.

    :param task: the id of the task; MuJoCo is imported only if the task is one of Gymnasium's with MuJoCo
    """
    spec = gym.registry.get(task)
    if spec is None or not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        yield
        return
    try:
        mujoco = importlib.import_module("mujoco")
    except ImportError:
        # Gymnasium says what is missing.
        yield
        return
    said: set[str] = set()

    def say(message: str) -> None:
        if message not in said:
            said.add(message)
            print(f"MuJoCo: {message}", file=sys.stderr)

    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(say)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)
