"""
Search for hyperparameters with Optuna. `sb3-trpo train -optimize` does it with pruning and a larger space.
"""

import os

import optuna
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO

STEPS = int(os.environ.get("STEPS", "20_000"))
TRIALS = 2 if STEPS < 10_000 else 20


def objective(trial: optuna.Trial) -> float:
    hyperparameters = {
        "target_kl": trial.suggest_float("target_kl", 0.003, 0.1, log=True),
        "gae_lambda": 1.0 - trial.suggest_float("one_minus_gae_lambda", 0.01, 0.3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
    }
    env = make_vec_env("CartPole-v1", n_envs=8, seed=trial.number)
    model = TRPO("MlpPolicy", env, n_steps=64, seed=trial.number, device="cpu", **hyperparameters)
    model.learn(STEPS)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1_000_000), n_eval_episodes=10)
    return mean


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=TRIALS)
print(f"Best return: {study.best_value:.1f} with {study.best_params}")
