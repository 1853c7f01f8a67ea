"""
The hyperparameters that RL Zoo's ``train -optimize`` tries for TRPO.

They are RL Zoo's own search space, and the options that sb3-contrib's TRPO lacks.
"""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params
from stable_baselines3.common.utils import LinearSchedule


def sample_trpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters.

    :param trial: the trial of a study
    :param n_actions: the number of action dimensions, 0 if actions are discrete
    :param n_envs: the number of training environments
    :param additional_args: the settings for algorithms with a replay buffer, which are not used
    :return: the arguments of TRPO
    """
    n_steps_pow = trial.suggest_int("n_steps_pow", 6, 11)
    # A minibatch is no larger than the rollout, n_steps * n_envs.
    largest = n_steps_pow + n_envs.bit_length() - 1
    params: dict[str, Any] = {
        "n_steps_pow": n_steps_pow,
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, min(10, largest)),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.001, 0.3, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "max_grad_norm": trial.suggest_categorical("max_grad_norm", [None, 0.5, 2.0]),
        "target_kl": trial.suggest_float("target_kl", 0.003, 0.1, log=True),
        "target_kl_schedule": trial.suggest_categorical("target_kl_schedule", ["constant", "linear"]),
        "adaptive_kl": trial.suggest_categorical("adaptive_kl", [False, True]),
        "ent_coef": trial.suggest_float("ent_coef", 1e-6, 0.03, log=True),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 3.0, log=True),
        "cg_residual_tol": trial.suggest_float("cg_residual_tol", 0.01, 0.3, log=True),
        "cg_progress_tol": trial.suggest_float("cg_progress_tol", 0.001, 0.1, log=True),
        "cg_warm_start": trial.suggest_categorical("cg_warm_start", [False, True]),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    if n_actions > 0:
        params["log_std_init"] = trial.suggest_float("log_std_init", -2.0, 0.5)
    hyperparams = convert_trpo_params(params)
    # RL Zoo reports these beside what was sampled.
    for name in ("gamma", "gae_lambda", "n_steps", "batch_size"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_trpo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what a trial has drawn into constructor arguments.

    :param sampled_params: the values that the trial has drawn
    :return: the arguments of TRPO
    """
    sampled = dict(sampled_params)
    is_linear = sampled.pop("target_kl_schedule", "constant") == "linear"
    log_std_init = sampled.pop("log_std_init", None)
    hyperparams = convert_onpolicy_params(sampled)
    if is_linear:
        hyperparams["target_kl"] = LinearSchedule(hyperparams["target_kl"], 0.0, 1.0)
    if log_std_init is not None:
        hyperparams["policy_kwargs"]["log_std_init"] = log_std_init
    return hyperparams
