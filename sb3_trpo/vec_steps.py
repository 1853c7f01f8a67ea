"""
Steps of vectorised environments, without copies that nobody reads and with a check that what comes back is finite.

SB3's ``DummyVecEnv`` copies every info dictionary deeply, and ``VecNormalize`` every observation, in case somebody
keeps them. While a rollout is collected nobody does, unless a callback might; on fast environments these copies cost as
much as the policy. The functions here do the same otherwise, and leave the environments in the same state.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

Step = Callable[[np.ndarray], VecEnvStepReturn]


def lean_step(env: VecEnv) -> Step:
    """
    :param env: with array observations
    :return: ``env.step``, without copies if it is a plain ``DummyVecEnv``, or a plain ``VecNormalize`` of one
    """
    if _is_plain(env, DummyVecEnv):
        return functools.partial(_dummy_step, env)  # type: ignore[arg-type]
    if _is_plain(env, VecNormalize) and _is_plain(env.venv, DummyVecEnv):  # type: ignore[attr-defined]
        return functools.partial(_normalized_step, env)  # type: ignore[arg-type]
    return env.step


def _is_plain(env: VecEnv, kind: type[VecEnv]) -> bool:
    return type(env) is kind and "step_wait" not in env.__dict__ and "step_async" not in env.__dict__


def _dummy_step(env: DummyVecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    """``DummyVecEnv.step``, with the infos themselves instead of a deep copy."""
    env.actions = actions
    dones, rewards, infos = env.buf_dones, env.buf_rews, env.buf_infos
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
    """``VecNormalize.step``, without a copy of the observations before they are normalised."""
    assert isinstance(env.venv, DummyVecEnv)
    obs, rewards, dones, infos = _dummy_step(env.venv, actions)
    assert isinstance(obs, np.ndarray)
    env.old_obs = obs
    env.old_reward = rewards
    normalize: Callable[[np.ndarray], np.ndarray] = lambda x: x  # noqa: E731
    if env.norm_obs:
        if env.training:
            env.obs_rms.update(obs)
        normalize = functools.partial(_normalize_obs, env)
    if env.training:
        env._update_reward(rewards)
    rewards = env.normalize_reward(rewards)
    for i in dones.nonzero()[0]:
        infos[i]["terminal_observation"] = normalize(infos[i]["terminal_observation"])
    env.returns[dones] = 0
    return normalize(obs), rewards, dones, infos


def _normalize_obs(env: VecNormalize, obs: np.ndarray) -> np.ndarray:
    return env._normalize_obs(obs, env.obs_rms).astype(np.float32)  # type: ignore[arg-type]


class FiniteVecEnv(VecEnvWrapper):
    """
    Raises an error when an observation or reward is not finite, before the policy sees it.

    :param venv: to be watched
    :param n_steps_before: steps done so far, for the error's text
    """

    def __init__(self, venv: VecEnv, n_steps_before: int) -> None:
        super().__init__(venv)
        self.n_steps = n_steps_before

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.n_steps += self.num_envs
        check_finite(obs, rewards, self.n_steps)
        return obs, rewards, dones, infos


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
            _raise_if_not_finite(f"observation {name!r}" if name else "observation", array, n_steps)
    if rewards is not None and not math.isfinite(np.vdot(rewards, rewards)):
        _raise_if_not_finite("reward", rewards, n_steps)


def _raise_if_not_finite(what: str, array: np.ndarray, n_steps: int) -> None:
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        raise ValueError(
            f"The {what} of environment {index} is not finite after {n_steps} steps: {array[index]}. Observations and "
            "rewards must be finite numbers."
        )
