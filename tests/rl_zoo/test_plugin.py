"""
The RL Zoo plugin and its hyperparameters, with the real RL Zoo.
"""

import argparse
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import optuna
import rl_zoo3
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_trpo import TRPO
from sb3_trpo.cli import main
from sb3_trpo.rl_zoo.algorithms import ALGORITHMS
from sb3_trpo.rl_zoo.plugin import register
from sb3_trpo.validation.values import UserError

HYPERPARAMETERS = ALGORITHMS["trpo"].hyperparameters
TASKS = yaml.safe_load(HYPERPARAMETERS.read_text())
# What RL Zoo itself takes out of an entry before it calls the algorithm's constructor.
RL_ZOO_KEYS = {"callback", "n_envs", "n_timesteps", "normalize", "env_wrapper", "frame_stack"}


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


def manager_of(hyperparameters, env_id="CartPole-v1", **kwargs):
    """
    Make RL Zoo's experiment manager with hyperparameters of a file.

    :param hyperparameters: of the task, as in a file
    :param env_id: the task
    :return: RL Zoo's experiment manager that reads them from a file
    """
    Path("mine.yml").write_text(yaml.safe_dump({env_id: hyperparameters}))
    return ExperimentManager(argparse.Namespace(), "trpo", env_id, "logs", config="mine.yml", **kwargs)


@pytest.mark.parametrize(("name", "logged"), [("target_kl", "train/target_kl"), ("min_std", None), ("max_std", None)])
@pytest.mark.parametrize(
    ("text", "at_the_start", "late"),
    [(0.02, 0.02, 0.02), ("lin_0.06", 0.06, 0.015), ("lin_0.4_0.2", 0.4, 0.25)],
)
def test_files_may_give_schedules_for_our_own_hyperparameters(name, logged, text, at_the_start, late):
    hyperparameters = {"n_timesteps": 512, "policy": "MlpPolicy", "n_steps": 128, name: text}
    model, _ = manager_of(hyperparameters, "Pendulum-v1", seed=0, device="cpu").setup_experiment()
    value = getattr(model, name)
    schedule = value if callable(value) else lambda _: value
    assert (schedule(1.0), schedule(0.25)) == pytest.approx((at_the_start, late))
    model.learn(512)
    if logged:
        # The last update comes after the last step.
        assert model.logger.name_to_value[logged] == schedule(0.0)
    model.env.close()


@pytest.mark.parametrize("text", ["0.06", "", "lin", "lin_", "lin_fast", "lin_1_2_3", "cos_0.06"])
def test_other_schedules_are_refused(text):
    manager = manager_of({"n_timesteps": 512, "policy": "MlpPolicy", "target_kl": text}, device="cpu")
    with pytest.raises(ValueError, match=f"target_kl is '{text}', but must be a number, a schedule, lin_START"):
        manager.setup_experiment()


NEW_OPTIONS = {"cg_residual_tol", "cg_progress_tol", "cg_warm_start", "ent_coef", "max_grad_norm", "adaptive_kl"}


def test_optimization_tries_the_new_options(capsys):
    """RL Zoo's own command, from sampling to the study on disk and back to hyperparameters."""
    study_options = [
        "--storage",
        "studies/journal.log",
        "--study-name",
        "mine",
        "--sampler",
        "random",
        "--pruner",
        "none",
    ]
    short = ["-n", "512", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--seed", "0"]
    small = ["--no-optim-plots", "--device", "cpu", "--num-threads", "1", "-params", "n_envs:1"]
    main(["train", "-optimize", "--env", "Pendulum-v1", *study_options, *short, *small])
    manager = ExperimentManager(argparse.Namespace(), "trpo", "Pendulum-v1", "logs", device="cpu")
    study = optuna.load_study(study_name="mine", storage=JournalStorage(JournalFileBackend("studies/journal.log")))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    for trial in study.trials:
        assert trial.params.keys() >= NEW_OPTIONS
        loaded = manager.load_trial("studies/journal.log", "mine", trial.number)
        model = TRPO("MlpPolicy", "Pendulum-v1", device="cpu", **loaded)
        assert loaded["policy_kwargs"]["log_std_init"] == trial.params["log_std_init"]
        assert model.n_steps >= model.batch_size

    # The best one is printed as an entry that trains.
    text = capsys.readouterr().out.partition("as an entry for --conf-file:\n\n")[2]
    Path("best.yml").write_text(text)
    main(["train", "--env", "Pendulum-v1", "--conf-file", "best.yml", "--eval-freq", "-1", "--device", "cpu"])
    best = TRPO.load("logs/trpo/Pendulum-v1_2/Pendulum-v1.zip", device="cpu")
    assert best.cg_damping == pytest.approx(study.best_trial.params["cg_damping"])
    assert best.policy_kwargs["log_std_init"] == study.best_trial.params["log_std_init"]


def test_a_search_without_a_finished_trial_says_so():
    def spoiled(**kwargs: Any) -> gym.Env:
        return gym.wrappers.TransformReward(gym.make("Pendulum-v1", **kwargs), lambda _: np.nan)

    gym.register("SpoiledPendulum-v0", entry_point=spoiled, max_episode_steps=200)
    options = ["-n", "512", "--n-trials", "1", "--no-optim-plots", "--device", "cpu", "--pruner", "none"]
    try:
        with pytest.raises((UserError, SystemExit), match="has no best trial, for none was completed"):
            main(["train", "-optimize", "--env", "SpoiledPendulum-v0", *options])
    finally:
        del gym.registry["SpoiledPendulum-v0"]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), n_actions=st.sampled_from([0, 1, 17]), n_envs=st.sampled_from([1, 2, 3, 8]))
def test_whatever_is_sampled_is_an_argument(seed, n_actions, n_envs):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    sampled = HYPERPARAMS_SAMPLER["trpo"](trial, n_actions, n_envs, {})
    assert ("log_std_init" in sampled["policy_kwargs"]) == (n_actions > 0)
    assert sampled["batch_size"] <= sampled["n_steps"] * n_envs
    again = HYPERPARAMS_CONVERTER["trpo"](trial.params)
    assert str(again) == str(sampled)
    TRPO("MlpPolicy", "Pendulum-v1", device="cpu", **{**sampled, "n_steps": sampled["n_steps"] * n_envs})
