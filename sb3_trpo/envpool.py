"""
EnvPool (https://github.com/sail-sg/envpool) as a ``VecEnv``: environments in C++, stepped by a pool of threads.

    env = make_envpool_vec_env("HalfCheetah-v5", n_envs=64, seed=0)
    TRPO("MlpPolicy", VecNormalize(env), n_steps=32).learn(1_000_000)

It differs from Gymnasium's vector environments, and from EnvPool's own interface, in what SB3 expects: an episode that
ends is followed by the next one within the same step, and its last observation is in the step's info. EnvPool would
spend a step on each reset; here the environments that are done are reset at once, all together.
"""

import difflib
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_trpo.validation import check_integer

try:
    import envpool
except ImportError as error:
    raise ImportError(
        f"sb3_trpo.envpool needs EnvPool ({error}): install it with `pip install 'sb3-trpo[envpool]'` (Python >= 3.11)."
    ) from error

_OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiBinary)
# Not the task's, but how the pool is run.
_OPTIONS_OF_THE_POOL = {"num_envs", "num_threads", "batch_size", "seed", "env_seed", "gym_reset_return_info"}


def make_envpool_vec_env(
    task: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    num_threads: int = 0,
    monitor_dir: str | None = None,
    info_keywords: Sequence[str] = (),
    **options: Any,
) -> "EnvPoolVecEnv":
    """
    EnvPool's counterpart of SB3's ``make_vec_env``.

    :param task: EnvPool's id, which for most tasks is Gymnasium's
    :param n_envs: stepped together
    :param seed: of the first environment; the others count up from it; None draws one
    :param num_threads: that step them; 0 lets EnvPool choose
    :param monitor_dir: folder for ``monitor.csv``, a line for each episode; None writes none
    :param info_keywords: which of EnvPool's infos each step's info has, and each episode's line; others are left out,
        for a dictionary of them takes longer to fill than a step
    :param options: of the task, as for ``envpool.make``
    :return: the environments
    :raises ValueError: if EnvPool does not have the task or an option, or the task does not fit SB3
    """
    return EnvPoolVecEnv(task, n_envs, seed, num_threads, monitor_dir, tuple(info_keywords), options)


class EnvPoolVecEnv(VecEnv):
    """
    See ``make_envpool_vec_env``.
    """

    def __init__(
        self,
        task: str,
        n_envs: int,
        seed: int | None,
        num_threads: int,
        monitor_dir: str | None,
        info_keywords: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        check_integer("n_envs", n_envs, minimum=1)
        check_integer("num_threads", num_threads, minimum=0)
        _check_task(task, info_keywords, options)
        self.task = task
        self.spec = gym.registry.get(task)
        self.metadata: dict[str, Any] = {"render_modes": []}
        self._config = {"num_envs": n_envs, "num_threads": num_threads, **options}
        self._info_keywords = info_keywords
        self._pool: Any = None
        super().__init__(n_envs, *_spaces(task, envpool.make_spec(task, **self._config)))
        self.seed(seed)

        self._episode_returns = np.zeros(n_envs)
        self._episode_lengths = np.zeros(n_envs, dtype=int)
        self._t_start = time.time()
        self._results_writer: ResultsWriter | None = None
        if monitor_dir is not None:
            header: dict[str, float | str] = {"t_start": self._t_start, "env_id": task}
            self._results_writer = ResultsWriter(os.path.join(monitor_dir, Monitor.EXT), header, info_keywords)

    def reset(self) -> np.ndarray:
        """
        :return: observations, (n_envs, ...)
        """
        if any(self._options):
            raise ValueError(f"EnvPool's environments have no reset options, but were given {self._options}.")
        # EnvPool's environments take a seed only when they are made.
        if self._pool is None or any(seed is not None for seed in self._seeds):
            # EnvPool's seeds are signed, of 32 bits.
            seeds = [int(seed or 0) % 2**31 for seed in self._seeds]
            self._pool = envpool.make_gymnasium(self.task, seed=seeds, **self._config)
        self._reset_seeds()
        self._episode_returns[:] = 0.0
        self._episode_lengths[:] = 0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        obs, _ = self._pool.reset()
        return np.asarray(obs, self.observation_space.dtype)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: (n_envs, ...)
        """
        assert self._pool is not None, "The environments have to be reset before they are stepped."
        self._pool.send(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, whether episodes have ended, infos
        """
        obs, rewards, terminated, truncated, pool_infos = self._pool.recv()
        obs = np.asarray(obs, self.observation_space.dtype)
        self._episode_returns += rewards
        self._episode_lengths += 1
        infos = self._infos(pool_infos)
        dones = terminated | truncated
        if np.count_nonzero(dones):
            for i in dones.nonzero()[0]:
                infos[i]["terminal_observation"] = obs[i].copy()
                infos[i]["TimeLimit.truncated"] = bool(truncated[i])
                infos[i]["episode"] = self._end_episode(i, infos[i])
            first_obs, reset_infos = self._pool.reset(dones.nonzero()[0].astype(np.int32))
            obs[reset_infos["env_id"]] = first_obs
        return obs, rewards, dones, infos

    def _infos(self, pool_infos: dict[str, Any]) -> list[dict[str, Any]]:
        """
        :param pool_infos: arrays of all environments' infos
        :return: a dictionary for each environment
        """
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for key in self._info_keywords:
            for info, value in zip(infos, pool_infos[key], strict=True):
                info[key] = value
        return infos

    def _end_episode(self, i: int, info: dict[str, Any]) -> dict[str, Any]:
        """
        :param i: an environment
        :param info: of its last step
        :return: what SB3's ``Monitor`` says of the episode
        """
        episode = {
            "r": round(float(self._episode_returns[i]), 6),
            "l": int(self._episode_lengths[i]),
            "t": round(time.time() - self._t_start, 6),
            **{key: info[key] for key in self._info_keywords},
        }
        self._episode_returns[i] = 0.0
        self._episode_lengths[i] = 0
        if self._results_writer is not None:
            self._results_writer.write_row(episode)
        return episode

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            # Its threads end when nobody holds it any more.
            self._pool = None
        if self._results_writer is not None:
            self._results_writer.close()
            self._results_writer = None

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: one of those that all environments share
        :param indices: of environments
        :return: its value for each
        """
        shared = {"render_mode": None, "metadata": self.metadata, "spec": self.spec}
        if attr_name not in shared:
            raise _no_attribute(attr_name)
        return [shared[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :raises AttributeError: always
        """
        raise _no_attribute(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """
        :raises AttributeError: always
        """
        raise _no_attribute(method_name)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: a Gymnasium wrapper
        :param indices: of environments
        :return: whether they do what it does: True for ``Monitor``, whose statistics of episodes are in the infos
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _no_attribute(name: str) -> AttributeError:
    return AttributeError(
        f"EnvPool's environments are C++ objects without an attribute or method {name!r}; their options are given when "
        "they are made."
    )


def _check_task(task: str, info_keywords: Sequence[str], options: dict[str, Any]) -> None:
    """
    :param task: EnvPool's id
    :param info_keywords: names of infos
    :param options: of the task
    :raises ValueError: if EnvPool does not have one of them, or the task does not fit SB3
    """
    tasks = envpool.list_all_envs()
    if task not in tasks:
        raise ValueError(f"EnvPool has no task {task!r}; {_near(task, tasks)}")
    spec: Any = envpool.make_spec(task)
    allowed = set(spec.config._fields) - _OPTIONS_OF_THE_POOL
    for name in options.keys() - allowed:
        raise ValueError(f"EnvPool's {task} has no option {name!r}; {_near(name, allowed)}")
    infos = [name.removeprefix("info:") for name in spec.state_array_spec if name.startswith("info:")]
    for name in set(info_keywords) - set(infos):
        raise ValueError(f"EnvPool's {task} has no info {name!r}; it has {', '.join(infos)}.")
    if spec.config.max_num_players > 1:
        raise ValueError(f"EnvPool's {task} is a game of {spec.config.max_num_players} players; SB3 plays alone.")
    if not isinstance(spec.observation_space, _OBSERVATION_SPACES):
        names = ", ".join(space.__name__ for space in _OBSERVATION_SPACES)
        raise ValueError(
            f"EnvPool's {task} has observations {spec.observation_space}, but only {names} are supported here."
        )


def _near(name: str, names: Iterable[str]) -> str:
    """
    :param name: that does not exist
    :param names: that do
    :return: those most alike, as the end of a sentence
    """
    matches = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(matches)}?" if matches else "nothing has a similar name."


def _spaces(task: str, pool_spec: Any) -> tuple[spaces.Space, spaces.Space]:
    """
    Gymnasium's spaces where they fit EnvPool's numbers, so that a model can go from one to the other: EnvPool's actions
    are of double precision, and its bounds of observations not always right.

    :param task: EnvPool's id
    :param pool_spec: of the pool
    :return: of observations and of actions
    """
    obs_space, action_space = pool_spec.observation_space, pool_spec.action_space
    if isinstance(action_space, spaces.Box):
        action_space = spaces.Box(action_space.low.astype(np.float32), action_space.high.astype(np.float32))
    if task not in gym.registry:
        return obs_space, action_space
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gym.make(task)
    except gym.error.Error:
        # What the task needs in Gymnasium (MuJoCo, Box2D, ...) EnvPool may do without.
        return obs_space, action_space
    env.close()
    pairs = ((obs_space, env.observation_space), (action_space, env.action_space))
    obs_space, action_space = (theirs if _is_alike(ours, theirs) else ours for ours, theirs in pairs)
    return obs_space, action_space


def _is_alike(space: spaces.Space, other: spaces.Space) -> bool:
    both_are_arrays = isinstance(space, spaces.Box) and isinstance(other, spaces.Box)
    return both_are_arrays and space.shape == other.shape and space.dtype == other.dtype
