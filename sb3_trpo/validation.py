"""
Checks of what the user gave: one sentence that names the argument, its value and what is allowed.
"""

import math
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

SUPPORTED_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_hyperparameters(algorithm: Any) -> None:
    """
    :param algorithm: a TRPO, with its arguments as attributes
    :raises ValueError: naming the first argument that is not allowed
    """
    for name in ("n_steps", "batch_size", "cg_max_steps", "line_search_max_iter", "sub_sampling_factor"):
        check_integer(name, getattr(algorithm, name), minimum=1)
    check_integer("n_critic_updates", algorithm.n_critic_updates, minimum=0)
    check_integer("sde_sample_freq", algorithm.sde_sample_freq, minimum=-1)
    if algorithm.fisher_chunk_size is not None:
        check_integer("fisher_chunk_size", algorithm.fisher_chunk_size, minimum=1)
    # With a rate of 0 the critic stays as it is; RL Zoo loads models so that are only to be watched.
    check_schedule("learning_rate", algorithm.learning_rate, "at least 0", lambda x: x >= 0)
    check_schedule("target_kl", algorithm.target_kl, "above 0", lambda x: x > 0)
    for name in ("gamma", "gae_lambda"):
        check_real(name, getattr(algorithm, name), "between 0 and 1", lambda x: 0 <= x <= 1)
    for name in ("cg_damping", "cg_residual_tol", "ent_coef"):
        check_real(name, getattr(algorithm, name), "at least 0", lambda x: x >= 0)
    shrinking_factor = algorithm.line_search_shrinking_factor
    check_real("line_search_shrinking_factor", shrinking_factor, "above 0 and below 1", lambda x: 0 < x < 1)
    if algorithm.max_grad_norm is not None:
        # 0 is what sb3-contrib's saved models hold, for none.
        check_real("max_grad_norm", algorithm.max_grad_norm, "above 0, or None", lambda x: x >= 0)
    check_choice("preconditioner", algorithm.preconditioner, ("kfac", None))


def check_environment(algorithm: Any, env: VecEnv) -> None:
    """
    :param algorithm: a TRPO, with its arguments as attributes
    :param env: the training environments
    :raises ValueError: if the algorithm can't work with them
    """
    check_action_space(env.action_space)
    n_samples = algorithm.n_steps * env.num_envs
    # As in SB3's PPO, whose users rely on the type of the error.
    assert n_samples > 1 or not algorithm.normalize_advantage, (
        "`n_steps * n_envs` must be greater than 1 to normalise advantages. "
        f"Currently n_steps={algorithm.n_steps} and n_envs={env.num_envs}"
    )
    allowed = f"at most n_steps * n_envs = {n_samples}"
    check_real("sub_sampling_factor", algorithm.sub_sampling_factor, allowed, lambda x: x <= n_samples)
    if n_samples % algorithm.batch_size > 0:
        warnings.warn(
            f"batch_size = {algorithm.batch_size} does not divide n_steps * n_envs = {n_samples}: the last minibatch "
            f"of each epoch of the critic has {n_samples % algorithm.batch_size} samples.",
            stacklevel=3,
        )


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param minimum: the least that is allowed
    :raises ValueError: if it is not an integer, or less
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name} is {value!r}, but must be an integer of at least {minimum}.")


def check_real(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param allowed: in words, after "must be"
    :param is_allowed: the same as a test, for finite numbers
    :raises ValueError: if it is not a finite number, or not allowed
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and is_allowed(float(value))):
        raise ValueError(f"{name} is {value!r}, but must be {allowed}.")


def check_schedule(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    :param name: the argument's name
    :param value: a number, or a schedule that starts with one
    :param allowed: in words, after "must be a number"
    :param is_allowed: the same as a test, for finite numbers
    :raises ValueError: if it is not allowed
    """
    if callable(value):
        check_real(f"{name} at the start of training", value(1.0), f"a number {allowed}", is_allowed)
    else:
        check_real(name, value, f"a number {allowed}, or a schedule", is_allowed)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param choices: what is allowed
    :raises ValueError: if it is none of them
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")


def check_action_space(action_space: spaces.Space) -> None:
    """
    :param action_space: the environment's
    :raises ValueError: if no action distribution covers it
    """
    if not isinstance(action_space, SUPPORTED_ACTION_SPACES):
        names = ", ".join(space.__name__ for space in SUPPORTED_ACTION_SPACES)
        raise ValueError(f"The action space is {action_space}, but must be one of {names}.")
