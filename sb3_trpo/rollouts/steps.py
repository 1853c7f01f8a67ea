"""
Steps of vectorised environments, without copies that nobody reads.

SB3's ``DummyVecEnv`` copies every info dictionary deeply, and ``VecNormalize`` every observation, in case somebody
keeps them. On fast environments these copies cost as much as the policy. The functions here do the same otherwise, and
leave the environments in the same state. They stand in only for SB3's own classes, untouched; any other environment is
stepped by its own ``step``. As they step the environments one by one, they can also tell which one fails.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo.networks.untouched import is_untouched
from sb3_trpo.rollouts.normalization import Blame, Step, has_known_statistics, step_normalized


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
            obs, rewards[i], terminated, truncated, info = single.step(actions[i])
            info["TimeLimit.truncated"] = truncated and not terminated
            infos[i] = info
            dones[i] = done = terminated or truncated
            if done:
                info["terminal_observation"] = obs
                obs, env.reset_infos[i] = single.reset()
                # What the algorithm and wrappers read of it, and VecNormalize changes in it.
                infos[i] = copy.deepcopy(info)
            _write(env.buf_obs, i, obs)
    except Exception as error:
        blame(error, i)
    return _copied(env.buf_obs), rewards.copy(), dones.copy(), infos.copy()


def _write(buffers: dict[Any, np.ndarray], i: int, obs: Any) -> None:
    if None in buffers:
        # An array's key.
        buffers[None][i] = obs
    else:
        for key, buffer in buffers.items():
            buffer[i] = obs[key]


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
        _stacked(rewards, blame),
        np.stack(dones),
        infos,  # type: ignore[return-value]
    )


def _stacked_obs(obs: Sequence[Any], space: spaces.Space[Any], blame: Blame) -> VecEnvObs:
    if isinstance(space, spaces.Dict):
        return {key: _stacked([one[key] for one in obs], blame, part.shape) for key, part in space.spaces.items()}
    return _stacked(obs, blame, space.shape)


def _stacked(numbers: Sequence[Any], blame: Blame, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """
    Stack what the environments gave, one row each.

    :param numbers: an array or a number from each environment
    :param blame: a function that is called with the number of the first environment whose numbers do not fit
    :param shape: the shape that each should have; None for that of the first
    :return: the array, (n_envs, ...)
    """
    try:
        stacked = np.stack(numbers)
    except Exception as error:
        expected = np.shape(numbers[0]) if shape is None else shape
        wrong = [i for i, one in enumerate(numbers) if np.shape(one) != expected]
        blame(error, wrong[0] if wrong else 0)
    if stacked.dtype.kind not in "biuf":
        (first, *_) = [i for i, one in enumerate(numbers) if np.asarray(one).dtype.kind not in "biuf"]
        given = " ".join(repr(numbers[first]).split())[:100]
        blame(TypeError(f"An environment gave {given} where a number or an array of numbers has to be."), first)
    return stacked
