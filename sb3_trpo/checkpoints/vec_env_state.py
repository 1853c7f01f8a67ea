"""
The state of vectorised environments: of SB3's wrappers around them, and of each environment.

Where an environment's state can't be saved the wrappers' still is (statistics of ``VecNormalize``), and training goes
on with new episodes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from sb3_trpo.checkpoints.env_state import OFFERS_STATE, restore_env, save_env
from sb3_trpo.checkpoints.kinds import KINDS
from sb3_trpo.checkpoints.tree import NotSavableError, class_path, pack, unpack

# What changes in a wrapper; the rest is how it was made.
WRAPPERS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward"),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count", "t_start", "results_writer"),
    VecFrameStack: ("stacked_obs",),
    VecTransposeImage: (),
    VecCheckNan: (),
    VecExtractDictObs: (),
    VecVideoRecorder: (),
}


def save_vec_env(env: VecEnv) -> dict[str, Any]:
    """
    :param env: with its wrappers
    :return: plain data; ``why_not`` says why the environments will have to be reset, if they will
    """
    saved: dict[str, Any] = {"layers": _names(env), "n_envs": env.num_envs, "wrappers": [], "envs": [], "why_not": ""}
    # For the next reset; none when there has been one.
    saved["seeds"], saved["options"] = env.unwrapped._seeds, env.unwrapped._options
    try:
        # The statistics of a wrapper that is not known in full are better than none.
        saved["wrappers"] = [pack(_attributes(wrapper), KINDS) for wrapper in _wrappers(env)]
        for wrapper in _wrappers(env):
            if type(wrapper) not in WRAPPERS and not _offers_state(wrapper):
                raise NotSavableError(f"{type(wrapper).__name__} has no {' and '.join(OFFERS_STATE)}")
        saved["envs"] = _save_envs(env.unwrapped)
    except NotSavableError as error:
        saved["why_not"] = str(error)
    return saved


def restore_vec_env(env: VecEnv, saved: dict[str, Any], seed: int) -> tuple[Any, str]:
    """
    :param env: made as the one that was saved, and reset
    :param saved: of ``save_vec_env``
    :param seed: for environments that have to be reset
    :return: if they had to be reset, the first observations, and why; None and an empty text otherwise
    :raises ValueError: if these are other environments, or other wrappers
    """
    if (_names(env), env.num_envs) != (saved["layers"], saved["n_envs"]):
        raise ValueError(
            f"The checkpoint is of {saved['n_envs']} environments in {saved['layers']}, but there are {env.num_envs} "
            f"in {_names(env)}."
        )
    for wrapper, content in zip(_wrappers(env), saved["wrappers"], strict=False):
        _set_attributes(wrapper, unpack(content, _attributes(wrapper), KINDS))
    why_not = saved["why_not"]
    if not why_not:
        try:
            _restore_envs(env.unwrapped, saved["envs"])
            env.unwrapped._seeds, env.unwrapped._options = saved["seeds"], saved["options"]
            return None, ""
        except NotSavableError as error:
            why_not = str(error)
    env.seed(seed)
    return env.reset(), why_not


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _names(env: VecEnv) -> list[str]:
    return [*map(class_path, _wrappers(env)), class_path(env.unwrapped)]


def _offers_state(wrapper: VecEnvWrapper) -> bool:
    return all(callable(getattr(type(wrapper), name, None)) for name in OFFERS_STATE)


def _attributes(wrapper: VecEnvWrapper) -> dict[str, Any]:
    if _offers_state(wrapper):
        return {"offered": wrapper.get_checkpoint_state()}
    names = next((names for kind, names in WRAPPERS.items() if isinstance(wrapper, kind)), ())
    attributes = {name: own_copy(vars(wrapper)[name]) for name in names if name in vars(wrapper)}
    if isinstance(wrapper, VecFrameStack):
        attributes = {"stacked_obs": wrapper.stacked_obs.stacked_obs}
    return attributes


def own_copy(obs: Any) -> Any:
    """
    :param obs: observations, which may lie in the memory of a simulation; anything else stays as it is
    :return: the same, in memory of their own
    """
    if isinstance(obs, dict):
        return {name: own_copy(value) for name, value in obs.items()}
    return obs.copy() if isinstance(obs, np.ndarray) else obs


def _set_attributes(wrapper: VecEnvWrapper, attributes: dict[str, Any]) -> None:
    if _offers_state(wrapper):
        wrapper.set_checkpoint_state(attributes["offered"])
    elif isinstance(wrapper, VecFrameStack):
        wrapper.stacked_obs.stacked_obs = attributes["stacked_obs"]
    else:
        vars(wrapper).update(attributes)


def _save_envs(env: VecEnv) -> list[bytes]:
    """
    :param env: the innermost environments
    :return: the state of each
    :raises NotSavableError: saying why it can't be had
    """
    if isinstance(env, DummyVecEnv):
        return [save_env(single) for single in env.envs]
    _check_reachable(env)
    contents = env.env_method("save_state")
    for content in contents:
        if isinstance(content, str):
            raise NotSavableError(content)
    return contents


def _restore_envs(env: VecEnv, contents: list[bytes]) -> None:
    if isinstance(env, DummyVecEnv):
        for single, content in zip(env.envs, contents, strict=True):
            restore_env(single, content)
        return
    _check_reachable(env)
    for i, content in enumerate(contents):
        ((why_not, mismatch),) = env.env_method("restore_state", content, indices=i)
        if mismatch:
            raise ValueError(mismatch)
        if why_not:
            raise NotSavableError(why_not)


def _check_reachable(env: VecEnv) -> None:
    if not isinstance(env, SubprocVecEnv):
        raise NotSavableError(f"{type(env).__name__} gives no access to the state of its environments")
    if not env.has_attr("save_state"):
        raise NotSavableError("environments in other processes need the wrapper Checkpointable")
    env.set_attr("is_outermost", True)
