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
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo.networks.untouched import is_untouched

Step = Callable[[np.ndarray], VecEnvStepReturn]
Blame = Callable[[Exception, int], NoReturn]


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
    if is_untouched(env, VecNormalize) and _has_known_statistics(env):
        if is_untouched(env.venv, DummyVecEnv, SubprocVecEnv):
            inner, shares_infos = make_step(env.venv, blame, progress)
        else:
            # Not its ``step``: SB3's wrappers call the two halves.
            inner, shares_infos = functools.partial(_step_in_halves, env.venv), False
        return functools.partial(_step_normalized, env, blame, inner), shares_infos
    return env.step, False


def _has_known_statistics(env: VecNormalize) -> bool:
    return all(is_untouched(statistics, RunningMeanStd) for statistics in statistics_of(env))


def statistics_of(env: VecNormalize) -> list[RunningMeanStd]:
    """
    Return the running statistics that a normalisation uses.

    :param env: the normalised environments
    :return: the observations' statistics, if observations are normalised, and those of the returns
    """
    if not env.norm_obs:
        # There are none of observations.
        return [env.ret_rms]
    of_obs = env.obs_rms
    return [*(of_obs.values() if isinstance(of_obs, dict) else [of_obs]), env.ret_rms]


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


def _step_normalized(env: VecNormalize, blame: Blame, inner: Step, actions: np.ndarray) -> VecEnvStepReturn:
    """Do what ``VecNormalize.step`` does, without a copy of the observations before they are normalised."""
    obs, rewards, dones, infos = inner(actions)
    # By SB3's types, observations may be tuples here, and statistics be in a dictionary where observations are not.
    env.old_obs = obs  # type: ignore[assignment]
    env.old_reward = rewards
    if env.training and env.norm_obs:
        if isinstance(obs, dict):
            for key, statistics in env.obs_rms.items():
                _update(statistics, obs[key])
        else:
            _update(env.obs_rms, obs)  # type: ignore[arg-type]
    if env.training:
        env.returns = env.returns * env.gamma + rewards
        _update(env.ret_rms, env.returns)
    rewards = env.normalize_reward(rewards)
    if np.count_nonzero(dones):
        for i in dones.nonzero()[0]:
            if "terminal_observation" in infos[i]:
                try:
                    infos[i]["terminal_observation"] = _normalized(env, infos[i]["terminal_observation"])
                except Exception as error:
                    blame(error, int(i))
        env.returns[dones] = 0
    return _normalized(env, obs), rewards, dones, infos


def _normalized(env: VecNormalize, obs: Any) -> Any:
    if not env.norm_obs:
        # SB3 gives a copy.
        return copy.deepcopy(obs)
    if not isinstance(obs, dict):
        # As SB3 does, whose types do not tell that there is one set of statistics for arrays.
        return env._normalize_obs(obs, env.obs_rms).astype(np.float32)  # type: ignore[arg-type]
    normalized = type(obs)()
    for key, part in obs.items():
        if key in (env.norm_obs_keys or ()):
            normalized[key] = env._normalize_obs(part, env.obs_rms[key]).astype(np.float32)
        else:
            normalized[key] = copy.deepcopy(part)
    return normalized


def _update(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    """
    Update running statistics as ``statistics.update(batch)`` does, bit for bit.

    The additions are those of NumPy's ``mean`` and ``var``, in their order; for a few numbers NumPy's functions take
    several times as long.

    :param statistics: the running mean and variance
    :param batch: the numbers, (n, ...)
    """
    if batch.dtype not in (np.float32, np.float64):
        statistics.update(batch)
        return
    n = len(batch)
    mean = np.add.reduce(batch, axis=0) / n
    deviations = batch - mean
    var = np.add.reduce(deviations * deviations, axis=0) / n
    statistics.update_from_moments(mean, var, n)
