"""
Steps of vectorised environments, without copies that nobody reads.

SB3's ``DummyVecEnv`` copies every info dictionary deeply, and ``VecNormalize`` every observation, in case somebody
keeps them. On fast environments these copies cost as much as the policy. The functions here do the same otherwise, and
leave the environments in the same state. They stand in only for SB3's own classes, untouched; any other environment is
stepped by its own ``step``. As they step the environments one by one, they can also tell which one fails.
"""

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo.networks.untouched import is_untouched
from sb3_trpo.rollouts.normalization import Blame, Step, has_known_statistics, step_normalized
from sb3_trpo.validation.values import short


class Progress(Protocol):
    """An object that is told how many environments have answered in the current step."""

    n_answered: int | None


def make_step(env: VecEnv, blame: Blame, progress: Progress) -> tuple[Step, bool]:
    """
    Find the quickest way to do what ``env.step`` does.

    :param env: the environments, with their wrappers
    :param blame: a function that is called with an environment's exception and the environment's number
    :param progress: the object that is told of answers, where they come one by one
    :return: the function to call, and whether the infos that it gives belong to the environments: who keeps one has to
        copy it
    """
    if is_untouched(env, DummyVecEnv):
        return functools.partial(_step_dummy, env, blame), True
    if is_untouched(env, SubprocVecEnv):
        return functools.partial(_step_subproc, env, blame, progress), False
    if is_untouched(env, VecNormalize) and has_known_statistics(env):
        if is_untouched(env.venv, DummyVecEnv, SubprocVecEnv):
            inner, shares_infos = make_step(env.venv, blame, progress)
        else:
            # Not its ``step``: SB3's wrappers call the two halves.
            inner, shares_infos = functools.partial(_step_in_halves, env.venv), False
        return functools.partial(step_normalized, env, blame, inner), shares_infos
    return env.step, False


def _step_in_halves(env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    env.step_async(actions)
    return env.step_wait()


def _step_dummy(env: DummyVecEnv, blame: Blame, actions: np.ndarray) -> VecEnvStepReturn:
    """Do what ``DummyVecEnv.step`` does, with a deep copy of an info only where an episode ends."""
    env.actions = actions
    dones, rewards, infos = env.buf_dones, env.buf_rews, env.buf_infos
    i = 0
    try:
        for i, single in enumerate(env.envs):
            result = single.step(actions[i])
            try:
                obs, rewards[i], terminated, truncated, info = result
                info["TimeLimit.truncated"] = truncated and not terminated
            except Exception as error:
                _explain_result(result)
                raise error
            infos[i] = info
            dones[i] = done = terminated or truncated
            if done:
                # What NumPy and Python have made numbers of costs time to look for, so not at every step.
                if not _is_usual(*result):
                    _explain_result(result)
                info["terminal_observation"] = obs
                obs, env.reset_infos[i] = single.reset()
                # What the algorithm and wrappers read of it, and VecNormalize changes in it.
                infos[i] = copy.deepcopy(info)
            _write(env.buf_obs, i, obs)
    except Exception as error:
        blame(error, i)
    return _copied(env.buf_obs), rewards.copy(), dones.copy(), infos.copy()


def _is_usual(obs: Any, reward: Any, terminated: Any, truncated: Any, _: Any) -> bool:
    return (
        isinstance(obs, np.ndarray)
        and obs.dtype.kind in "fiu"
        and isinstance(reward, (float, int))
        and isinstance(terminated, (bool, np.bool_))
        and isinstance(truncated, (bool, np.bool_))
    )


def _explain_result(result: Any) -> None:
    """
    Say what of a step's result is not as Gymnasium has it.

    :param result: what an environment's ``step`` gave
    :raises ValueError: if something is not
    """
    if not isinstance(result, (tuple, list)) or len(result) != 5:
        raise ValueError(
            f"A step gave {short(result)}, but must give five things: observation, reward, terminated, truncated, "
            "info (Gym's old interface has four)."
        )
    obs, reward, terminated, truncated, info = result
    if np.ndim(reward) > 0 or isinstance(reward, (dict, str, bytes)):
        raise ValueError(f"A reward is {short(reward)}, but must be a number (reward.item(), if it is an array).")
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        # None counts as false, and any number but NaN as SB3 takes it.
        if np.size(value) != 1 or isinstance(value, (str, bytes)) or value != value:
            raise ValueError(f"{name} is {short(value)}, but must be true or false.")
    if not isinstance(info, dict):
        raise ValueError(f"An info is {short(info)}, but must be a dictionary.")
    for part in obs.values() if isinstance(obs, dict) else [obs]:
        if isinstance(part, np.ndarray) and part.dtype.kind in "USc":
            raise ValueError(f"An observation is {short(part)}, but must be of real numbers.")


def _write(buffers: dict[Any, np.ndarray], i: int, obs: Any) -> None:
    if None in buffers:
        # An array's key.
        _write_row(buffers[None], i, obs)
    else:
        for key, buffer in buffers.items():
            _write_row(buffer, i, obs[key])


def _write_row(buffer: np.ndarray, i: int, obs: Any) -> None:
    """
    Write an observation into its row; NumPy would spread a number, or a few, over all of a row.

    :param buffer: the observations of all environments
    :param i: the environment's number
    :param obs: its observation
    :raises ValueError: if it has another number of elements
    """
    shape = buffer.shape[1:]
    if (obs.shape if type(obs) is np.ndarray else _shape(obs)) != shape:
        given = _shape(obs)
        if given is None or math.prod(given) != math.prod(shape):
            raise _misfit(obs, shape)
    buffer[i] = obs


def _misfit(numbers: Any, shape: tuple[int, ...]) -> ValueError:
    wanted = f"all have the same shape {shape}" if shape else "a number has to be"
    return ValueError(f"An environment gave {short(numbers)} (of shape {_shape(numbers)}) where {wanted}.")


def _shape(numbers: Any) -> tuple[int, ...] | None:
    """
    Tell the shape of numbers.

    :param numbers: anything
    :return: the shape; None if it makes no array
    """
    try:
        return tuple(np.asarray(numbers).shape)
    except Exception:
        # Lists of different lengths; tensors that have a gradient.
        return None


def _copied(buffers: dict[Any, np.ndarray]) -> VecEnvObs:
    if None in buffers:
        copied: np.ndarray = buffers[None].copy()
        return copied
    # An OrderedDict, as SB3 has it.
    return OrderedDict((key, buffer.copy()) for key, buffer in buffers.items())


def _step_subproc(env: SubprocVecEnv, blame: Blame, progress: Progress, actions: np.ndarray) -> VecEnvStepReturn:
    """Do what ``SubprocVecEnv.step`` does, and blame the environment whose process has ended or numbers do not fit."""
    results: list[Any] = []
    n_sent = 0
    try:
        for remote, action in zip(env.remotes, actions, strict=True):
            remote.send(("step", action))
            n_sent += 1
        env.waiting = True
        progress.n_answered = 0
        # One by one, so that ``progress`` knows how many have answered.
        for remote in env.remotes:
            results.append(remote.recv())
            progress.n_answered += 1
        env.waiting = False
    except Exception as error:
        blame(error, len(results) if n_sent == env.num_envs else n_sent)
    obs, rewards, dones, infos, reset_infos = zip(*results, strict=True)
    # Tuples, as SB3 has them, where its types say lists.
    env.reset_infos = reset_infos  # type: ignore[assignment]
    return (
        _stacked_obs(obs, env.observation_space, blame),
        _stacked(rewards, blame, ()),
        _stacked(dones, blame, ()),
        infos,  # type: ignore[return-value]
    )


def _stacked_obs(obs: Sequence[Any], space: spaces.Space[Any], blame: Blame) -> VecEnvObs:
    if isinstance(space, spaces.Dict):
        return {key: _stacked([one[key] for one in obs], blame, part.shape or ()) for key, part in space.spaces.items()}
    return _stacked(obs, blame, space.shape or ())


def _stacked(numbers: Sequence[Any], blame: Blame, shape: tuple[int, ...]) -> np.ndarray:
    """
    Stack what the environments gave, one row each.

    :param numbers: an array or a number from each environment
    :param blame: a function that is called with the number of the first environment whose numbers do not fit
    :param shape: the shape that each should have
    :return: the array, (n_envs, ...)
    """
    try:
        stacked = np.stack(numbers)
    except Exception as error:
        wrong = [i for i, one in enumerate(numbers) if _shape(one) != shape]
        blame(_misfit(numbers[wrong[0]], shape) if wrong else error, wrong[0] if wrong else 0)
    if shape == () and stacked.ndim > 1:
        blame(_misfit(numbers[0], ()), 0)
    if stacked.dtype.kind not in "biuf":
        (first, *_) = [i for i, one in enumerate(numbers) if np.asarray(one).dtype.kind not in "biuf"]
        given = short(numbers[first])
        blame(TypeError(f"An environment gave {given} where a number or an array of numbers has to be."), first)
    return stacked
