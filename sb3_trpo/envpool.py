"""
EnvPool (https://github.com/sail-sg/envpool) as a ``VecEnv``: environments in C++, stepped by a pool of threads.

    env = make_envpool_vec_env("HalfCheetah-v5", n_envs=64, seed=0)
    TRPO("MlpPolicy", VecNormalize(env), n_steps=32).learn(1_000_000)

It differs from Gymnasium's vector environments, and from EnvPool's own interface, in what SB3 expects: an episode that
ends is followed by the next one within the same step, and its last observation is in the step's info. EnvPool would
spend a step on each reset; here the environments that are done are reset at once, all together.
"""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import MAX_INTEGER, UserError, as_integer, check_choice, short, suggest_names

try:
    import envpool
except ImportError as error:
    raise ImportError(
        f"make_envpool_vec_env needs EnvPool ({error}): install it with {how_to_install('envpool')} (Python >= 3.11)."
    ) from error

_OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiBinary)
# These options say how the pool is run, not what the task is.
_OPTIONS_OF_THE_POOL = {"num_envs", "num_threads", "batch_size", "seed", "env_seed", "gym_reset_return_info"}


def make_envpool_vec_env(
    task: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    num_threads: int = 0,
    monitor_dir: str | None = None,
    info_keywords: Sequence[str] = (),
    flatten: bool = False,
    **options: Any,
) -> "EnvPoolVecEnv":
    """
    Make EnvPool's environments, as SB3's ``make_vec_env`` makes Gymnasium's.

    :param task: EnvPool's id, which for most tasks is Gymnasium's
    :param n_envs: the number of environments that are stepped together
    :param seed: the seed of the first environment; the others count up from it; None draws one
    :param num_threads: the number of threads that step the environments; 0 lets EnvPool choose
    :param monitor_dir: the folder for ``monitor.csv``, a line for each episode; None writes none
    :param info_keywords: the names of the infos to take from EnvPool, into each step's info and each episode's line;
        others are left out, for a dictionary of them takes longer to fill than a step
    :param flatten: whether observations become one vector each, as with Gymnasium's ``FlattenObservation``; tasks whose
        observations are dictionaries need it
    :param options: the options of the task, as for ``envpool.make``
    :return: the environments
    :raises UserError: if EnvPool lacks the task or an option or can't make it here, or the task does not fit SB3
    """
    return EnvPoolVecEnv(task, n_envs, seed, num_threads, monitor_dir, tuple(info_keywords), flatten, options)


class EnvPoolVecEnv(VecEnv):
    """The environments that ``make_envpool_vec_env`` makes; it says what the parameters mean."""

    def __init__(
        self,
        task: str,
        n_envs: int,
        seed: int | None,
        num_threads: int,
        monitor_dir: str | None,
        info_keywords: tuple[str, ...],
        flatten: bool,
        options: dict[str, Any],
    ) -> None:
        n_envs = as_integer("n_envs", n_envs, minimum=1)
        num_threads = as_integer("num_threads", num_threads, minimum=0)
        seed = None if seed is None else as_integer("seed", seed, minimum=-MAX_INTEGER)
        check_choice("flatten", flatten, (True, False))
        self._config = {"num_envs": n_envs, "num_threads": num_threads, **options}
        spec = _make_checked_spec(task, info_keywords, options, self._config)
        self.task = task
        self.spec = gym.registry.get(task)
        self.metadata: dict[str, Any] = {"render_modes": []}
        self._info_keywords = info_keywords
        self._pool: Any = None
        pools_space, self._action_dtype = spec.observation_space, spec.action_space.dtype
        self._flattened_space = pools_space if flatten else None
        self._action_start: np.ndarray | int = 0
        obs_space, action_space = _fit_to_gymnasium(task, spec)
        if flatten:
            obs_space = spaces.flatten_space(pools_space)
        _check_observations(task, obs_space)
        if isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.integer):
            action_space, self._action_start = _count_actions(task, action_space)
        super().__init__(n_envs, obs_space, action_space)
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
        Begin new episodes in all environments.

        :return: the observations, (n_envs, ...)
        :raises UserError: if there are reset options, or EnvPool can't make the task
        """
        options = self._options
        if any(options):
            # Once refused, they must not spoil the next reset.
            self._reset_options()
            raise UserError(f"EnvPool's environments have no reset options, but were given {options}.")
        # EnvPool's environments take a seed only when they are made.
        if self._pool is None or any(seed is not None for seed in self._seeds):
            # EnvPool's seeds are signed, of 32 bits.
            seeds = [int(seed or 0) % 2**31 for seed in self._seeds]
            try:
                self._pool = envpool.make_gymnasium(self.task, seed=seeds, **self._config)
            except RuntimeError as error:
                # A file that an option names.
                raise UserError(f"EnvPool can't make {self.task}: {' '.join(str(error).split())}") from error
        self._reset_seeds()
        self._episode_returns[:] = 0.0
        self._episode_lengths[:] = 0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        obs, _ = self._pool.reset()
        return self._to_array(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Begin a step.

        :param actions: an action for each environment, (n_envs, ...)
        :raises UserError: if there is not one for each, or the environments were not reset
        """
        if self._pool is None:
            raise UserError("EnvPool's environments have to be reset before they are stepped.")
        expected = (self.num_envs, *(self.action_space.shape or ()))
        # The pool reads as many as it has environments, wherever they end.
        if np.shape(actions) != expected:
            raise UserError(f"The actions have shape {np.shape(actions)}, but must have {expected}.")
        self._pool.send(np.asarray(actions + self._action_start, self._action_dtype))

    def step_wait(self) -> VecEnvStepReturn:
        """
        End a step.

        :return: observations, rewards, whether episodes have ended, infos
        """
        pool_obs, rewards, terminated, truncated, pool_infos = self._pool.recv()
        obs = self._to_array(pool_obs)
        self._episode_returns += rewards
        self._episode_lengths += 1
        infos = self._make_infos(pool_infos)
        dones = terminated | truncated
        if np.count_nonzero(dones):
            for i in dones.nonzero()[0]:
                infos[i]["terminal_observation"] = obs[i].copy()
                infos[i]["TimeLimit.truncated"] = bool(truncated[i])
                infos[i]["episode"] = self._end_episode(i, infos[i])
            first_obs, reset_infos = self._pool.reset(dones.nonzero()[0].astype(np.int32))
            obs[reset_infos["env_id"]] = self._to_array(first_obs)
        return obs, rewards, dones, infos

    def _to_array(self, obs: Any) -> np.ndarray:
        """
        Bring observations into the observation space.

        :param obs: EnvPool's observations of n environments: an array, or a dictionary of such
        :return: one array, (n, ...)
        """
        if self._flattened_space is None:
            return np.asarray(obs, self.observation_space.dtype)
        return _flatten(self._flattened_space, obs).astype(self.observation_space.dtype)

    def _make_infos(self, pool_infos: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Make an info for each environment.

        :param pool_infos: EnvPool's infos: arrays over the environments
        :return: dictionaries of the infos that were asked for
        """
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for key in self._info_keywords:
            for info, value in zip(infos, pool_infos[key], strict=True):
                info[key] = value
        return infos

    def _end_episode(self, i: int, info: dict[str, Any]) -> dict[str, Any]:
        """
        End an episode: start its counts anew, and write its line.

        :param i: the number of the environment
        :param info: the info of the episode's last step
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
        """End the pool's threads, and close the monitor file."""
        if self._pool is not None:
            self._pool.close()
            # The pool's threads end when nobody holds the pool any more.
            self._pool = None
        if self._results_writer is not None:
            self._results_writer.close()
            self._results_writer = None

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Return an attribute of environments.

        :param attr_name: the name of an attribute that all share: ``render_mode``, ``metadata`` or ``spec``
        :param indices: the numbers of the environments; None for all
        :return: the attribute's value for each
        :raises AttributeError: if the name is another
        """
        shared = {"render_mode": None, "metadata": self.metadata, "spec": self.spec}
        if attr_name not in shared:
            raise _no_attribute(attr_name)
        return [shared[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Refuse to set an attribute, for the environments have none.

        :raises AttributeError: always
        """
        raise _no_attribute(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """
        Refuse to call a method, for the environments have none.

        :raises AttributeError: always
        """
        raise _no_attribute(method_name)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Tell whether environments do what a wrapper does.

        :param wrapper_class: a Gymnasium wrapper
        :param indices: the numbers of the environments; None for all
        :return: True for ``Monitor``, whose statistics of episodes are in the infos
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _no_attribute(name: str) -> AttributeError:
    return AttributeError(
        f"EnvPool's environments are C++ objects without an attribute or method {name!r}; their options are given when "
        "they are made."
    )


def _make_checked_spec(
    task: str, info_keywords: Sequence[str], options: Mapping[str, Any], config: Mapping[str, Any]
) -> Any:
    """
    Make EnvPool's description of a task, and check what the user asks of it.

    :param task: EnvPool's id
    :param info_keywords: the names of infos that the user asks for
    :param options: the options that the user gives
    :param config: all options: these, and those of the pool, which are right
    :return: the description, of type ``envpool.python.protocol.EnvSpec``
    :raises UserError: if EnvPool lacks the task, an info or an option, can't make the task here, or it takes several
        players
    """
    tasks = envpool.list_all_envs()
    if not isinstance(task, str):
        raise UserError(f"task is {short(task)}, but must be the id of one of EnvPool's tasks, such as 'Pendulum-v1'.")
    if task not in tasks:
        raise UserError(f"EnvPool has no task {task!r}; {suggest_names(task, tasks)}")
    try:
        default: Any = envpool.make_spec(task)
        allowed = set(default.config._fields) - _OPTIONS_OF_THE_POOL
        for name in options.keys() - allowed:
            raise UserError(f"EnvPool's {task} has no option {name!r}; {suggest_names(name, allowed)}")
        spec: Any = envpool.make_spec(task, **config)
    # Procgen needs libraries of the system, VizdoomCustom a file that an option names.
    except (ImportError, RuntimeError) as error:
        raise UserError(f"EnvPool can't make {task}: {' '.join(str(error).split())}") from error
    infos = [name.removeprefix("info:") for name in spec.state_array_spec if name.startswith("info:")]
    for name in set(info_keywords) - set(infos):
        raise UserError(f"EnvPool's {task} has no info {name!r}; it has {', '.join(infos)}.")
    if spec.config.max_num_players > 1:
        raise UserError(f"EnvPool's {task} is a game of {spec.config.max_num_players} players; SB3 plays alone.")
    return spec


def _check_observations(task: str, obs_space: spaces.Space[Any]) -> None:
    if not isinstance(obs_space, _OBSERVATION_SPACES):
        names = ", ".join(space.__name__ for space in _OBSERVATION_SPACES)
        described = " ".join(str(obs_space).split())
        raise UserError(
            f"EnvPool's {task} has observations {described}, but only {names} are supported here: flatten=True makes "
            "them a vector."
        )


def _fit_to_gymnasium(task: str, pool_spec: Any) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """
    Choose Gymnasium's spaces where they fit EnvPool's numbers, so that a model can go from one to the other.

    EnvPool's actions are of double precision, and its bounds of observations are not always right.

    :param task: EnvPool's id
    :param pool_spec: EnvPool's description of the task
    :return: the spaces of observations and of actions
    """
    obs_space, action_space = pool_spec.observation_space, pool_spec.action_space
    if isinstance(action_space, spaces.Box) and action_space.dtype == np.float64:
        # Bounds beyond single precision become infinite.
        with np.errstate(over="ignore"):
            action_space = spaces.Box(action_space.low.astype(np.float32), action_space.high.astype(np.float32))
    if task not in gym.registry:
        return obs_space, action_space
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gym.make(task)
    except (gym.error.Error, ImportError):
        # In Gymnasium the task may need what EnvPool does without: MuJoCo, Box2D, jax, an older version.
        return obs_space, action_space
    env.close()
    pairs = ((obs_space, env.observation_space), (action_space, env.action_space))
    obs_space, action_space = (theirs if _is_alike(ours, theirs) else ours for ours, theirs in pairs)
    return obs_space, action_space


def _is_alike(space: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    both_are_arrays = isinstance(space, spaces.Box) and isinstance(other, spaces.Box)
    return both_are_arrays and space.shape == other.shape and space.dtype == other.dtype


def _count_actions(task: str, action_space: spaces.Box) -> tuple[spaces.MultiDiscrete, np.ndarray]:
    """
    Replace a box of whole numbers by choices, which policies have.

    :param task: EnvPool's id
    :param action_space: the box
    :return: the choices, which count from 0, and the first number of each
    :raises UserError: if the box has more than one dimension
    """
    if len(action_space.shape) != 1:
        raise UserError(f"EnvPool's {task} has actions {action_space}, but whole numbers must have one dimension.")
    low, high = action_space.low.astype(np.int64), action_space.high.astype(np.int64)
    return spaces.MultiDiscrete(high - low + 1), low


def _flatten(space: spaces.Space[Any], obs: Any) -> np.ndarray:
    """
    Flatten the observations of several environments at once, as Gymnasium's ``flatten`` does with one observation.

    :param space: the space of one observation
    :param obs: an array, (n, ...), or a dictionary of such
    :return: a vector for each environment, (n, size)
    """
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flatten(part, obs[name]) for name, part in space.spaces.items()], axis=1)
    array: np.ndarray = np.asarray(obs)
    if isinstance(space, spaces.Discrete):
        return np.asarray(array.reshape(-1, 1) == space.start + np.arange(space.n), space.dtype)
    return array.reshape(len(array), -1)
