"""
The rule for continuous tasks without an entry: it gives MuJoCo's entries, and RL Zoo trains with it.
"""

import argparse
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from rl_zoo3.exp_manager import ExperimentManager

from sb3_trpo import TRPO, GrowingHorizon, PolicyAverage
from sb3_trpo.rl_zoo.algorithms import ALGORITHMS
from sb3_trpo.shipped.rule import DEFAULT_STEP, Task, hyperparameters_by_rule, read_task

ENTRIES = yaml.safe_load(ALGORITHMS["trpo"].hyperparameters.read_text())
# Swimmer has values of its own.
MUJOCO = sorted(name for name in ENTRIES if name.endswith("-v5") and name != "Swimmer-v5")


def numbers(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Take schedules and nested values apart, for approximate comparison."""
    flat: dict[str, Any] = {}
    for name, value in hyperparams.items():
        if name == "policy_kwargs":
            flat["log_std_init"] = value["log_std_init"]
        elif name == "callback":
            for callback in value:
                ((kind, arguments),) = callback.items()
                flat |= {f"{kind} {key}": number for key, number in arguments.items()}
        elif isinstance(value, str) and value.startswith("lin_"):
            flat |= {f"{name} {i}": float(number) for i, number in enumerate(value.split("_")[1:])}
        else:
            flat[name] = value
    return flat


class Machine(gym.Env):
    """A task of a stranger's."""

    action_space = spaces.Box(-1.0, 1.0, (2,))
    observation_space = spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, fps: float | None = 100, largest: float = 1.0) -> None:
        self.metadata = {"render_fps": fps} if fps else {}
        self.action_space = spaces.Box(-largest, largest, (2,))

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), float(-np.square(action).sum()), False, False, {}


gym.register("sb3_trpo_tests/Machine-v0", Machine, max_episode_steps=50)


@pytest.mark.parametrize("env_id", MUJOCO)
def test_the_rule_gives_the_entries_of_mujocos_tasks(env_id):
    env = gym.make(env_id)
    task = read_task(env)
    env.close()
    assert task is not None
    assert task.step_is_known
    by_rule = ENTRIES["default"] | hyperparameters_by_rule(task)
    # Entries are rounded to one digit here and there.
    given, expected = numbers(by_rule), numbers(ENTRIES[env_id])
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert given[name] == (value if isinstance(value, str) else pytest.approx(value, rel=0.08, abs=0.011)), name


@pytest.mark.parametrize("largest", [0.001, 0.4, 1.0, 3.0, 1000.0])
def test_noise_keeps_its_share_of_wide_and_narrow_actions(largest):
    hyperparams = hyperparameters_by_rule(Task(10, 2, largest, 0.02))
    std = math.exp(hyperparams["policy_kwargs"]["log_std_init"])
    usual = 0.2246 / math.sqrt(2 * 0.02)
    assert std == pytest.approx(usual * {0.001: 0.0025, 1000.0: 1000 / 3}.get(largest, 1.0), rel=0.01)
    assert hyperparams["cg_damping"] == pytest.approx(0.1 / std**2, rel=0.06)


@pytest.mark.parametrize(
    ("fps", "seconds"), [(50, 0.02), (125, 0.008), (None, DEFAULT_STEP), (0, DEFAULT_STEP), ("fast", DEFAULT_STEP)]
)
def test_the_length_of_a_step_is_read_or_assumed(fps, seconds):
    task = read_task(Machine(fps))
    assert task is not None
    assert task.step == seconds
    assert task.step_is_known == (fps in (50, 125))


@pytest.mark.parametrize("step", [1e-5, 0.001, 0.02, 0.5, 100.0])
def test_every_length_of_a_step_gives_hyperparameters_that_are_allowed(step):
    hyperparams = hyperparameters_by_rule(Task(300, 20, 1.0, step))
    assert 0.0 <= hyperparams["gae_lambda"] < 1.0
    for callback in hyperparams["callback"]:
        horizon = callback.get("sb3_trpo.GrowingHorizon", {"start": 0.0, "end": 0.5})
        assert 0.0 <= horizon["start"] <= horizon["end"] < 1.0


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_other_tasks_are_not_for_the_rule(env_id):
    assert read_task(gym.make(env_id)) is None


def manager(**kwargs: Any) -> ExperimentManager:
    return ExperimentManager(
        argparse.Namespace(), "trpo", "sb3_trpo_tests/Machine-v0", "logs", seed=0, device="cpu", **kwargs
    )


def test_rl_zoo_trains_a_task_without_an_entry_by_the_rule(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, _ = manager(hyperparams={"n_timesteps": 2048, "target_kl": 0.01}).setup_experiment()
    assert "gets hyperparameters by the rule: 3 inputs, 2 actions, steps of 10 ms" in capsys.readouterr().out
    assert isinstance(model, TRPO)
    assert model.gae_lambda == 0.96
    assert model.target_kl == 0.01
    assert model.policy.log_std.mean().item() == pytest.approx(math.log(0.2246 / math.sqrt(0.02)), abs=0.006)
    model.env.close()


def test_the_callbacks_of_the_rule_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = manager()
    experiment.setup_experiment()[0].env.close()
    assert {type(callback) for callback in experiment.callbacks} >= {PolicyAverage, GrowingHorizon}
