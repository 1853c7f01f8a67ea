"""
The command line and the RL Zoo plugin, run for real: short trainings on classic control in a temporary folder.
"""

import argparse
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import rl_zoo3
import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_trpo import TRPO
from sb3_trpo.cli import COMMANDS, main
from sb3_trpo.rl_zoo import HYPERPARAMETERS, register
from sb3_trpo.run_report import EVAL_SEED_OFFSET, N_EVAL_EPISODES, ReportingExperimentManager, draw_learning_curve

TASKS = yaml.safe_load(HYPERPARAMETERS.read_text())
# What RL Zoo itself takes out of an entry before it calls the algorithm's constructor.
RL_ZOO_KEYS = {"n_envs", "n_timesteps", "normalize", "env_wrapper", "frame_stack"}
SHORT = ["--seed", "0", "--num-threads", "1", "--device", "cpu", "--verbose", "0"]


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_manager(
    env_id: str, manager_class: type[ExperimentManager] = ExperimentManager, **kwargs
) -> ExperimentManager:
    """
    :return: an experiment manager as ``train`` makes it, without evaluations during training
    """
    return manager_class(
        argparse.Namespace(),
        "trpo",
        env_id,
        "logs",
        eval_freq=-1,
        log_interval=1,
        seed=0,
        verbose=0,
        device="cpu",
        **kwargs,
    )


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_train_leaves_the_files_that_tools_expect_and_reports_the_return(capsys):
    main(
        [
            "train",
            "--env",
            "MountainCarContinuous-v0",
            "-n",
            "8192",
            "--eval-freq",
            "4096",
            "--eval-episodes",
            "2",
            *SHORT,
        ]
    )

    run = Path("logs/trpo/MountainCarContinuous-v0_1")
    inner = run / "MountainCarContinuous-v0"
    for file in ("best_model.zip", "MountainCarContinuous-v0.zip", "0.monitor.csv", "7.monitor.csv"):
        assert (run / file).stat().st_size > 0
    for file in ("config.yml", "args.yml", "vecnormalize.pkl"):
        assert (inner / file).stat().st_size > 0
    with np.load(run / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [4096, 8192]
        assert evaluations["results"].shape == (2, 2)
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    output = capsys.readouterr().out
    assert re.search(rf"deterministic, {N_EVAL_EPISODES} episodes: return -?\d+\.\d ± \d+\.\d", output)
    for path in (run / "MountainCarContinuous-v0.zip", run / "learning_curve.png"):
        assert str(path) in output

    data, _, _ = load_from_zip_file(run / "best_model.zip")
    assert data["target_kl"] == TASKS["MountainCarContinuous-v0"]["target_kl"]

    main(
        ["enjoy", "--env", "MountainCarContinuous-v0", "--folder", "logs", "--no-render", "-n", "10", "--device", "cpu"]
    )
    assert "Loading logs/trpo/MountainCarContinuous-v0_1/MountainCarContinuous-v0.zip" in capsys.readouterr().out


def test_plugin_swaps_trpo_in_rl_zoos_own_command():
    plugin = ["--gym-packages", "sb3_trpo.rl_zoo"]
    command = ["-m", "rl_zoo3.train", "--algo", "trpo", "--env", "Pendulum-v1", "-n", "2048", "--eval-freq", "1024"]
    result = run_python(*command, *SHORT, *plugin)
    assert result.returncode == 0, result.stderr
    assert f"Loading hyperparameters from: {HYPERPARAMETERS}" in result.stdout
    run = Path("logs/trpo/Pendulum-v1_1")
    assert TRPO.load(run / "best_model.zip", device="cpu").gamma == TASKS["Pendulum-v1"]["gamma"]
    for model in ("best_model.zip", "Pendulum-v1.zip"):
        data, _, _ = load_from_zip_file(run / model)
        assert data["policy_class"].__module__.startswith("sb3_trpo.")


def test_users_conf_file_wins(capsys):
    Path("mine.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 64, target_kl: 0.0123}\n")
    main(["train", "--env", "CartPole-v1", "--conf-file", "mine.yml", "--eval-freq", "-1", *SHORT])
    data, _, _ = load_from_zip_file("logs/trpo/CartPole-v1_1/CartPole-v1.zip")
    assert data["target_kl"] == 0.0123
    assert "Loading hyperparameters from: mine.yml" in capsys.readouterr().out


def test_other_algorithms_keep_their_class_and_hyperparameters(capsys):
    assert rl_zoo3.ALGOS["trpo"] is TRPO
    assert rl_zoo3.ALGOS["ppo"].__module__.startswith("stable_baselines3.")
    short_run = ["-params", "n_steps:16", "n_envs:1", "batch_size:16", "--eval-freq", "-1", "-n", "16"]
    main(["train", "--algo", "ppo", "--env", "CartPole-v1", *short_run, *SHORT])
    assert Path("logs/ppo/CartPole-v1_1/CartPole-v1.zip").exists()
    assert str(HYPERPARAMETERS) not in capsys.readouterr().out


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
    manager = make_manager(env_id)
    hyperparameters, *_ = manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    env = manager.create_envs(manager.n_envs, no_log=True)
    model = TRPO(env=env, device="cpu", **hyperparameters)
    env.close()
    assert model.n_envs == TASKS[env_id]["n_envs"]
    if TASKS[env_id]["normalize"]:
        assert model.get_vec_normalize_env().gamma == model.gamma


def test_final_evaluation_uses_the_training_statistics_and_leaves_them_alone():
    manager = make_manager("Pendulum-v1", ReportingExperimentManager, n_timesteps=1024, hyperparams={"normalize": True})
    manager.args.env = "Pendulum-v1"
    model, _ = manager.setup_experiment()
    manager.learn(model)
    statistics = model.get_vec_normalize_env().obs_rms
    count, mean = statistics.count, statistics.mean.copy()

    result = manager.evaluate(model)
    assert manager.evaluate(model) == result
    # A step of Pendulum costs at most 16.28, an episode has 200; the normalised return would be far smaller.
    assert -200 * 16.28 < result[0] < -200
    assert statistics.count == count
    np.testing.assert_array_equal(statistics.mean, mean)

    statistics.mean += 3
    assert manager.evaluate(model) != result


def test_evaluation_seeds_are_far_from_training_seeds():
    assert max(task["n_envs"] for task in TASKS.values()) < EVAL_SEED_OFFSET


def test_no_episode_no_learning_curve(tmp_path):
    assert draw_learning_curve(tmp_path, title="nothing yet") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    if name == "push-to-hub":
        pytest.importorskip("huggingface_sb3")
        from huggingface_sb3 import push_to_hub

        if not hasattr(push_to_hub, "generate_metadata"):
            pytest.skip("this RL Zoo asks huggingface_sb3 for a function that the installed version lacks")
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    main([])
    without_arguments = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == without_arguments
    assert all(name in without_arguments for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "'trian'"),
        (["train", "--env", "HalfCheeta-v5"], "HalfCheetah-v5"),
        (["train", "--trained-agent", "nowhere.zip"], "trained_agent"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, named):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    assert named in end.value.code


@pytest.mark.parametrize("statement", ["from sb3_trpo.cli import main; main(['train'])", "import sb3_trpo.rl_zoo"])
def test_without_rl_zoo_the_extra_is_named(statement):
    result = run_python("-c", f"import sys; sys.modules['rl_zoo3'] = None; {statement}")
    assert result.returncode == 1
    assert "pip install 'sb3-trpo[zoo]'" in result.stderr.splitlines()[-1]
    if "main" in statement:
        assert len(result.stderr.splitlines()) == 1
