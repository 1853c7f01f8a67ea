"""
Checks of what environments give, where the algorithm sees it: behind every wrapper.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_trpo.rollouts.normalization import statistics_of
from sb3_trpo.validation.values import UserError

Observations: TypeAlias = Any  # an array with a row for each environment, or a dictionary of such
# The largest number that a rollout buffer can hold.
MAX_REWARD = float(np.finfo(np.float32).max)
SWITCH = "If the policy is made for such numbers, check_env_outputs=False switches this check off."


class OutputChecks:
    """
    Checks of every step's observations and rewards, and of VecNormalize's statistics.

    :param env: the training environments, with their wrappers
    :param when: a function that gives the moment in words, such as "after 10 steps"
    :param can_handle: a function that tells whether the policy makes finite actions and values of observations that are
        not finite
    :param is_on: whether wrong numbers are an error; VecNormalize's statistics are kept finite in any case
    """

    def __init__(
        self, env: VecEnv, when: Callable[[], str], can_handle: Callable[[Observations], bool], is_on: bool
    ) -> None:
        self._space = env.observation_space
        # Of observations that are arrays; others are looked at part by part.
        self._shape = None if isinstance(self._space, spaces.Dict) else self._space.shape
        self._when = when
        self._can_handle = can_handle
        self._is_on = is_on
        self._normalizers = [layer for layer in _layers(env) if isinstance(layer, VecNormalize) and layer.training]
        self._before: list[tuple[RunningMeanStd, Any, Any, Any]] = []

    def remember_statistics(self) -> None:
        """Note VecNormalize's statistics before a step."""
        # SB3 replaces the arrays and never writes into them, so that references are enough.
        self._before = [(s, s.mean, s.var, s.count) for n in self._normalizers for s in statistics_of(n)]

    def check_step(self, obs: Observations, rewards: np.ndarray) -> None:
        """
        Check what a step gave.

        :param obs: the observations, (n_envs, ...)
        :param rewards: the rewards, (n_envs,)
        :raises UserError: if something is not finite or of another shape than the observation space says
        """
        are_finite = is_finite(obs) and _are_storable(rewards)
        # The statistics that were remembered are those that the step has updated.
        for statistics, *_ in self._before:
            are_finite = are_finite and _is_finite_variance(statistics.var)
        if not are_finite:
            self._find_what_is_wrong(obs, rewards)
        if self._is_on:
            self.check_shape(obs)

    def check_ends(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Check the last observations of episodes that have ended.

        :param dones: whether episodes have ended, (n_envs,)
        :param infos: the step's infos
        :raises UserError: if one is not finite or of another shape than the observation space says
        """
        if self._is_on:
            for i in dones.nonzero()[0].tolist():
                self._check_last_observation(i, infos[i])

    def check_reset(self, obs: Observations) -> None:
        """
        Check the observations that a rollout begins with.

        :param obs: the observations, (n_envs, ...)
        :raises UserError: if one is not finite or of another shape than the observation space says
        """
        if self._is_on:
            self.check_shape(obs)
            if not self._are_statistics_finite():
                self._blame_statistics()
            self._check_observations(obs)

    def _are_statistics_finite(self) -> bool:
        return all(_is_finite_variance(s.var) for normalizer in self._normalizers for s in statistics_of(normalizer))

    def _find_what_is_wrong(self, obs: Observations, rewards: np.ndarray) -> None:
        is_spoiled = not self._are_statistics_finite()
        if is_spoiled:
            self._restore_statistics()
        if not self._is_on:
            return
        # 1. With statistics that are not finite all environments' numbers are bad: ask for the numbers before.
        if is_spoiled:
            self._blame_statistics()
        # 2. A reward that is not finite can't be learned from.
        _raise_if_not_finite("reward", self._as_stored(rewards), self._when())
        # 3. An observation that is not finite may be meant, if the policy knows what to do with it.
        self._check_observations(obs)

    def _as_stored(self, rewards: np.ndarray) -> np.ndarray:
        """
        Give rewards the type that the rollout buffer has.

        :param rewards: rewards, (n_envs,)
        :return: the rewards in float32
        :raises UserError: if one is not a number
        """
        for i, reward in enumerate(np.asarray(rewards)):
            if not isinstance(reward, (Real, np.bool_, np.ndarray)):
                given = " ".join(repr(reward).split())[:100]
                raise UserError(f"The reward of environment {i} is {given} {self._when()}, but must be a number.")
        with np.errstate(over="ignore"):
            return np.asarray(rewards).astype(np.float32)

    def keep_statistics_finite(self) -> None:
        """Put VecNormalize's statistics back to what they were if they are no longer finite."""
        if not self._are_statistics_finite():
            self._restore_statistics()

    def _restore_statistics(self) -> None:
        for statistics, mean, var, count in self._before:
            statistics.mean, statistics.var, statistics.count = mean, var, count
        for normalizer in self._normalizers:
            normalizer.returns = np.where(np.isfinite(normalizer.returns), normalizer.returns, 0.0)

    def _blame_statistics(self) -> None:
        """
        Name the environment whose numbers made VecNormalize's statistics infinite.

        :raises UserError: always
        """
        for normalizer in self._normalizers:
            obs, rewards = getattr(normalizer, "old_obs", {}), getattr(normalizer, "old_reward", np.zeros(0))
            for name, array in _parts(obs):
                _raise_if_not_finite(_named("observation", name), array, self._when())
            _raise_if_not_finite("reward", rewards, self._when())
            for what, array in [
                *((_named("observation", name), array) for name, array in _parts(obs)),
                ("reward", rewards),
            ]:
                size = np.abs(array.reshape(len(array), -1).astype(np.float64)) if array.size else np.zeros((0, 0))
                if size.size and size.max() ** 2 > np.finfo(np.float32).max / len(array):
                    row = int(size.max(axis=1).argmax())
                    raise UserError(
                        f"The {what} of environment {row} is too large for VecNormalize's statistics {self._when()}: "
                        f"{array[row]}. They are put back to what they were before."
                    )
        raise UserError(
            f"VecNormalize's statistics are not finite {self._when()}: look at the file that they come from, or at "
            "what else has changed them."
        )

    def _check_observations(self, obs: Observations) -> None:
        if is_finite(obs) or self._can_handle(obs):
            return
        # A wrapper that spreads one environment's bad number over all hides whose it was.
        for normalizer in self._normalizers:
            for name, array in _parts(getattr(normalizer, "old_obs", {})):
                _raise_if_not_finite(_named("observation", name), array, self._when())
        for name, array in _parts(obs):
            _raise_if_not_finite(_named("observation", name), array, self._when())

    def check_shape(self, obs: Observations) -> None:
        """
        Check that observations have the shape that the observation space says.

        :param obs: observations
        :raises UserError: if they have not
        """
        if type(obs) is np.ndarray and obs.shape[1:] == self._shape:
            return
        parts = self._space.spaces if isinstance(self._space, spaces.Dict) else {"": self._space}
        for name, array in _parts(obs):
            shape = parts[name].shape if name in parts else None
            if shape is not None and np.shape(array)[1:] != shape:
                raise UserError(
                    f"The environments' {_named('observations', name)} have shape {np.shape(array)[1:]} "
                    f"{self._when()}, but their observation space has {shape}."
                )

    def _check_last_observation(self, i: int, info: Mapping[str, Any]) -> None:
        """
        Check the last observation of a truncated episode, from which the rest of its return is estimated.

        :param i: the environment's number
        :param info: the info of the episode's last step
        :raises UserError: if it is of another shape than the observation space says, or not finite
        """
        obs = last_observation(info)
        if obs is None:
            return
        parts = self._space.spaces if isinstance(self._space, spaces.Dict) else {"": self._space}
        for name, array in _parts(obs):
            shape = parts[name].shape if name in parts else None
            if shape is not None and np.shape(array) != shape:
                raise UserError(
                    f"The last observation of the episode that ended in environment {i} {self._when()} has shape "
                    f"{np.shape(array)}, but the observation space has {shape}: a wrapper that changes observations "
                    'has to change infos[i]["terminal_observation"], too.'
                )
        rows = {name: array[None] for name, array in _parts(obs)}
        batch = rows if isinstance(obs, dict) else rows[""]
        if not is_finite(batch) and not self._can_handle(batch):
            for name, array in _parts(batch):
                _raise_if_not_finite(_named("last observation", name), array, self._when(), first=i)


def count_states(obs: Observations) -> int:
    """
    Count the states that observations are of.

    :param obs: an array or a tensor with a row for each state, or a dictionary of such
    :return: the number of rows
    """
    return len(next(iter(obs.values())) if isinstance(obs, dict) else obs)


def last_observation(info: Mapping[str, Any]) -> Any:
    """
    Return the last observation of an episode that was truncated.

    :param info: the info of a step that ended an episode
    :return: the observation; None if the episode was terminated
    """
    return info.get("terminal_observation") if info.get("TimeLimit.truncated", False) else None


def is_finite(obs: Observations) -> bool:
    """
    Tell whether all numbers are finite.

    :param obs: an array, or a dictionary of arrays
    :return: whether they are
    """
    if type(obs) is np.ndarray:
        return _are_finite(obs)
    return all(_are_finite(array) for _, array in _parts(obs))


def _are_finite(numbers: np.ndarray) -> bool:
    # A product is quicker than a test of every number; where it overflows, the test decides.
    return numbers.dtype.kind != "f" or math.isfinite(np.vdot(numbers, numbers)) or bool(np.isfinite(numbers).all())


def _is_finite_variance(var: Any) -> bool:
    """
    Tell whether the variance of running statistics is finite.

    :param var: an array, or a number for that of returns
    :return: whether it is
    """
    return math.isfinite(var) if isinstance(var, float) else _are_finite(var)


def _are_storable(rewards: np.ndarray) -> bool:
    """
    Tell whether rewards are numbers that are finite in the rollout buffer, which has float32.

    :param rewards: rewards, (n_envs,)
    :return: whether they are
    """
    rewards = np.asarray(rewards)
    # A product is quicker than a test of every number.
    if rewards.dtype.kind == "f":
        return float(np.vdot(rewards, rewards)) < MAX_REWARD or bool((np.abs(rewards) <= MAX_REWARD).all())
    return rewards.dtype.kind in "biu"


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    # ``unwrapped`` may be anything where a VecEnv is not SB3's (a simulator, for one).
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env


def innermost(env: VecEnv) -> VecEnv:
    """
    Return the environments below all wrappers.

    :param env: the environments, with their wrappers
    :return: the innermost ``VecEnv``
    """
    *_, last = _layers(env)
    return last


def _parts(obs: Observations) -> list[tuple[str, np.ndarray]]:
    if isinstance(obs, Mapping):
        return [(name, np.asarray(array)) for name, array in obs.items()]
    return [("", obs if isinstance(obs, np.ndarray) else np.asarray(obs))]


def _named(what: str, name: str) -> str:
    return f"{what} {name!r}" if name else what


def _raise_if_not_finite(what: str, array: np.ndarray, when: str, first: int = 0) -> None:
    """
    Refuse an array with a row that is not finite.

    :param what: what a row of the array is, in words
    :param array: one row for each environment
    :param when: the moment, in words
    :param first: the number of the first row's environment
    :raises UserError: if one is not
    """
    if array.dtype.kind not in "fc":
        return
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(
            f"The {what} of environment {first + row} is not finite {when}: {array[row]}. Observations and rewards "
            f"must be finite numbers. {SWITCH}"
        )
