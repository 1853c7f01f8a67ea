"""
Steps of vectorised environments while a rollout is collected: with a check that what comes back is finite, and without
copies that nobody reads.

The check stands where the environments' numbers come in, below every wrapper: ``VecNormalize`` would take one bad
number into the statistics that all environments share. It replaces the innermost ``step_wait`` for the duration of a
rollout; a wrapper would be in the way of callbacks, which compare the wrappers of training and evaluation environments.

SB3's ``DummyVecEnv`` copies every info dictionary deeply, and ``VecNormalize`` every observation, in case somebody
keeps them. While a rollout is collected nobody does, unless a callback might; on fast environments these copies cost as
much as the policy. The functions here do the same otherwise, and leave the environments in the same state.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo.rollouts.failures import explained_failures

Step = Callable[[np.ndarray], VecEnvStepReturn]


@contextlib.contextmanager
def watched_steps(env: VecEnv, count_steps: Callable[[], int], are_kept: bool) -> Iterator[Step]:
    """
    While it is open, steps of the environments raise an error when what they return is not finite.

    :param env: the training environments
    :param count_steps: gives the number of steps at the end of the present one, for the error's text
    :param are_kept: whether somebody may keep or change what a step returns
    :return: what does the work of ``env.step``
    """
    innermost = env.unwrapped
    step_wait = innermost.step_wait
    if not are_kept and _is_plain(innermost, DummyVecEnv) and isinstance(innermost.observation_space, spaces.Box):
        step_wait = functools.partial(_dummy_step_wait, innermost)  # type: ignore[arg-type]

    space = innermost.observation_space

    def when() -> str:
        return f"after {count_steps()} steps"

    def checked_step_wait() -> VecEnvStepReturn:
        obs, rewards, dones, infos = step_wait()
        _check_shape(obs, space, when)
        check_finite(obs, rewards, count_steps())
        if np.count_nonzero(dones):
            _check_truncations(dones, infos, count_steps())
        return obs, rewards, dones, infos

    step: Step = env.step
    if not are_kept and _is_plain(env, VecNormalize) and isinstance(env.observation_space, spaces.Box):
        step = functools.partial(_normalized_step, env)  # type: ignore[arg-type]
    with _replaced_method(innermost, "step_wait", checked_step_wait), explained_failures(innermost, when):
        yield step


@contextlib.contextmanager
def watched_reset(env: VecEnv) -> Iterator[None]:
    """
    While it is open, a reset of the environments that fails is told with the environment's number.

    :param env: the training environments
    """
    innermost = env.unwrapped
    reset = innermost.reset

    def when() -> str:
        return "in the reset before the first step"

    def checked_reset() -> VecEnvObs:
        obs = reset()
        _check_shape(obs, innermost.observation_space, when)
        return obs

    with _replaced_method(innermost, "reset", checked_reset), explained_failures(innermost, when):
        yield


def _check_shape(obs: VecEnvObs, space: spaces.Space, when: Callable[[], str]) -> None:
    """
    :param obs: of all environments
    :param space: of each environment's
    :param when: gives the moment in words
    :raises ValueError: if they do not fit; for arrays only
    """
    if isinstance(space, spaces.Box) and isinstance(obs, np.ndarray) and obs.shape[1:] != space.shape:
        raise ValueError(
            f"The environments' observations have shape {obs.shape[1:]} {when()}, but their observation space has "
            f"{space.shape}."
        )


@contextlib.contextmanager
def _replaced_method(instance: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    own = vars(instance)
    replaced = {name: own[name]} if name in own else {}
    own[name] = method
    try:
        yield
    finally:
        del own[name]
        own.update(replaced)


def _is_plain(env: VecEnv, kind: type[VecEnv]) -> bool:
    return type(env) is kind and not {"step", "step_async", "step_wait"} & vars(env).keys()


def _dummy_step_wait(env: DummyVecEnv) -> VecEnvStepReturn:
    """``DummyVecEnv.step_wait`` for array observations, with the infos themselves instead of a deep copy."""
    actions, dones, rewards, infos = env.actions, env.buf_dones, env.buf_rews, env.buf_infos
    # An array's key is None, a dictionary's are its own.
    observations = env.buf_obs[None]  # type: ignore[index]
    for i, single in enumerate(env.envs):
        obs, reward, terminated, truncated, info = single.step(actions[i])
        info["TimeLimit.truncated"] = truncated and not terminated
        rewards[i], infos[i] = reward, info
        dones[i] = done = terminated or truncated
        if done:
            info["terminal_observation"] = obs
            obs, env.reset_infos[i] = single.reset()
        observations[i] = obs
    return observations.copy(), rewards.copy(), dones.copy(), infos.copy()


def _normalized_step(env: VecNormalize, actions: np.ndarray) -> VecEnvStepReturn:
    """``VecNormalize.step`` for array observations, without a copy of them before they are normalised."""
    obs, rewards, dones, infos = env.venv.step(actions)
    assert isinstance(obs, np.ndarray)
    env.old_obs = obs
    env.old_reward = rewards
    normalize: Callable[[np.ndarray], np.ndarray] = lambda x: x  # noqa: E731
    if env.norm_obs:
        if env.training:
            _update(env.obs_rms, obs)  # type: ignore[arg-type]
        normalize = functools.partial(_normalize_obs, env)
    if env.training:
        env.returns = env.returns * env.gamma + rewards
        _update(env.ret_rms, env.returns)
    rewards = env.normalize_reward(rewards)
    for i in dones.nonzero()[0]:
        if "terminal_observation" in infos[i]:
            infos[i]["terminal_observation"] = normalize(infos[i]["terminal_observation"])
    env.returns[dones] = 0
    return normalize(obs), rewards, dones, infos


def _normalize_obs(env: VecNormalize, obs: np.ndarray) -> np.ndarray:
    return env._normalize_obs(obs, env.obs_rms).astype(np.float32)  # type: ignore[arg-type]


def _update(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    """
    ``statistics.update(batch)`` by the additions, in their order, of NumPy's ``mean`` and ``var``, which take several
    times as long for a few numbers.

    :param statistics: running mean and variance
    :param batch: (n, ...)
    """
    if batch.dtype not in (np.float32, np.float64):
        statistics.update(batch)
        return
    n = len(batch)
    mean = np.add.reduce(batch, axis=0) / n
    deviations = batch - mean
    var = np.add.reduce(deviations * deviations, axis=0) / n
    statistics.update_from_moments(mean, var, n)


def check_finite(obs: Any, rewards: np.ndarray | None, n_steps: int) -> None:
    """
    :param obs: an array with a row for each environment, or a dictionary of such
    :param rewards: one for each environment; None after a reset
    :param n_steps: steps done, for the error's text
    :raises ValueError: if something in them is not finite
    """
    for name, array in obs.items() if isinstance(obs, dict) else [("", obs)]:
        # A product is quicker than a test of every number; where it overflows, the test decides.
        if array.dtype.kind == "f" and not math.isfinite(np.vdot(array, array)):
            _raise_if_not_finite(_named("observation", name), array, range(len(array)), n_steps)
    if rewards is not None and not math.isfinite(np.vdot(rewards, rewards)):
        _raise_if_not_finite("reward", rewards, range(len(rewards)), n_steps)


def _check_truncations(dones: np.ndarray, infos: list[dict[str, Any]], n_steps: int) -> None:
    """
    :param dones: which episodes ended in this step
    :param infos: of the step
    :param n_steps: steps done, for the error's text
    :raises ValueError: if the last observation of a truncated episode, from which the rest of its return is estimated,
        is not finite
    """
    for i in dones.nonzero()[0].tolist():
        obs = last_observation(infos[i])
        for name, array in obs.items() if isinstance(obs, dict) else [("", obs)]:
            if array is not None:
                _raise_if_not_finite(_named("last observation", name), np.asarray(array)[None], [i], n_steps)


def last_observation(info: dict[str, Any]) -> Any:
    """
    :param info: of a step that ended an episode
    :return: the episode's last observation if it was truncated, None if it was terminated
    """
    return info.get("terminal_observation") if info.get("TimeLimit.truncated", False) else None


def _named(what: str, name: str) -> str:
    return f"{what} {name!r}" if name else what


def _raise_if_not_finite(what: str, array: np.ndarray, envs: Sequence[int], n_steps: int) -> None:
    """
    :param what: is in the array
    :param array: one row for each of the environments
    :param envs: their numbers
    :param n_steps: steps done
    """
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"The {what} of environment {envs[row]} is not finite after {n_steps} steps: {array[row]}. Observations "
            "and rewards must be finite numbers."
        )
