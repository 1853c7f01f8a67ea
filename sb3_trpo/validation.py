"""
Checks of what the user gave: one sentence that names the argument, its value and what is allowed.
"""

import difflib
import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

P = ParamSpec("P")


class UserError(ValueError):
    """Something that the user gave is not allowed; the message is one sentence that says what is."""


# Arguments of Stable-Baselines3's other algorithms.
ELSEWHERE = {
    "n_epochs": "the critic's epochs are n_critic_updates; the policy takes one step per update",
    "clip_range": "nothing is clipped, target_kl bounds the step",
    "clip_range_vf": "the critic has a loss of its own",
    "vf_coef": "the critic has a loss of its own",
    "rms_prop_eps": "policy_kwargs has optimizer_class and optimizer_kwargs",
    "use_rms_prop": "policy_kwargs has optimizer_class and optimizer_kwargs",
}
# Between a warning of ours and the line of the user's that it is about.
LIBRARIES = ("sb3_trpo", "stable_baselines3", "sb3_contrib", "rl_zoo3", "contextlib")
# The largest size that an array can have, which bounds counts and sizes.
MAX_INTEGER = 2**63 - 1
# The largest seed that NumPy's generator takes.
MAX_SEED = 2**32 - 1
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
    for name in ("n_steps", "batch_size", "cg_max_steps", "line_search_max_iter", "sub_sampling_factor"):
        setattr(algorithm, name, as_integer(name, getattr(algorithm, name), minimum=1))
    algorithm.n_critic_updates = as_integer("n_critic_updates", algorithm.n_critic_updates, minimum=0)
    algorithm.sde_sample_freq = as_integer("sde_sample_freq", algorithm.sde_sample_freq, minimum=-1)
    if algorithm.fisher_chunk_size is not None:
        algorithm.fisher_chunk_size = as_integer("fisher_chunk_size", algorithm.fisher_chunk_size, minimum=1)
    for name in ("normalize_advantage", "cg_warm_start", "adaptive_kl", "use_sde", "check_env_outputs", "distributed"):
        check_choice(name, getattr(algorithm, name), (True, False))
    for name in SCHEDULED:
        setattr(algorithm, name, read_schedule(name, getattr(algorithm, name)))
    # With a rate of 0 the critic stays as it is. RL Zoo sets it where it loads a model to watch it.
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
    _check_what_the_base_class_holds(algorithm)
    _make_floats(algorithm)


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


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """
    Warn at the line of the user's that led here, however many lines of ours and of Stable-Baselines3 are between.

    :param message: the warning
    :param category: its class
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def check_integer(name: str, value: object, minimum: int) -> None:
    """
    Check a whole number.

    :param name: the argument's name
    :param value: the argument
    :param minimum: the least allowed value
    :raises UserError: if it is not an integer, or less
    """
    as_integer(name, value, minimum)


def as_integer(name: str, value: Any, minimum: int) -> int:
    """
    Check a whole number, which may be a float such as 1.0.

    :param name: the argument's name
    :param value: the argument
    :param minimum: the least allowed value
    :return: the number
    :raises UserError: if it is not an integer, or less
    """
    is_whole = isinstance(value, Integral) or (isinstance(value, Real) and _is_finite(value) and float(value) % 1 == 0)
    if isinstance(value, (bool, np.bool_)) or not is_whole or not minimum <= int(value) <= MAX_INTEGER:
        allowed = f"an integer of at least {minimum}" if minimum > -MAX_INTEGER else "an integer"
        raise UserError(f"{name} is {short(value)}, but must be {allowed}{_explain_text(value)}.")
    return int(value)


def check_real(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    Check a number.

    :param name: the argument's name
    :param value: the argument
    :param allowed: the allowed numbers, in words that follow "must be"
    :param is_allowed: a function that tells whether a finite number is allowed
    :raises UserError: if it is not a finite number, or not allowed
    """
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not (is_number and _is_finite(value) and is_allowed(float(value))):
        raise UserError(f"{name} is {short(value)}, but must be {allowed}{_explain_text(value)}.")


def _explain_text(value: object) -> str:
    """
    Explain how a number has become a text.

    :param value: what was given in the place of a number
    :return: the end of a sentence; empty if it is no text with a number
    """
    try:
        is_number = isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        is_number = False
    return " and not a text (in YAML 1e-5 is a text, 1.0e-5 a number)" if is_number else ""


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # The number is whole, and larger than any float.
        return False


def short(value: object) -> str:
    """
    Write a value in one short line.

    :param value: the value
    :return: the line
    """
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"a whole number of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_schedule(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """
    Check a number, or a schedule by the number that it starts with.

    :param name: the argument's name
    :param value: the argument: a number, or a schedule
    :param allowed: the allowed numbers, in words that follow "must be a number"
    :param is_allowed: a function that tells whether a finite number is allowed
    :raises UserError: if it is not allowed
    """
    if callable(value):
        try:
            number = value(1.0)
        except Exception as error:
            raise UserError(
                f"{name} is {short(value)}, which fails at the start of training ({type(error).__name__}: {error}), "
                "but must be a number, or a function of the remaining progress, which goes from 1 to 0."
            ) from error
        check_real(f"{name} at the start of training", number, f"a number {allowed}", is_allowed)
    else:
        check_real(name, value, f"a number {allowed}, or a schedule", is_allowed)


def read_schedule(name: str, value: Any) -> Any:
    """
    Read a schedule from a text, as hyperparameter files have them.

    :param name: the argument's name
    :param value: the argument: ``lin_START`` or ``lin_START_END``, or anything but a text
    :return: the schedule from START to END, or to 0; the value itself if it is no text
    :raises UserError: if a text is in neither form
    """
    if not isinstance(value, str):
        return value
    kind, *numbers = value.split("_")
    try:
        ends = [float(number) for number in numbers]
    except ValueError:
        ends = []
    if kind != "lin" or len(ends) not in (1, 2) or not all(math.isfinite(end) and end >= 0 for end in ends):
        raise UserError(
            f"{name} is {short(value)}, but must be a number, a schedule, lin_START (falls to 0) or lin_START_END, "
            "with numbers of at least 0."
        )
    return LinearSchedule(ends[0], ends[1] if len(ends) == 2 else 0.0, 1.0)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """
    Check a choice.

    :param name: the argument's name
    :param value: the argument
    :param choices: the allowed values
    :raises UserError: if it is none of them
    """
    try:
        is_known = value in choices
    except (ValueError, RuntimeError):
        # An array or a tensor of several elements is compared with each choice element by element.
        is_known = False
    if not is_known:
        raise UserError(f"{name} is {short(value)}, but must be one of {', '.join(map(repr, choices))}.")


def suggest_names(name: str, names: Iterable[str]) -> str:
    """
    Suggest names that are like one that does not exist.

    :param name: the name that does not exist
    :param names: the names that do
    :return: the suggestion, as the end of a sentence
    """
    matches = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(matches)}?" if matches else "nothing has a similar name."
