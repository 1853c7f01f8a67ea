"""
It learns.
"""

import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trpo
from sb3_trpo import TRPO

HYPERPARAMETERS = f"{sb3_trpo.__path__[0]}/hyperparams/trpo.yml"


def learn(env_id: str, n_timesteps: int, seed: int) -> float:
    """
    :param env_id: with an entry in the package's hyperparameters
    :param n_timesteps: of training
    :param seed: of everything
    :return: mean return of ten episodes of the deterministic policy
    """
    with open(HYPERPARAMETERS) as file:
        hyperparameters = yaml.safe_load(file)[env_id]
    del hyperparameters["n_timesteps"]
    env = make_vec_env(env_id, n_envs=hyperparameters.pop("n_envs"), seed=seed)
    eval_env = make_vec_env(env_id, n_envs=2, seed=seed + 1000)
    if hyperparameters.pop("normalize"):
        env = VecNormalize(env, gamma=hyperparameters["gamma"])
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
        eval_env.obs_rms = env.obs_rms
    model = TRPO(env=env, seed=seed, device="cpu", **hyperparameters)
    model.learn(n_timesteps)
    return float(evaluate_policy(model, eval_env, n_eval_episodes=10)[0])  # type: ignore[arg-type]


def test_cart_pole_is_balanced() -> None:
    env, eval_env = (make_vec_env("CartPole-v1", n_envs=8, seed=seed) for seed in (0, 1000))
    model = TRPO("MlpPolicy", env, n_steps=128, target_kl=0.02, seed=0, device="cpu")
    model.learn(40_000)
    assert evaluate_policy(model, eval_env, n_eval_episodes=16)[0] >= 475.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_half_cheetah_runs(seed: int) -> None:
    assert learn("HalfCheetah-v5", 150_000, seed) > 1000.0
