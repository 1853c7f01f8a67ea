"""
Checks of what the user gave: one sentence that names the argument, its value and what is allowed.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class UserError(ValueError):
    """Something that the user gave is not allowed; the message is one sentence that says what is."""


SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
FLATTEN = "gymnasium.wrappers.FlattenObservation makes it a vector"
RESHAPE = "gymnasium.wrappers.TransformAction can reshape it"


def check_hyperparameters(algorithm: Any) -> None:
    """
    :param algorithm: a TRPO, with its arguments as attributes
    :raises UserError: naming the first argument that is not allowed
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
    check_schedule("min_std", algorithm.min_std, "at least 0", lambda x: x >= 0)
    if algorithm.max_std is not None:
        check_schedule("max_std", algorithm.max_std, "above 0, or None", lambda x: x > 0)
    check_real("noise_correlation", algorithm.noise_correlation, "above -1 and below 1", lambda x: -1 < x < 1)
    for name in ("gamma", "gae_lambda"):
        check_real(name, getattr(algorithm, name), "between 0 and 1", lambda x: 0 <= x <= 1)
    for name in ("cg_damping", "cg_residual_tol", "cg_progress_tol", "ent_coef"):
        check_real(name, getattr(algorithm, name), "at least 0", lambda x: x >= 0)
    shrinking_factor = algorithm.line_search_shrinking_factor
    check_real("line_search_shrinking_factor", shrinking_factor, "above 0 and below 1", lambda x: 0 < x < 1)
    if algorithm.max_grad_norm is not None:
        # 0 is what sb3-contrib's saved models hold, for none.
        check_real("max_grad_norm", algorithm.max_grad_norm, "above 0, or None", lambda x: x >= 0)
    if algorithm.env_timeout is not None:
        check_real("env_timeout", algorithm.env_timeout, "a number of seconds above 0, or None", lambda x: x > 0)
    check_choice("preconditioner", algorithm.preconditioner, ("kfac", None))


def check_environment(algorithm: Any, env: VecEnv) -> None:
    """
    :param algorithm: a TRPO, with its arguments as attributes
    :param env: the training environments
    :raises UserError: if the algorithm can't work with them
    """
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
    :raises UserError: if it is not an integer, or less
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise UserError(f"{name} is {value!r}, but must be an integer of at least {minimum}.")


def check_real(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    :param name: the argument's name
    :param value: the argument
    :param allowed: in words, after "must be"
    :param is_allowed: the same as a test, for finite numbers
    :raises UserError: if it is not a finite number, or not allowed
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and is_allowed(float(value))):
        raise UserError(f"{name} is {value!r}, but must be {allowed}.")


def check_schedule(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    :param name: the argument's name
    :param value: a number, or a schedule that starts with one
    :param allowed: in words, after "must be a number"
    :param is_allowed: the same as a test, for finite numbers
    :raises UserError: if it is not allowed
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
    :raises UserError: if it is none of them
    """
    if value not in choices:
        raise UserError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :param observation_space: the environment's
    :param action_space: the environment's
    :raises UserError: if rollout buffers and policies have no place for them
    """
    _check_kind("action space", action_space)
    _check_dimensions("action space", action_space, RESHAPE)
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) > 1:
        _refuse("action space", action_space, f"must have one dimension: {RESHAPE}")
    for what, space in _parts(observation_space):
        _check_kind(what, space)
        _check_dimensions(what, space, FLATTEN)


def check_observation_encoding(algorithm: Any) -> None:
    """
    :param algorithm: a TRPO, with its arguments and spaces as attributes
    :raises UserError: if it has one of SB3's policies, and this can't take what SB3 makes of an observation
    """
    if algorithm.policy_class not in algorithm.policy_aliases.values():
        return
    is_default = "features_extractor_class" not in algorithm.policy_kwargs
    for what, space in _parts(algorithm.observation_space):
        if np.any(getattr(space, "start", 0)):
            _refuse(what, space, f"must start at 0: {FLATTEN}")
        if space.shape == () and isinstance(space, spaces.Box) and is_default:
            _refuse(what, space, f"must have at least one dimension: {FLATTEN}")


def _parts(observation_space: spaces.Space) -> Iterator[tuple[str, spaces.Space]]:
    if not isinstance(observation_space, spaces.Dict):
        yield "observation space", observation_space
        return
    if not observation_space.spaces:
        _refuse("observation space", observation_space, "must have at least one entry")
    for name, space in observation_space.spaces.items():
        yield f"observation space {name!r}", space


def _check_kind(what: str, space: spaces.Space) -> None:
    if not isinstance(space, SUPPORTED_SPACES):
        names = ", ".join(kind.__name__ for kind in SUPPORTED_SPACES)
        also = ", or a Dict of these" if what == "observation space" else ""
        _refuse(what, space, f"must be one of {names}{also}")


def _check_dimensions(what: str, space: spaces.Space, advice: str) -> None:
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) > 1:
        _refuse(what, space, f"must have one dimension: {advice}")
    if 0 in (space.shape or ()):
        _refuse(what, space, "must have at least one element")


def _refuse(what: str, space: spaces.Space, requirement: str) -> None:
    """
    :param what: in words
    :param space: which it is
    :param requirement: that it does not meet, after "but"
    :raises UserError: always
    """
    # NumPy prints matrices in several lines.
    raise UserError(f"The {what} is {' '.join(str(space).split())}, but {requirement}.")
