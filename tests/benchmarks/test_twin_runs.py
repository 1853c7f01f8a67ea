"""
The comparisons with the PPO twins: their arithmetic, and that a run leaves what the table is made from.
"""

import json

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from masks import ConnectFour
from memory import TASKS, TMaze
from report import make_report
from stable_baselines3.common.env_checker import check_env
from twin_runs import Task, last_tenth, run, steps_to, twin_table

from sb3_trpo import TRPO

returns = st.lists(st.floats(-100, 100), max_size=60)


@given(returns, st.integers(1, 10), st.floats(-100, 100))
def test_steps_to_is_the_first_window_whose_mean_reaches_the_level(values, window, level):
    episodes = [(10 * i, value) for i, value in enumerate(values, start=1)]
    found = steps_to(episodes, level, window)
    windows = {10 * end: np.mean(values[end - window : end]) for end in range(window, len(values) + 1)}
    reached = [at for at, mean in windows.items() if mean >= level]
    assert found == (min(reached) if reached else None)


def test_the_end_is_the_last_tenth_of_the_steps():
    assert last_tenth([(10, 1.0), (90, 2.0), (91, 3.0), (100, 5.0), (105, 7.0)], 100) == 5.0
    assert last_tenth([(10, 1.0)], 100) is None


def test_a_run_leaves_what_the_table_is_made_from(tmp_path):
    task = Task(lambda: gym.make("CartPole-v1"), steps=128, level=5.0, n_envs=2, normalize=True)
    path = tmp_path / "memory" / "CartPole" / "TRPO" / "0.json"
    result = run(path, task, lambda env: TRPO("MlpPolicy", env, n_steps=64, batch_size=64, device="cpu"), seed=0)
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert (result["task"], result["algorithm"], result["steps"]) == ("CartPole", "TRPO", 128)
    assert {"versions", "machine", "sources"} <= result.keys()
    assert "| CartPole, 128 steps | TRPO | **1 of 5** |" in twin_table(tmp_path / "memory")
    report = tmp_path / "RESULTS.md"
    make_report(tmp_path, report, tmp_path / "picture.png", tmp_path / "README.md")
    assert "| CartPole, 128 steps | TRPO | **1 of 5** |" in report.read_text()


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_environments(name):
    check_env(TASKS[name].make(), skip_render_check=True)


def test_the_maze_pays_whoever_remembers_the_sign():
    env = TMaze()
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        sign, total, is_over = int(observation[0] > 0), 0.0, False
        while not is_over:
            observation, reward, is_over, _, _ = env.step(sign if observation[1] else 2)
            total += reward
        assert total == 1.0


def test_connect_four_is_a_game_of_two_that_either_wins():
    pytest.importorskip("pettingzoo")
    env, random, ends, beginnings = ConnectFour(), np.random.default_rng(0), set(), set()
    check_env(env, skip_render_check=True)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        beginnings.add(observation.sum())
        is_over = False
        while not is_over:
            stones = observation.sum()
            observation, reward, is_over, _, _ = env.step(random.choice(np.flatnonzero(env.action_masks())))
            # Each has played, unless the first of the two has ended the game.
            assert observation.sum() == stones + 2 or is_over
            assert is_over or reward == 0.0
        ends.add(reward)
    assert beginnings == {0.0, 1.0}
    assert ends >= {-1.0, 1.0}
