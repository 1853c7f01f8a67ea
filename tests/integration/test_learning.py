"""
It learns.
"""

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO


def test_cart_pole_is_balanced() -> None:
    env, eval_env = (make_vec_env("CartPole-v1", n_envs=8, seed=seed) for seed in (0, 1000))
    model = TRPO("MlpPolicy", env, n_steps=128, target_kl=0.02, seed=0, device="cpu")
    model.learn(60_000)
    assert evaluate_policy(model, eval_env, n_eval_episodes=16)[0] >= 475.0
