"""
What environments keep in their class or module is not in a checkpoint; that it changes is said when a training goes on.
"""

import itertools
import random
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trpo import TRPO, Checkpoint, Checkpointable

N_STEPS = 16
steps_of_all = 0
numbers = itertools.count()
TABLE = {"left": [0.0, 1.0], "right": [1.0, 0.0]}


class Task(gym.Env):
    """A task that changes nothing but itself, and reads its class and module."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)
    names: ClassVar[list[str]] = ["left", "right"]

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.n_steps = 0
        return np.array(TABLE["left"], np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        self.change()
        return np.array(TABLE[self.names[action]], np.float32), self.gain, self.n_steps == 8, False, {}

    def change(self) -> None:
        """Change something outside of the object, in a subclass."""


class CountsInClass(Task):
    total = 0

    def change(self) -> None:
        type(self).total += 1


class FillsClass(Task):
    seen: ClassVar[dict[str, set[int]]] = {"steps": set()}

    def change(self) -> None:
        self.seen["steps"].add(len(self.seen["steps"]))


class CountsInModule(Task):
    def change(self) -> None:
        global steps_of_all
        steps_of_all += 1


class CountsInDefault(Task):
    def change(self, counts: list[int] = [0]) -> None:  # noqa: B006
        counts[0] += 1


class CountsInMethod(Task):
    def change(self) -> None:
        CountsInMethod.change.__dict__.setdefault("calls", [0])[0] += 1


class TakesNumbers(Task):
    def change(self) -> None:
        next(numbers)


class DrawsInClass(Task):
    generator = random.Random(0)
    other = np.random.default_rng(0)

    def change(self) -> None:
        self.generator.random()


class CountsInWrapper(gym.Wrapper):
    total = np.zeros(1)

    def step(self, action: Any) -> Any:
        self.total[0] += 1
        return super().step(action)


def wrapped() -> gym.Env:
    return CountsInWrapper(Task())


def resumed(make: Any, tmp_path: Path, vec_env_cls: type[VecEnv] = DummyVecEnv, other: Any = None) -> list[str]:
    """
    Resume a training, and collect what is said.

    :return: what is said when a training in such environments goes on
    """
    others = {"wrapper_class": Checkpointable, "vec_env_kwargs": {"start_method": "fork"}}

    def envs(kind: Any) -> VecEnv:
        kwargs = others if vec_env_cls is SubprocVecEnv else {}
        return make_vec_env(kind, 2, seed=0, vec_env_cls=vec_env_cls, **kwargs)

    path = tmp_path / "checkpoint.zip"
    env = envs(make)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=32, seed=0, device="cpu")
    model.learn(4 * N_STEPS, Checkpoint(path, every=1))
    env.close()
    checkpoint, env = Checkpoint(path, every=1), envs(other or make)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint.load(env).learn(6 * N_STEPS, checkpoint)
    env.close()
    return [
        str(warning.message)
        for warning in caught
        if "goes on" in str(warning.message) or "go on" in str(warning.message)
    ]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (CountsInClass, "CountsInClass.total"),
        (FillsClass, "FillsClass.seen"),
        (CountsInModule, f"{__name__}.steps_of_all"),
        (TakesNumbers, f"{__name__}.numbers"),
        (CountsInDefault, "CountsInDefault.change holds in its defaults or attributes"),
        (CountsInMethod, "CountsInMethod.change holds in its defaults or attributes"),
        (DrawsInClass, "DrawsInClass.generator"),
        (wrapped, "CountsInWrapper.total"),
    ],
)
def test_what_changes_outside_of_the_environments_is_named(make: Any, named: str, tmp_path: Path) -> None:
    (said,) = resumed(make, tmp_path)
    assert f"{named} changes during training" in said


def test_what_does_not_change_is_not_named(tmp_path: Path) -> None:
    assert resumed(Task, tmp_path) == []


class OffersIt(CountsInClass):
    total = 0

    def get_checkpoint_state(self) -> list[int]:
        return [type(self).total, self.n_steps]

    def set_checkpoint_state(self, state: list[int]) -> None:
        type(self).total, self.n_steps = state


def test_an_environment_that_offers_it_is_believed(tmp_path: Path) -> None:
    assert resumed(OffersIt, tmp_path) == []


def test_environments_that_are_made_with_other_arguments_are_told(tmp_path: Path) -> None:
    def make(g: float) -> gym.Env:
        return gym.make("Pendulum-v1", g=g)

    (said,) = resumed(lambda: make(9.0), tmp_path, other=lambda: make(10.0))
    assert "was made with {'g': 9.0}, and is made with {'g': 10.0} now" in said


def test_both_are_told_from_other_processes(tmp_path: Path) -> None:
    def make(g: float) -> gym.Env:
        return CountsInWrapper(gym.make("Pendulum-v1", g=g))

    said = resumed(lambda: make(9.0), tmp_path, SubprocVecEnv, other=lambda: make(10.0))
    assert ["CountsInWrapper.total" in said[0], "{'g': 10.0} now" in said[1], len(said)] == [True, True, 2]


def test_how_an_environment_is_shown_makes_no_difference(tmp_path: Path) -> None:
    def make(mode: str | None) -> gym.Env:
        return gym.make("Pendulum-v1", g=9.0, render_mode=mode)

    assert resumed(lambda: make(None), tmp_path, other=lambda: make("rgb_array")) == []
