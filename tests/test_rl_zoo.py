"""
The RL Zoo plugin and its hyperparameters, with the real RL Zoo.
"""

import argparse
import inspect
import os
import subprocess
import sys

import gymnasium as gym
import pytest
import yaml

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import rl_zoo3
from rl_zoo3.exp_manager import ExperimentManager

from sb3_trpo import TRPO
from sb3_trpo.rl_zoo import HYPERPARAMETERS, register

TASKS = yaml.safe_load(HYPERPARAMETERS.read_text())
# What RL Zoo itself takes out of an entry before it calls the algorithm's constructor.
RL_ZOO_KEYS = {"n_envs", "n_timesteps", "normalize", "env_wrapper", "frame_stack"}


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_plugin_swaps_trpo_in_rl_zoos_own_command():
    train = ["-m", "rl_zoo3.train", "--algo", "trpo", "--env", "CartPole-v1", "-n", "2000", "--seed", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *train, "--gym-packages", "sb3_trpo.rl_zoo"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert f"Loading hyperparameters from: {HYPERPARAMETERS}" in result.stdout
    # A key that only our TRPO logs.
    assert "cg_iterations" in result.stdout
    model = TRPO.load("logs/trpo/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    for name in ("target_kl", "n_steps", "gae_lambda", "cg_damping"):
        assert getattr(model, name) == TASKS["CartPole-v1"][name]


def test_trpo_means_ours():
    assert rl_zoo3.ALGOS["trpo"] is TRPO


def test_registering_twice_changes_nothing():
    init = ExperimentManager.__init__
    register()
    assert ExperimentManager.__init__ is init


@pytest.mark.parametrize("env_id", TASKS)
def test_hyperparameters_are_arguments_of_the_constructor(env_id):
    arguments = inspect.signature(TRPO.__init__).parameters
    assert set(TASKS[env_id]) - RL_ZOO_KEYS <= set(arguments)
    assert TASKS[env_id]["n_envs"] * TASKS[env_id].get("n_steps", 2048) % TASKS[env_id]["batch_size"] == 0


@pytest.mark.parametrize("env_id", sorted(set(TASKS) - {"default", "atari"}))
def test_hyperparameters_build_a_model(env_id):
    try:
        gym.make(env_id).close()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    manager = ExperimentManager(argparse.Namespace(), "trpo", env_id, "logs", seed=0, device="cpu")
    hyperparameters, *_ = manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    env = manager.create_envs(manager.n_envs, no_log=True)
    model = TRPO(env=env, device="cpu", **hyperparameters)
    env.close()
    assert model.n_envs == TASKS[env_id]["n_envs"]
    if TASKS[env_id]["normalize"]:
        assert model.get_vec_normalize_env().gamma == model.gamma
