"""
Steps of SB3's ``VecNormalize``: the same numbers and statistics, bit for bit.

The additions and products are SB3's, in its order. For the few numbers of a step NumPy's calls take longer than the
arithmetic, so there are as few of them as the bits allow.
"""

import copy
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_trpo.networks.untouched import is_untouched

Step = Callable[[np.ndarray], VecEnvStepReturn]
Blame = Callable[[Exception, int], NoReturn]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def has_known_statistics(env: VecNormalize) -> bool:
    """
    Tell whether the statistics that a normalisation uses are SB3's own.

    :param env: the normalised environments
    :return: whether nobody has derived their class or replaced a method
    """
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


def step_normalized(env: VecNormalize, blame: Blame, inner: Step, actions: np.ndarray) -> VecEnvStepReturn:
    """
    Do what ``VecNormalize.step`` does, without a copy of the observations before they are normalised.

    :param env: the normalised environments
    :param blame: a function that is called with an exception and the number of the environment that it comes from
    :param inner: the function that steps the environments below
    :param actions: the actions, (n_envs, ...)
    :return: what ``env.step`` gives
    """
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
    if env.norm_reward:
        rewards = _scaled(rewards, env.ret_rms.var + env.epsilon, env.clip_reward)
    rewards = rewards.astype(np.float32)
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
        # SB3's types do not tell that there is one set of statistics for arrays.
        return _normalized_array(env, obs, env.obs_rms)  # type: ignore[arg-type]
    normalized = type(obs)()
    for key, part in obs.items():
        if key in (env.norm_obs_keys or ()):
            normalized[key] = _normalized_array(env, part, env.obs_rms[key])
        else:
            normalized[key] = copy.deepcopy(part)
    return normalized


def _normalized_array(env: VecNormalize, obs: np.ndarray, statistics: RunningMeanStd) -> np.ndarray:
    normalized: np.ndarray = _scaled(obs - statistics.mean, statistics.var + env.epsilon, env.clip_obs)
    return normalized.astype(np.float32)


def _scaled(numbers: np.ndarray, variance: Any, limit: float) -> np.ndarray:
    """
    Divide by a standard deviation, and clip.

    :param numbers: the numbers
    :param variance: the variance, a number or an array
    :param limit: the largest size of the results
    :return: the results
    """
    # The method, for ``np.clip`` looks for it first, which takes as long as the clipping.
    clipped: np.ndarray = (numbers / np.sqrt(variance)).clip(-limit, limit)
    return clipped


def _update(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    """
    Update running statistics as ``statistics.update(batch)`` does, bit for bit.

    :param statistics: the running mean and variance
    :param batch: the numbers, (n, ...)
    """
    count = statistics.count
    # Returns have one number as their mean, observations an array.
    is_known = batch.dtype == np.float64 if batch.ndim == 1 else batch.dtype in FLOATS
    if not is_known or type(count) is not float or type(statistics) is not RunningMeanStd:
        statistics.update(batch)
        return
    n = len(batch)
    mean, variance = _moments(batch)
    # 1. Python is quicker than NumPy with single numbers.
    if batch.ndim == 1:
        old, delta = float(statistics.mean), float(mean) - float(statistics.mean)
        squares = delta * delta * count * n / (count + n)
        total = float(statistics.var) * count + float(variance) * n + squares
        statistics.mean = np.float64(old + delta * n / (count + n))
        statistics.var = np.float64(total / (count + n))
    # 2. The same for arrays, in place where SB3 makes a new one.
    else:
        delta = mean - statistics.mean
        step = delta * n
        step /= count + n
        deviations = statistics.var * count
        deviations += variance * n
        delta *= delta
        delta *= count
        delta *= n
        delta /= count + n
        deviations += delta
        deviations /= count + n
        statistics.mean, statistics.var = statistics.mean + step, deviations
    statistics.count = n + count


def _moments(batch: np.ndarray) -> tuple[Any, Any]:
    """
    Compute mean and variance over the first axis as NumPy does, bit for bit.

    :param batch: the numbers, (n, ...)
    :return: the mean and the variance, (...)
    """
    n = len(batch)
    if n == 1:
        # What NumPy gives for finite numbers; others are refused by the checks of a step whatever is computed here.
        return batch[0], 0.0
    mean = np.add.reduce(batch, axis=0) / n
    deviations = batch - mean
    return mean, np.add.reduce(deviations * deviations, axis=0) / n
