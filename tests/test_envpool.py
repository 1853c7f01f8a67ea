"""
EnvPool behind SB3's interface, compared with the same tasks of Gymnasium in a ``DummyVecEnv``.
"""

import contextlib
import copy
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")

import envpool
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_trpo import TRPO, make_envpool_vec_env
from sb3_trpo.envpool import EnvPoolVecEnv
from sb3_trpo.validation.values import UserError

TASKS = ["HalfCheetah-v5", "Hopper-v5", "CartPole-v1", "Pendulum-v1", "LunarLander-v3", "FrozenLake-v1", "Acrobot-v1"]


def steps_of(env: VecEnv, n_steps: int) -> list[Any]:
    """Return what a reset and so many steps of random actions, always the same ones, return."""
    env.action_space.seed(7)
    env_steps = [env.reset()]
    for _ in range(n_steps):
        actions = np.stack([env.action_space.sample() for _ in range(env.num_envs)])
        env_steps.append(env.step(actions))
    return env_steps


@pytest.mark.parametrize("task", TASKS)
def test_what_comes_back_looks_as_from_dummy_vec_env(task):
    if task.startswith("LunarLander"):
        pytest.importorskip("Box2D", reason="needs sb3-trpo[box2d]")
    env, dummy = make_envpool_vec_env(task, 3, seed=0), make_vec_env(task, 3, seed=0)
    assert env.action_space == dummy.action_space
    assert env.observation_space == dummy.observation_space
    (first, *steps), (dummy_first, *dummy_steps) = steps_of(env, 3), steps_of(dummy, 3)
    assert (first.shape, first.dtype) == (dummy_first.shape, dummy_first.dtype)
    for (obs, rewards, dones, infos), dummy_step in zip(steps, dummy_steps, strict=True):
        for array, dummy_array in zip((obs, rewards, dones), dummy_step, strict=False):
            assert (array.shape, array.dtype) == (dummy_array.shape, dummy_array.dtype)
        assert isinstance(infos, list)
        assert len(infos) == 3
    assert len(env.reset_infos) == 3


def test_numbers_are_gymnasiums():
    pytest.importorskip("mujoco", minversion="4", reason="EnvPool's MuJoCo and older ones compute other numbers")
    # Without noise at resets there is nothing random left; both simulate with MuJoCo.
    options = {"reset_noise_scale": 0.0}
    n_steps = 150
    env = make_envpool_vec_env("Hopper-v5", 2, seed=0, **options)
    dummy = make_vec_env("Hopper-v5", 2, seed=0, env_kwargs=options)
    (first, *steps), (dummy_first, *dummy_steps) = steps_of(env, n_steps), steps_of(dummy, n_steps)
    np.testing.assert_allclose(first, dummy_first, atol=1e-9)
    n_episodes = 0
    for (obs, rewards, dones, infos), (dummy_obs, dummy_rewards, dummy_dones, dummy_infos) in zip(
        steps, dummy_steps, strict=True
    ):
        np.testing.assert_allclose(obs, dummy_obs, atol=1e-6)
        np.testing.assert_allclose(rewards, dummy_rewards, atol=1e-5)
        np.testing.assert_equal(dones, dummy_dones)
        for info, dummy_info in zip(infos, dummy_infos, strict=True):
            assert info["TimeLimit.truncated"] == dummy_info["TimeLimit.truncated"]
            assert ("episode" in info) == ("episode" in dummy_info) == ("terminal_observation" in info)
            if "episode" in info:
                n_episodes += 1
                assert info["episode"]["l"] == dummy_info["episode"]["l"]
                assert info["episode"]["r"] == pytest.approx(dummy_info["episode"]["r"], abs=1e-3)
                np.testing.assert_allclose(info["terminal_observation"], dummy_info["terminal_observation"], atol=1e-6)
    assert n_episodes > 4


def test_an_episode_that_times_out_is_truncated():
    env = make_envpool_vec_env("Pendulum-v1", 3, seed=0)
    _, *steps = steps_of(env, 450)
    for i, (obs, _, dones, infos) in enumerate(steps, start=1):
        assert dones.tolist() == [i % 200 == 0] * 3
        for env_obs, info in zip(obs, infos, strict=True):
            assert info["TimeLimit.truncated"] == (i % 200 == 0)
            assert ("terminal_observation" in info) == (i % 200 == 0)
            if "terminal_observation" in info:
                assert info["episode"]["l"] == 200
                assert np.abs(info["terminal_observation"] - env_obs).max() > 1e-3


def test_an_episode_that_fails_is_terminated_and_the_next_begins_in_the_same_step():
    env = make_envpool_vec_env("CartPole-v1", 5, seed=0)
    _, *steps = steps_of(env, 200)
    lengths = np.zeros(5, dtype=int)
    n_ends = 0
    for obs, rewards, dones, infos in steps:
        lengths += 1
        assert (rewards == 1.0).all()
        for i in dones.nonzero()[0]:
            n_ends += 1
            assert infos[i]["TimeLimit.truncated"] is False
            x, _, angle, _ = infos[i]["terminal_observation"]
            assert abs(x) > 2.4 or abs(angle) > 12 * np.pi / 180
            assert np.abs(obs[i]).max() <= 0.05
            assert (infos[i]["episode"]["r"], infos[i]["episode"]["l"]) == (lengths[i], lengths[i])
            lengths[i] = 0
    assert n_ends > 20


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
def test_episodes_are_as_long_as_gymnasiums(task):
    lengths = []
    for env in (make_envpool_vec_env(task, 20, seed=0), make_vec_env(task, 20, seed=0)):
        _, *steps = steps_of(env, 520)
        lengths.append([info["episode"]["l"] for *_, infos in steps for info in infos if "episode" in info])
    if task == "Acrobot-v1":
        assert all(np.median(episodes) == 500 for episodes in lengths)
    else:
        means = [np.mean(episodes) for episodes in lengths]
        error = np.sqrt(sum(np.var(episodes) / len(episodes) for episodes in lengths))
        assert abs(means[0] - means[1]) < 4 * error


def test_what_was_returned_stays_as_it_was():
    env = make_envpool_vec_env("CartPole-v1", 4, seed=0, num_threads=2)
    env.reset()
    returned, copies = [], []
    for _ in range(100):
        obs, rewards, dones, infos = env.step(np.ones(4, dtype=int))
        returned.append((obs, rewards, dones, [info.get("terminal_observation") for info in infos]))
        copies.append(copy.deepcopy(returned[-1]))
        assert len({id(info) for info in infos}) == 4
        infos[0]["mine"] = True
    np.testing.assert_equal(returned, copies)
    assert "mine" not in env.step(np.ones(4, dtype=int))[3][0]


def equal(steps: list[Any], other_steps: list[Any]) -> bool:
    observations, others = ([steps[0], *(step[0] for step in steps[1:])] for steps in (steps, other_steps))
    return all(np.array_equal(x, y) for x, y in zip(observations, others, strict=True))


def test_seeds():
    steps = steps_of(make_envpool_vec_env("Hopper-v5", 2, seed=3, num_threads=1), 40)
    same = make_envpool_vec_env("Hopper-v5", 2, seed=3, num_threads=2)
    assert equal(steps_of(same, 40), steps)
    assert not equal(steps_of(same, 40), steps)
    assert same.seed(3) == [3, 4]
    assert equal(steps_of(same, 40), steps)
    assert not equal(steps_of(make_envpool_vec_env("Hopper-v5", 2, seed=4), 40), steps)
    # The second environment of seed 3 is the first one of seed 4.
    shifted = make_envpool_vec_env("Hopper-v5", 2, seed=4).reset()
    np.testing.assert_array_equal(shifted[0], steps[0][1])
    assert not np.array_equal(make_envpool_vec_env("Hopper-v5").reset(), make_envpool_vec_env("Hopper-v5").reset())


def test_every_seed_of_sb3s_is_accepted():
    make_envpool_vec_env("CartPole-v1", 2, seed=2**32 - 1).reset()


def test_monitor_file(tmp_path):
    env = make_envpool_vec_env("Hopper-v5", 2, 0, monitor_dir=str(tmp_path / "run"), info_keywords=("x_position",))
    _, *steps = steps_of(env, 100)
    env.close()
    episodes = [info["episode"] for *_, infos in steps for info in infos if "episode" in info]
    table = load_results(str(tmp_path / "run"))
    assert len(table) == len(episodes) > 2
    assert table["l"].tolist() == [episode["l"] for episode in episodes]
    np.testing.assert_allclose(table["r"], [episode["r"] for episode in episodes])
    np.testing.assert_allclose(table["x_position"], [episode["x_position"] for episode in episodes])
    assert table["t"].is_monotonic_increasing


def test_infos_are_there_on_request():
    env = make_envpool_vec_env("HalfCheetah-v5", 2, 0, info_keywords=("x_position", "x_velocity"))
    _, *steps = steps_of(env, 5)
    positions = np.array([[info["x_position"] for info in infos] for *_, infos in steps])
    velocities = np.array([[info["x_velocity"] for info in infos] for *_, infos in steps])
    np.testing.assert_allclose(np.diff(positions, axis=0) / 0.05, velocities[1:], rtol=1e-6)
    assert positions[0, 0] != positions[0, 1]


def test_attributes_and_methods():
    env = make_envpool_vec_env("CartPole-v1", 3, 0)
    assert env.get_attr("spec", [0, 2]) == [gym.spec("CartPole-v1")] * 2
    assert env.render_mode is None
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, 0) == [False]
    assert not env.has_attr("gravity")
    for use in (env.get_attr, env.env_method, lambda name: env.set_attr(name, 1.0)):
        with pytest.raises(AttributeError, match="'gravity'"):
            use("gravity")
    env.set_options({"low": 0.1})
    with pytest.raises(ValueError, match="no reset options"):
        env.reset()


def test_closing_twice():
    env = make_envpool_vec_env("CartPole-v1", 2, 0)
    env.close()
    env.reset()
    env.close()
    env.close()
    with pytest.raises(UserError, match="reset"):
        env.step(np.zeros(2, dtype=int))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "HalfCheeta-v5"}, "no task 'HalfCheeta-v5'.*HalfCheetah-v5"),
        ({"task": "?"}, "no task '\\?'; nothing has a similar name"),
        ({"task": "Hopper-v5", "reset_noise": 0.1}, "no option 'reset_noise'.*reset_noise_scale"),
        ({"task": "Hopper-v5", "batch_size": 1}, "no option 'batch_size'"),
        ({"task": "Hopper-v5", "info_keywords": ["x"]}, "no info 'x'.*x_position"),
        ({"task": None}, "task is None, but must be the id of one of EnvPool's tasks"),
        ({"task": "Hopper-v5", "n_envs": 0}, "n_envs is 0"),
        ({"task": "Hopper-v5", "seed": "1"}, "seed is '1'"),
        ({"task": "Hopper-v5", "flatten": "yes"}, "flatten is 'yes'"),
        ({"task": "Hopper-v5", "num_threads": -1}, "num_threads is -1"),
        ({"task": "Go9x9-v1"}, "2 players"),
        ({"task": "LaneKeeping-v0"}, "observations Dict.*flatten=True"),
        ({"task": "VizdoomCustom-v1"}, "can't make VizdoomCustom-v1"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, said):
    with pytest.raises(UserError, match=said) as error:
        make_envpool_vec_env(**arguments)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_be_written_otherwise():
    env = make_envpool_vec_env("CartPole-v1", 2.0, np.int64(3), num_threads=1.0)
    assert type(env.num_envs) is int
    assert env.reset().shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2,), (2, 1, 1), ()])
def test_actions_for_another_number_of_environments_are_refused(shape):
    env = make_envpool_vec_env("Pendulum-v1", 2)
    env.reset()
    with pytest.raises(UserError, match=r"actions have shape .*, but must have \(2, 1\)"):
        env.step(np.zeros(shape, np.float32))


def test_steps_before_a_reset_options_and_files_that_are_none_get_one_sentence():
    env = make_envpool_vec_env("Pendulum-v1", 2)
    with pytest.raises(UserError, match="have to be reset before"):
        env.step(np.zeros((2, 1), np.float32))
    env.set_options({"low": 0})
    with pytest.raises(UserError, match="no reset options, but were given"):
        env.reset()
    assert env.reset().shape == (2, 3)
    with pytest.raises(UserError, match=r"EnvPool can't make HalfCheetah-v5: .*nowhere\.xml"):
        make_envpool_vec_env("HalfCheetah-v5", 2, xml_file="nowhere.xml").reset()


def test_without_envpool_the_extra_is_named():
    code = "import sys; sys.modules['envpool'] = None; import sb3_trpo.envpool"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert "pip install 'sb3-trpo[envpool]'" in result.stderr.splitlines()[-1]


def test_training_and_evaluation():
    env = VecNormalize(make_envpool_vec_env("InvertedPendulum-v5", 16, seed=0))
    model = TRPO("MlpPolicy", env, n_steps=64, batch_size=256, seed=0, device="cpu", target_kl=0.05)
    model.learn(64 * 16 * 20)
    assert isinstance(model.env.unwrapped, EnvPoolVecEnv)
    env.training, env.norm_reward = False, False
    returns, lengths = evaluate_policy(model, env, 16, return_episode_rewards=True)
    # One point for each step; a random policy lasts for about 5.
    assert returns == lengths
    assert np.mean(returns) > 50
    env.close()


# A task of each kind of what Gymnasium's task of the same id asks for and is not installed, or has no more.
@pytest.mark.parametrize("task", ["phys2d/CartPole-v1", "tabular/CliffWalking-v0", "HalfCheetah-v3", "Pusher-v4"])
def test_tasks_that_only_envpool_can_make(task):
    env = make_envpool_vec_env(task, 2, seed=0)
    for obs, *_ in steps_of(env, 3)[1:]:
        assert obs.shape == (2, *env.observation_space.shape)
    env.close()


@pytest.mark.slow
def test_whatever_the_task_it_is_made_or_refused_in_one_sentence():
    for task in envpool.list_all_envs():
        # Anything but a UserError fails.
        with contextlib.suppress(UserError):
            env = make_envpool_vec_env(task, 1, seed=0, flatten=True)
            assert len(env.observation_space.shape) == 1


@pytest.mark.parametrize("task", ["FetchReach-v4", "BinPack-v2", "Maze-v0", "CVRP-v1"])
def test_flattened_observations_are_gymnasiums(task):
    env = make_envpool_vec_env(task, 3, seed=0, flatten=True)
    pool = envpool.make_gymnasium(task, num_envs=3, seed=[0, 1, 2])
    space = pool.observation_space
    batch, _ = pool.reset()
    expected = [spaces.flatten(space, part_of(space, batch, i)) for i in range(3)]
    obs = env.reset()
    np.testing.assert_array_equal(obs, expected)
    assert env.observation_space.contains(obs[0])
    assert env.step(np.stack([env.action_space.sample()] * 3))[0].shape == obs.shape


def part_of(space: spaces.Space, batch: Any, i: int) -> Any:
    """Return one environment's part of a batch of observations."""
    if isinstance(space, spaces.Dict):
        return {name: part_of(part, batch[name], i) for name, part in space.spaces.items()}
    return batch[i]


def test_dictionaries_and_whole_numbers_train():
    env = make_envpool_vec_env("BinPack-v2", 4, seed=0, flatten=True)
    choices = envpool.make_spec("BinPack-v2").action_space
    np.testing.assert_array_equal(env.action_space.nvec, choices.high - choices.low + 1)
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, device="cpu").learn(256)
    actions, _ = model.predict(env.reset())
    assert all(env.action_space.contains(action) for action in actions)


class PoolAdapter(VecEnvWrapper):
    """
    What EnvPool's users write around a pool: a ``VecEnvWrapper`` whose inner environment is none of SB3's, and which
    resets what is done with steps of its own.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__(venv=pool)

    def reset(self) -> Any:
        return self.venv.reset()[0]

    def seed(self, seed: int | None = None) -> Any:
        """Ignore the seed, for the pool has its own."""

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        obs, rewards, terminated, truncated, _ = self.venv.step(self.actions)
        dones = terminated | truncated
        infos = [{"TimeLimit.truncated": bool(truncated[i])} for i in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = obs[i].copy()
            obs[i] = self.venv.reset(np.array([i]))[0]
        return obs, rewards, dones, infos


def test_an_adapter_of_ones_own_trains():
    env = PoolAdapter(envpool.make_gymnasium("CartPole-v1", num_envs=4, seed=0))
    model = TRPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu").learn(512)
    assert model.num_timesteps == 512
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
