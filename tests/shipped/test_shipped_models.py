"""
Models as they ship: what ``sb3_trpo.make`` trains is what the command line trains.
"""

import inspect
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import rl_zoo3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv

import sb3_trpo
from sb3_trpo import TRPO, PolicyAverage
from sb3_trpo.cli import main
from sb3_trpo.shipped.models import HYPERPARAMETERS
from sb3_trpo.validation.values import UserError

TASKS = yaml.safe_load((HYPERPARAMETERS / "trpo.yml").read_text())


@pytest.mark.parametrize(
    "env_id",
    [
        "MountainCarContinuous-v0",
        pytest.param("HalfCheetah-v5", marks=pytest.mark.slow),
        pytest.param("Humanoid-v5", marks=pytest.mark.slow),
    ],
)
def test_training_is_that_of_the_command_line_bit_for_bit(env_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    n_timesteps = 3 * TASKS[env_id]["n_envs"] * TASKS[env_id]["n_steps"]
    short = ["-n", str(n_timesteps), "--eval-freq", "-1", "--num-threads", "1", "--device", "cpu", "--verbose", "0"]
    main(["train", "--env", env_id, "--seed", "5", *short])
    trained = TRPO.load(f"logs/trpo/{env_id}_1/{env_id}.zip", device="cpu")

    th.set_num_threads(1)
    model = sb3_trpo.make(env_id, seed=5, device="cpu", n_timesteps=n_timesteps).learn()

    assert model.num_timesteps == trained.num_timesteps == n_timesteps
    for name, value in trained.policy.state_dict().items():
        assert th.equal(model.policy.state_dict()[name], value), name
    for name in ("target_kl", "min_std", "max_std", "learning_rate"):
        mine, theirs = (getattr(trpo, name) for trpo in (model, trained))
        assert [mine(x) if callable(mine) else mine for x in (1.0, 0.3)] == [
            theirs(x) if callable(theirs) else theirs for x in (1.0, 0.3)
        ]


def test_making_a_model_writes_nothing_and_prints_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    sb3_trpo.make("CartPole-v1", seed=0, device="cpu", n_timesteps=1024).learn()
    sb3_trpo.hyperparameters("HalfCheetah-v5")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_rl_zoo_keeps_its_own_trpo(tmp_path):
    """In a process that has not asked for the plugin."""
    code = "import sb3_trpo; sb3_trpo.make('CartPole-v1'); import rl_zoo3; print(rl_zoo3.ALGOS['trpo'].__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.stdout.startswith("sb3_contrib."), done.stderr
    assert rl_zoo3.ALGOS["trpo"] is TRPO


@pytest.mark.parametrize("env_id", sorted(set(TASKS) - {"default", "atari"}))
def test_hyperparameters_are_arguments_of_trpo(env_id):
    arguments = sb3_trpo.hyperparameters(env_id)
    assert arguments.keys() <= inspect.signature(TRPO).parameters.keys()
    assert arguments == {name: value for name, value in TASKS[env_id].items() if name in arguments}
    if isinstance(gym.spec(env_id).entry_point, str) and "classic_control" in gym.spec(env_id).entry_point:
        assert TRPO(env=env_id, device="cpu", **arguments).target_kl == TASKS[env_id]["target_kl"]


def test_hyperparameters_with_schedules_make_a_model():
    pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
    model = TRPO(env="Humanoid-v5", device="cpu", **sb3_trpo.hyperparameters("Humanoid-v5"))
    assert [model.target_kl(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([0.08, 0.05, 0.02])


@pytest.mark.parametrize(
    ("env", "target_kl"), [("cartpole:CartPoleEnv", TASKS["default"]["target_kl"]), ("pendulum:PendulumEnv", 0.03)]
)
def test_tasks_without_an_entry_get_the_rule_if_they_are_continuous_or_the_default(env, target_kl):
    gym.register("Unheard-v0", f"gymnasium.envs.classic_control.{env}", max_episode_steps=200)
    try:
        assert sb3_trpo.hyperparameters("Unheard-v0")["target_kl"] == target_kl
    finally:
        del gym.registry["Unheard-v0"]


class Counter(BaseCallback):
    """A callback that counts rollouts."""

    n_rollouts = 0

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1

    def _on_step(self) -> bool:
        return True


def test_callbacks_of_the_user_come_beside_those_of_the_task():
    counter = Counter()
    callback = [{"sb3_trpo.PolicyAverage": {"share": 0.5}}]
    model = sb3_trpo.make("CartPole-v1", device="cpu", n_timesteps=2048, n_envs=2, n_steps=512, callback=callback)
    (average,) = model.shipped_callbacks
    assert isinstance(average, PolicyAverage)
    assert (model.n_envs, model.n_steps) == (2, 512)
    steps = []
    model.learn(callback=counter).learn(callback=[counter]).learn(1024, callback=lambda *_: steps.append(1) or True)
    assert counter.n_rollouts == 4
    assert len(steps) == 512
    assert callback == [{"sb3_trpo.PolicyAverage": {"share": 0.5}}]


def test_saved_models_are_trpos(tmp_path):
    model = sb3_trpo.make("Pendulum-v1", seed=0, device="cpu", n_timesteps=1024, n_envs=1).learn()
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert not hasattr(loaded, "shipped_timesteps")
    observation = model.observation_space.sample()
    actions = [trpo.predict(observation, deterministic=True)[0] for trpo in (loaded, model)]
    np.testing.assert_array_equal(*actions)
    again = type(model).load(tmp_path / "model", env=model.env, device="cpu")
    with pytest.raises(UserError, match="total_timesteps is None"):
        again.learn()


def test_environments_may_have_processes_of_their_own():
    model = sb3_trpo.make("CartPole-v1", seed=0, device="cpu", vec_env="subproc", n_envs=2)
    assert isinstance(model.env.unwrapped, SubprocVecEnv)
    model.env.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "said"),
    [
        ("CartPole-v1", {"target_kll": 0.1}, "has no hyperparameter 'target_kll'; did you mean target_kl"),
        ("CartPole-v1", {"target_kl": -0.1}, "target_kl is -0.1, but must be"),
        ("CartPole-v1", {"vec_env": "envpol"}, "vec_env is 'envpol', but must be"),
        ("CartPol-v1", {}, "CartPole"),
        (None, {}, "env_id is None, but must be the id of a task"),
        (gym.make("CartPole-v1"), {}, "env_id is .*, but must be the id of a task"),
        ("CartPole-v1", {"seed": "0"}, "seed is '0', but must be"),
        ("CartPole-v1", {"n_timesteps": None}, "n_timesteps is None, but must be an integer of at least 1"),
        ("CartPole-v1", {"normalize": "x"}, "hyperparameters of CartPole-v1 in .* can't be read .*name 'x'"),
        ("CartPole-v1", {"normalize": "[1]"}, "hyperparameters of CartPole-v1 in .* can't be read"),
        ("CartPole-v1", {"normalize": {"foo": 1}}, "normalize has 'foo', but VecNormalize has no such argument"),
        ("CartPole-v1", {"env_wrapper": "foo.Bar"}, "can't be read .*No module named 'foo'"),
        ("CartPole-v1", {"callback": "foo.Bar"}, "can't be read .*No module named 'foo'"),
        ("CartPole-v1", {"learning_rate": "fast"}, "learning_rate is 'fast', but must be"),
        ("CartPole-v1", {"learning_rate": "lin_x"}, "can't be read .*could not convert string to float: 'x'"),
        ("CartPole-v1", {"seed": -1}, "seed is -1, but must be"),
        ("CartPole-v1", {"env_kwargs": "x"}, "env_kwargs is 'x', with which no CartPole-v1 can be made"),
        ("CartPole-v1", {"env_kwargs": {"grafity": 1}}, "env_kwargs is {'grafity': 1}, with which no CartPole-v1"),
    ],
)
def test_what_is_wrong_is_said(env_id, kwargs, said):
    with pytest.raises((ValueError, gym.error.Error), match=said):
        sb3_trpo.make(env_id, **kwargs)


@pytest.mark.parametrize(
    ("rate", "ends"),
    [
        ("lin_1e-3_1e-4", (1e-3, 1e-4)),
        ("lin_1e-3", (1e-3, 0.0)),
        (lambda progress: 1e-3 + progress, (1.001, 1e-3)),
        (0.5, (0.5, 0.5)),
    ],
)
def test_schedules_of_the_learning_rate_are_read_in_every_form(rate, ends):
    model = sb3_trpo.make("CartPole-v1", seed=0, device="cpu", learning_rate=rate)
    assert (model.lr_schedule(1.0), model.lr_schedule(0.0)) == pytest.approx(ends)
