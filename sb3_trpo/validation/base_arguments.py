"""
Checks of what is passed on to Stable-Baselines3, whose own errors do not name the argument.
"""

import inspect
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.validation.values import MAX_INTEGER, UserError, as_integer, short, suggest_names

# What the algorithm gives its rollout buffer itself.
OF_THE_BUFFER = ("self", "buffer_size", "observation_space", "action_space", "device", "gamma", "gae_lambda", "n_envs")


def check_base_arguments(
    device: Any, tensorboard_log: object, rollout_buffer_class: Any, rollout_buffer_kwargs: object
) -> None:
    """
    Check arguments of the constructor that Stable-Baselines3 only uses later.

    :param device: the argument of this name
    :param tensorboard_log: the argument of this name
    :param rollout_buffer_class: the argument of this name
    :param rollout_buffer_kwargs: the argument of this name
    :raises UserError: if one is not allowed
    """
    check_device(device)
    if tensorboard_log is not None and not isinstance(tensorboard_log, (str, os.PathLike)):
        raise UserError(f"tensorboard_log is {short(tensorboard_log)}, but must be the path of a folder, or None.")
    # What a buffer does counts, not what it inherits from.
    is_class = isinstance(rollout_buffer_class, type) and hasattr(rollout_buffer_class, "compute_returns_and_advantage")
    if rollout_buffer_class is not None and not is_class:
        raise UserError(
            f"rollout_buffer_class is {short(rollout_buffer_class)}, but must be a class of rollout buffers such as "
            "stable_baselines3.common.buffers.RolloutBuffer, or None."
        )
    if rollout_buffer_kwargs is not None:
        _check_buffer_arguments(rollout_buffer_class or RolloutBuffer, rollout_buffer_kwargs)


def check_device(device: Any) -> None:
    """
    Check that torch has a device, and that it can hold numbers.

    :param device: the argument of this name
    :raises UserError: if it is none
    """
    try:
        # Without a GPU, SB3 takes the CPU for "cuda".
        if device != "auto" and th.device(device).type not in ("cpu", "cuda"):
            th.zeros(1, device=device).cpu()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"device is {short(device)}, but must be 'auto', 'cpu', 'cuda', or another device that torch finds here."
        ) from error


def _check_buffer_arguments(buffer_class: type, arguments: object) -> None:
    if not isinstance(arguments, Mapping):
        raise UserError(f"rollout_buffer_kwargs is {short(arguments)}, but must be a dictionary, or None.")
    parameters = inspect.signature(buffer_class).parameters
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in arguments:
        if name in OF_THE_BUFFER:
            raise UserError(f"rollout_buffer_kwargs has {name!r}, which the algorithm gives the buffer itself.")
        if name not in parameters and not is_open:
            hint = suggest_names(str(name), [known for known in parameters if known not in OF_THE_BUFFER])
            raise UserError(
                f"rollout_buffer_kwargs has {short(name)}, but {buffer_class.__name__} has no such argument; {hint}"
            )


def check_learn_arguments(total_timesteps: object, callback: object, log_interval: object, tb_log_name: object) -> None:
    """
    Check arguments of ``learn``.

    :param total_timesteps: the argument of this name
    :param callback: the argument of this name
    :param log_interval: the argument of this name
    :param tb_log_name: the argument of this name
    :raises UserError: if one is not allowed
    """
    # Infinity trains until a callback ends it.
    if not isinstance(total_timesteps, Real) or total_timesteps != total_timesteps:
        raise UserError(f"total_timesteps is {short(total_timesteps)}, but must be a number of steps.")
    if log_interval is not None and as_integer("log_interval", log_interval, minimum=-MAX_INTEGER) == 0:
        raise UserError("log_interval is 0, but must be a number of updates of at least 1, or None for no log.")
    if tb_log_name is not None and not isinstance(tb_log_name, str):
        raise UserError(f"tb_log_name is {short(tb_log_name)}, but must be a text, or None.")
    # SB3 takes lists, and would call other containers.
    parts: Iterable[object] = callback if isinstance(callback, list) else [callback]
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseCallback):
            raise UserError(
                f"callback is the class {part.__name__}, but must be an object of it, as {part.__name__}()."
            )
        if not (part is None or isinstance(part, BaseCallback) or callable(part)):
            raise UserError(
                f"callback is {short(callback)}, but must be a callback, a list of callbacks, a function, or None."
            )
