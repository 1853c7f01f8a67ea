"""
Real tasks are learned: those of Gymnasium with the hyperparameters that the package ships for them, and small ones for
the spaces that Gymnasium has no task for.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import rl_zoo3
import small_tasks  # noqa: F401  # registers them
import yaml
from gymnasium import spaces
from small_models import MeasuredTRPO

from sb3_trpo.rl_zoo import report as run_report
from sb3_trpo.rl_zoo.algorithms import ALGORITHMS
from sb3_trpo.rl_zoo.report import ReportingExperimentManager

SEED = 0
# Of Gymnasium: the return to exceed, and the module that the task needs.
SHIPPED = {
    "CartPole-v1": (499.0, "gymnasium"),
    "Acrobot-v1": (-100.0, "gymnasium"),
    "Pendulum-v1": (-200.0, "gymnasium"),
    "MountainCarContinuous-v0": (90.0, "gymnasium"),
    "LunarLander-v3": (200.0, "Box2D"),
}


class SmallTask(NamedTuple):
    """
    A task that is learned in seconds.

    :param learned: the return to exceed
    :param blind: the return that nobody exceeds who does not look
    :param n_timesteps: of training
    :param changes: to the hyperparameters of the entry ``default``
    """

    learned: float
    blind: float
    n_timesteps: int
    changes: dict[str, Any]


FEW_STEPS = {"normalize": False, "n_steps": 128}
# Nothing is bootstrapped: an episode takes eleven steps, and what counts is how it ends.
ON_IMAGES = {"normalize": False, "policy": "CnnPolicy", "gae_lambda": 1.0, "n_critic_updates": 4}
SMALL = {
    "DigitalPendulum-v0": SmallTask(-200.0, -800.0, 400_000, {**FEW_STEPS, "gamma": 0.95}),
    "CartPoles-v0": SmallTask(475.0, 50.0, 100_000, FEW_STEPS),
    "Catch-v0": SmallTask(0.85, -0.5, 100_000, ON_IMAGES),
    "CatchDict-v0": SmallTask(0.85, -0.5, 100_000, {**FEW_STEPS, "policy": "MultiInputPolicy"}),
}
ATARI_GAME = "PongNoFrameskip-v4"
NEEDS_ATARI = "needs ale-py and opencv-python: pip install 'sb3-trpo[atari]'"


def manager_of(env_id: str, folder: Path, **kwargs: Any) -> ReportingExperimentManager:
    """
    Make what ``sb3-trpo train --env ENV_ID`` makes.

    :param env_id: of the task
    :param folder: for the logs
    :param kwargs: further arguments of RL Zoo's experiment manager
    :return: what ``sb3-trpo train --env ENV_ID`` makes
    """
    settings = {"eval_freq": -1, "log_interval": -1, "seed": SEED, "device": "cpu", "verbose": 0, **kwargs}
    return ReportingExperimentManager(argparse.Namespace(), "trpo", env_id, str(folder), **settings)


def learn(manager: ReportingExperimentManager) -> float:
    """Train, and return the mean return of a hundred episodes of the deterministic policy on fresh environments."""
    model, _ = manager.setup_experiment()
    manager.learn(model)
    with pytest.MonkeyPatch.context() as patch:
        # Twenty starts of the pendulum may be so hard that their mean is lower by 100.
        patch.setattr(run_report, "N_EVAL_EPISODES", 100)
        return manager.evaluate(model)[0]


@pytest.mark.slow
@pytest.mark.parametrize("env_id", SHIPPED)
def test_task_of_gymnasium_is_learned(env_id, tmp_path):
    threshold, module = SHIPPED[env_id]
    pytest.importorskip(module)
    assert learn(manager_of(env_id, tmp_path)) > threshold


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_half_cheetah_runs(seed, tmp_path):
    pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
    assert learn(manager_of("HalfCheetah-v5", tmp_path, n_timesteps=150_000, seed=seed)) > 1000.0


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_continuous_classic_control_explores_by_gsde(env_id):
    assert yaml.safe_load(ALGORITHMS["trpo"].hyperparameters.read_text())[env_id]["use_sde"]


@pytest.mark.slow
@pytest.mark.parametrize("env_id", SMALL)
def test_small_task_is_learned(env_id, tmp_path):
    task = SMALL[env_id]
    manager = manager_of(env_id, tmp_path, n_timesteps=task.n_timesteps, hyperparams=dict(task.changes))
    assert learn(manager) > task.learned


def test_small_tasks_are_of_the_spaces_that_gymnasium_lacks():
    made = {env_id: gym.make(env_id) for env_id in SMALL}
    assert isinstance(made["DigitalPendulum-v0"].action_space, spaces.MultiDiscrete)
    assert isinstance(made["CartPoles-v0"].action_space, spaces.MultiBinary)
    assert made["Catch-v0"].observation_space.shape == (36, 36, 1)
    assert isinstance(made["CatchDict-v0"].observation_space, spaces.Dict)


@pytest.mark.parametrize("env_id", SMALL)
def test_small_task_has_to_be_looked_at(env_id):
    """No action that is always the same comes near the return that is learned, nor does chance."""
    env = gym.make(env_id)
    env.action_space.seed(SEED)
    dimensions = getattr(env.action_space, "nvec", [2] * 3 if env_id == "CartPoles-v0" else [3])
    constant = [np.array(action) if len(dimensions) > 1 else action[0] for action in np.ndindex(*dimensions)]
    returns = [mean_return(env, lambda action=action: action) for action in constant]
    assert max(*returns, mean_return(env, env.action_space.sample)) < SMALL[env_id].blind


def mean_return(env: gym.Env, act: Callable[[], Any], n_episodes: int = 20) -> float:
    """
    Measure the mean return of a policy that does not look.

    :param env: a task
    :param act: gives actions, without a look at the observation
    :param n_episodes: how many, from seeds that are always the same
    :return: mean undiscounted return
    """
    total = 0.0
    for seed in range(n_episodes):
        env.reset(seed=seed)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(act())
            total += float(reward)
            ended = terminated or truncated
    return total / n_episodes


@pytest.mark.slow
def test_updates_on_atari_stay_within_the_trust_region(tmp_path, monkeypatch):
    pytest.importorskip("ale_py", reason=NEEDS_ATARI)
    pytest.importorskip("cv2", reason=NEEDS_ATARI)
    monkeypatch.setitem(rl_zoo3.ALGOS, "trpo", MeasuredTRPO)
    manager = manager_of(ATARI_GAME, tmp_path)
    model, hyperparameters = manager.setup_experiment()
    assert hyperparameters["policy"] == "CnnPolicy"
    assert model.observation_space.shape == (4, 84, 84)
    manager.n_timesteps = 3 * model.n_steps * model.n_envs
    manager.learn(model)
    assert len(model.updates) == 3
    for logged, measured in model.updates:
        assert measured == pytest.approx(logged, rel=1e-3, abs=1e-6)
        assert 0.0 < logged <= hyperparameters["target_kl"]
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak of memory")
def test_updates_on_atari_need_little_memory():
    pytest.importorskip("ale_py", reason=NEEDS_ATARI)
    pytest.importorskip("cv2", reason=NEEDS_ATARI)
    script = Path(__file__).parents[2] / "benchmarks" / "atari.py"
    command = [sys.executable, str(script), "--measure", "--updates", "2", "--algorithms", "sb3_trpo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr
    for update in json.loads(done.stdout.splitlines()[-1]):
        assert update["rollout_mib"] > 25.0
        # sb3-contrib's takes 40 times the observations, which are bytes.
        assert update["extra_mib"] < 10.0 * update["rollout_mib"]
        assert 0.0 < update["kl"] <= 0.01
