"""
Checks of an algorithm: its hyperparameters together, its environments, and whether it can train.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ParamSpec, Protocol

import gymnasium as gym
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.validation.values import (
    MAX_INTEGER,
    MAX_SEED,
    UserError,
    as_integer,
    check_choice,
    check_integer,
    check_real,
    check_schedule,
    read_schedule,
    short,
    warn_user,
)

P = ParamSpec("P")

# Arguments of Stable-Baselines3's other algorithms.
ELSEWHERE = {
    "n_epochs": "the critic's epochs are n_critic_updates; the policy takes one step per update",
    "clip_range": "nothing is clipped, target_kl bounds the step",
    "clip_range_vf": "the critic has a loss of its own",
    "vf_coef": "the critic has a loss of its own",
    "rms_prop_eps": "policy_kwargs has optimizer_class and optimizer_kwargs",
    "use_rms_prop": "policy_kwargs has optimizer_class and optimizer_kwargs",
}

# The arguments that may have a schedule.
SCHEDULED = ("learning_rate", "target_kl", "min_std", "max_std")

# The arguments that are numbers of floating point, or schedules of these.
REALS = (
    "learning_rate",
    "gamma",
    "gae_lambda",
    "target_kl",
    "min_std",
    "max_std",
    "noise_correlation",
    "cg_damping",
    "cg_residual_tol",
    "cg_progress_tol",
    "ent_coef",
    "line_search_shrinking_factor",
    "max_grad_norm",
    "env_timeout",
)


# The arguments that say how policy and rollout buffer are made, and can't change afterwards.
FIXED = ("n_steps", "use_sde")


class Hyperparameters(Protocol):
    """An algorithm with TRPO's arguments as attributes."""

    n_steps: int
    batch_size: int
    gamma: float
    gae_lambda: float
    learning_rate: float | Schedule
    target_kl: float | Schedule
    min_std: float | Schedule
    max_std: float | Schedule | None
    noise_correlation: float
    normalize_advantage: bool
    cg_max_steps: int
    cg_damping: float
    cg_residual_tol: float
    cg_progress_tol: float
    cg_warm_start: bool
    adaptive_kl: bool
    preconditioner: str | None
    fisher_chunk_size: int | None
    sub_sampling_factor: int
    line_search_shrinking_factor: float
    line_search_max_iter: int
    n_critic_updates: int
    ent_coef: float
    max_grad_norm: float
    use_sde: bool
    sde_sample_freq: int
    seed: int | None
    env_timeout: float | None
    check_env_outputs: bool
    distributed: bool


def check_hyperparameters(algorithm: Hyperparameters) -> None:
    """
    Check TRPO's arguments, and make Python's numbers and schedules of those that config files write otherwise.

    These are 1.0 for a whole number, NumPy's numbers, and ``lin_0.06_0.02`` for a schedule.

    :param algorithm: a TRPO, with its arguments as attributes
    :raises UserError: at the first argument that is not allowed
    """
    _check_schedules(algorithm)
    _check_numbers(algorithm)
    _check_what_the_base_class_holds(algorithm)
    _make_floats(algorithm)


def _check_schedules(algorithm: Hyperparameters) -> None:
    for name in SCHEDULED:
        setattr(algorithm, name, read_schedule(name, getattr(algorithm, name)))
    # With a rate of 0 the critic stays as it is. RL Zoo sets it where it loads a model to watch it.
    check_schedule("learning_rate", algorithm.learning_rate, "at least 0", lambda x: x >= 0)
    check_schedule("target_kl", algorithm.target_kl, "above 0", lambda x: x > 0)
    check_schedule("min_std", algorithm.min_std, "at least 0", lambda x: x >= 0)
    if algorithm.max_std is not None:
        check_schedule("max_std", algorithm.max_std, "above 0, or None", lambda x: x > 0)


def _check_numbers(algorithm: Hyperparameters) -> None:
    for name in ("n_steps", "batch_size", "cg_max_steps", "line_search_max_iter", "sub_sampling_factor"):
        setattr(algorithm, name, as_integer(name, getattr(algorithm, name), minimum=1))
    algorithm.n_critic_updates = as_integer("n_critic_updates", algorithm.n_critic_updates, minimum=0)
    algorithm.sde_sample_freq = as_integer("sde_sample_freq", algorithm.sde_sample_freq, minimum=-1)
    if algorithm.fisher_chunk_size is not None:
        algorithm.fisher_chunk_size = as_integer("fisher_chunk_size", algorithm.fisher_chunk_size, minimum=1)
    for name in ("normalize_advantage", "cg_warm_start", "adaptive_kl", "use_sde", "check_env_outputs", "distributed"):
        check_choice(name, getattr(algorithm, name), (True, False))
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


class Trainable(Hyperparameters, Protocol):
    """An algorithm with its policy made."""

    policy: ActorCriticPolicy
    env: VecEnv | None
    rollout_buffer: RolloutBuffer
    lr_schedule: Schedule
    num_timesteps: int
    kl_scale: float


# What a callback may change between two updates.
CHANGEABLE = (*(name for name in Hyperparameters.__annotations__ if name != "seed"), "kl_scale")


def settings_of(algorithm: Trainable) -> dict[str, object]:
    """
    Note hyperparameters, to see later whether they are still the same.

    :param algorithm: a TRPO
    :return: the hyperparameters by name
    """
    return {name: getattr(algorithm, name) for name in CHANGEABLE}


def check_changes(algorithm: Trainable, known: Mapping[str, object]) -> bool:
    """
    Check what a callback has changed.

    Schedules are not called here, for each update checks what they give.

    :param algorithm: a TRPO
    :param known: the hyperparameters that were checked last
    :return: whether anything has changed
    :raises UserError: at the first change that is not allowed
    """
    if not callable(algorithm.lr_schedule):
        raise UserError(
            f"lr_schedule is {short(algorithm.lr_schedule)}, but must be a function of the remaining progress, which "
            "goes from 1 to 0."
        )
    if not hasattr(algorithm.policy.optimizer, "param_groups"):
        optimizer = short(algorithm.policy.optimizer)
        raise UserError(f"The policy's optimizer is {optimizer}, but must be one of torch.optim, for the critic.")
    check_integer("num_timesteps", algorithm.num_timesteps, minimum=-MAX_INTEGER)
    changed = {name for name in CHANGEABLE if getattr(algorithm, name) is not known.get(name)}
    if not changed:
        return False
    for name in SCHEDULED:
        value = read_schedule(name, getattr(algorithm, name))
        setattr(algorithm, name, value)
        if not callable(value) and not (name == "max_std" and value is None):
            check_real(name, value, "at least 0 throughout training", lambda x: x >= 0)
    _check_numbers(algorithm)
    check_real("kl_scale", algorithm.kl_scale, "above 0", lambda x: x > 0)
    _make_floats(algorithm)
    size = getattr(algorithm.rollout_buffer, "buffer_size", None)
    for name in changed.intersection(FIXED):
        value, before = getattr(algorithm, name), known.get(name)
        if value != before and not (name == "n_steps" and value == size):
            raise UserError(
                f"{name} is {value}, but must stay {before}, for which policy and rollout buffer were made; "
                f"load(file, {name}={value}) makes others for a saved model."
            )
    if algorithm.env is not None and changed.intersection(("n_steps", "batch_size", "sub_sampling_factor")):
        check_environment(algorithm, algorithm.env)
    return True


def _make_floats(algorithm: Hyperparameters) -> None:
    for name in REALS:
        value = getattr(algorithm, name)
        # A fraction, say, can't be multiplied with a tensor.
        if value is not None and not callable(value) and type(value) not in (int, float):
            setattr(algorithm, name, float(value))


def _check_what_the_base_class_holds(algorithm: Hyperparameters) -> None:
    # The base class sets these attributes between the constructor's check and that of ``_setup_model``.
    for name, attribute in (("seed", "seed"), ("stats_window_size", "_stats_window_size")):
        value = getattr(algorithm, attribute, None)
        if value is not None:
            setattr(algorithm, attribute, as_integer(name, value, minimum=0))
    if getattr(algorithm, "seed", None) is not None:
        check_real("seed", algorithm.seed, f"at most {MAX_SEED}", lambda x: x <= MAX_SEED)


def check_policy_and_env(policy: object, env: object, names: Iterable[str], is_complete: bool) -> None:
    """
    Check that the arguments ``policy`` and ``env`` are no other things that are often given in their place.

    :param policy: the argument of this name
    :param env: the argument of this name
    :param names: the names of policies
    :param is_complete: whether the model is made at once, and so needs an environment
    :raises UserError: if one of them is
    """
    if not isinstance(policy, (str, type)):
        raise UserError(
            f"policy is an object of {type(policy).__name__}, but must be a name such as 'MlpPolicy', or a class of "
            "policies: the algorithm makes the object."
        )
    if isinstance(policy, str) and policy not in names:
        raise UserError(f"policy is {short(policy)}, but must be one of {', '.join(names)}, or a class of policies.")
    if isinstance(env, type):
        raise UserError(
            f"env is the class {env.__name__}, but must be an environment: an object of the class, or an id."
        )
    if isinstance(env, gym.vector.VectorEnv):
        raise UserError(
            f"env is Gymnasium's {type(env).__name__}, but Stable-Baselines3 has vector environments of its own: make "
            "them with stable_baselines3.common.env_util.make_vec_env(id, n_envs)."
        )
    if env is None and is_complete:
        raise UserError("env is None, but must be an environment, or the id of one such as 'Pendulum-v1'.")


def check_ready_to_train(algorithm: OnPolicyAlgorithm) -> None:
    """
    Check that an algorithm has what ``train`` needs, for a training loop of the user's own may not provide it.

    :param algorithm: the algorithm
    :raises UserError: if it has no logger, its rollout buffer is not full, or torch is told to keep no gradients
    """
    if th.is_inference_mode_enabled():
        raise UserError("train() was called in torch.inference_mode(), where nothing can be learned: call it outside.")
    # SB3 has no public way to ask whether there is one.
    if getattr(algorithm, "_logger", None) is None:
        raise UserError(
            "train() needs a logger, but this model has none yet: give it one with set_logger(configure(None, [])), "
            "from stable_baselines3.common.logger; learn() would make one."
        )
    buffer = algorithm.rollout_buffer
    if not buffer.full:
        raise UserError(
            f"train() needs a full rollout buffer, but this one has {buffer.pos} of {buffer.buffer_size} steps: add "
            "n_steps of them, then compute_returns_and_advantage."
        )


def explain_unknown_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """
    Let a constructor that is given an unknown argument suggest the right name.

    :param init: the constructor
    :return: the same constructor with this error message
    """
    known = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        unknown = [name for name in kwargs if name not in known]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            raise TypeError(_explain_argument(unknown[0], list(known)))
        init(*args, **kwargs)

    return checked


def _explain_argument(name: str, known: Sequence[str]) -> str:
    if name in ELSEWHERE:
        return f"TRPO has no argument {name!r}: {ELSEWHERE[name]}."
    near = difflib.get_close_matches(name, known, n=2)
    return f"TRPO has no argument {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ".")


def check_environment(algorithm: Hyperparameters, env: VecEnv) -> None:
    """
    Check that a rollout of these environments can be used.

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
        warn_user(
            f"batch_size = {algorithm.batch_size} does not divide n_steps * n_envs = {n_samples}: the last minibatch "
            f"of each epoch of the critic has {n_samples % algorithm.batch_size} samples."
        )
