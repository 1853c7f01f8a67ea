"""
Returns of a policy are those of its episodes, whatever number of environments runs them.
"""

import gymnasium as gym
import numpy as np
import pytest
from campaign.evaluation import GaussianNoise, deterministic_policy, run_episodes, stochastic_policy
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

SEEDS = range(50, 57)


def balance(observations: np.ndarray, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """
    Make a policy for CartPole whose episodes differ in length: it stops caring after 10 steps times the episode.
    """
    leaning = (observations[:, 2] + observations[:, 3] > 0).astype(int)
    return np.where(steps < 10 * episodes, leaning, 0)


def one_by_one(act, seeds) -> list[float]:
    env = gym.make("CartPole-v1")
    returns = []
    for episode, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        total, done, step = 0.0, False, 0
        while not done:
            action = act(observation[None], np.array([episode]), np.array([step]))[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done, step = total + float(reward), terminated or truncated, step + 1
        returns.append(total)
    return returns


@pytest.mark.parametrize("n_envs", [1, 3, 7, 10])
def test_any_number_of_environments_gives_the_same_returns(n_envs):
    envs = [gym.make("CartPole-v1") for _ in range(n_envs)]
    returns, lengths = run_episodes(envs, balance, SEEDS)
    assert returns.tolist() == one_by_one(balance, SEEDS)
    # CartPole pays 1 a step.
    assert lengths.tolist() == returns.tolist()
    assert len(set(lengths)) > 3


def test_a_limit_of_steps_ends_an_episode():
    envs = [gym.make("Pendulum-v1", max_episode_steps=12)]
    _, lengths = run_episodes(envs, lambda observations, *_: np.zeros((len(observations), 1)), SEEDS)
    assert lengths.tolist() == [12] * len(SEEDS)


@pytest.fixture
def model() -> PPO:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    return PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=0).learn(64)


def statistics(model: PPO) -> list[float]:
    normalization = model.get_vec_normalize_env()
    return [*normalization.obs_rms.mean, *normalization.obs_rms.var, float(normalization.ret_rms.var)]


def test_evaluation_uses_the_statistics_of_training_and_leaves_them_alone(model):
    before = statistics(model)
    envs = [gym.make("Pendulum-v1")]
    first = run_episodes(envs, deterministic_policy(model), SEEDS)[0]
    assert statistics(model) == before
    model.get_vec_normalize_env().obs_rms.mean += 1.0
    assert (run_episodes(envs, deterministic_policy(model), SEEDS)[0] != first).all()


def test_common_random_numbers_make_the_same_policy_return_the_same(model):
    noise = GaussianNoise(len(SEEDS), 200, 1, seed=0)
    few, many = ([gym.make("Pendulum-v1") for _ in range(n)] for n in (2, 5))
    returns = run_episodes(few, stochastic_policy(model, noise), SEEDS)[0]
    np.testing.assert_allclose(run_episodes(many, stochastic_policy(model, noise), SEEDS)[0], returns, rtol=1e-4)
    other = GaussianNoise(len(SEEDS), 200, 1, seed=1)
    assert (run_episodes(few, stochastic_policy(model, other), SEEDS)[0] != returns).all()


def test_the_noise_has_the_policys_own_distribution(model):
    observations = np.zeros((4000, 3))
    noise = GaussianNoise(4000, 1, 1, seed=0)
    model.policy.log_std.data.fill_(np.log(0.2))
    actions = stochastic_policy(model, noise)(observations, np.arange(4000), np.zeros(4000, dtype=int))
    assert actions.std() == pytest.approx(0.2, rel=0.05)
    mode = deterministic_policy(model)(observations[:1], np.zeros(1), np.zeros(1))
    assert actions.mean() == pytest.approx(mode.item(), abs=0.02)
