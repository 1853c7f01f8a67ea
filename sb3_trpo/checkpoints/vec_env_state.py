"""
The state of vectorised environments: of SB3's wrappers around them, and of each environment.

Where an environment's state can't be saved the wrappers' still is (statistics of ``VecNormalize``), and training goes
on with new episodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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

from sb3_trpo.checkpoints.env_state import restore_envs, save_envs
from sb3_trpo.checkpoints.fit import check_fits
from sb3_trpo.checkpoints.known_objects import CODECS
from sb3_trpo.checkpoints.offered_state import METHODS, offered_by, offers_state, own_copy
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.checkpoints.tree_format import NotSavableError, class_path
from sb3_trpo.rollouts.checks import innermost
from sb3_trpo.validation.values import UserError

# The attributes that change in a wrapper; the others say how it was made.
WRAPPERS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward"),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count", "t_start", "results_writer"),
    VecFrameStack: ("stacked_obs",),
    VecTransposeImage: (),
    VecCheckNan: (),
    VecExtractDictObs: (),
    VecVideoRecorder: (),
}
# Attributes for the next reset, which empties them.
OF_NEXT_RESET = ("_seeds", "_options")


@dataclass
class Restored:
    """
    How environments go on.

    :param obs: the first observations, if the environments had to be reset
    :param why_reset: the reason why they had to be; empty if they go on where they were
    :param doubts: a sentence for each other thing that is not as it was
    """

    obs: Any = None
    why_reset: str = ""
    doubts: list[str] = field(default_factory=list)


def save_vec_env(env: VecEnv) -> dict[str, Any]:
    """
    Save vectorised environments.

    Nothing that is wrong with them is raised: ``why_not`` says why they will have to be reset, if they will.

    :param env: the environments, with their wrappers
    :return: the state, as plain data
    """
    saved: dict[str, Any] = {"layers": _names(env), "n_envs": env.num_envs, "wrappers": [], "envs": [], "why_not": ""}
    try:
        # Of a wrapper that is not known in full, the statistics are better than nothing.
        for wrapper in _wrappers(env):
            saved["wrappers"].append(pack(_attributes(wrapper), CODECS))
        for wrapper in _wrappers(env):
            if type(wrapper) not in WRAPPERS and not offers_state(wrapper):
                raise NotSavableError(f"{type(wrapper).__name__} has no {METHODS}")
        saved["next_reset"] = pack(_next_reset(env))
        saved["envs"] = _save_envs(innermost(env))
    # Much of this is the user's own code, and may raise anything, but no checkpoint may end a training.
    except Exception as error:
        saved["why_not"] = str(error) if isinstance(error, NotSavableError) else f"{type(error).__name__}: {error}"
    return saved


def restore_vec_env(env: VecEnv, saved: dict[str, Any], seed: int, *, trusted: bool = True) -> Restored:
    """
    Let vectorised environments go on where others were.

    :param env: the environments, made as those that were saved, and reset
    :param saved: the state, from ``save_vec_env``
    :param seed: the seed for environments that have to be reset
    :param trusted: whether texts may be set
    :return: how the environments go on
    :raises UserError: if these are other environments, or other wrappers
    """
    if (_names(env), env.num_envs) != (saved["layers"], saved["n_envs"]):
        raise UserError(
            f"The checkpoint is of {saved['n_envs']} environments in {saved['layers']}, but there are {env.num_envs} "
            f"in {_names(env)}."
        )
    why_not = saved["why_not"]
    try:
        for wrapper, content in zip(_wrappers(env), saved["wrappers"], strict=False):
            present = _attributes(wrapper)
            _set_attributes(wrapper, unpack(content, present, CODECS, trusted=trusted), present)
        if not why_not:
            doubts = _restore_envs(innermost(env), saved["envs"], trusted)
            vars(innermost(env)).update(unpack(saved["next_reset"], _next_reset(env), trusted=trusted))
            return Restored(doubts=doubts)
    except NotSavableError as error:
        why_not = why_not or str(error)
    env.seed(seed)
    return Restored(env.reset(), why_not)


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _names(env: VecEnv) -> list[str]:
    return [*map(class_path, _wrappers(env)), class_path(innermost(env))]


def _next_reset(env: VecEnv) -> dict[str, Any]:
    inner = vars(innermost(env))
    return {name: inner[name] for name in OF_NEXT_RESET if name in inner}


def _attributes(wrapper: VecEnvWrapper) -> dict[str, Any]:
    if offers_state(wrapper):
        return {"offered": offered_by(wrapper)}
    if isinstance(wrapper, VecFrameStack):
        return {"stacked_obs": own_copy(wrapper.stacked_obs.stacked_obs)}
    names = next((names for kind, names in WRAPPERS.items() if isinstance(wrapper, kind)), ())
    return {name: own_copy(vars(wrapper)[name]) for name in names if name in vars(wrapper)}


def _set_attributes(wrapper: VecEnvWrapper, attributes: dict[str, Any], present: dict[str, Any]) -> None:
    if offers_state(wrapper):
        wrapper.set_checkpoint_state(attributes["offered"])
        return
    # A file may name no other attributes than those that a wrapper of this class has.
    names = next((names for kind, names in WRAPPERS.items() if isinstance(wrapper, kind)), ())
    for name, value in attributes.items():
        if name not in (*names, "stacked_obs"):
            raise UserError(f"The checkpoint has {name!r} of {type(wrapper).__name__}, which is not part of its state.")
        check_fits(f"{name} of {type(wrapper).__name__}", value, present.get(name))
    if isinstance(wrapper, VecFrameStack):
        wrapper.stacked_obs.stacked_obs = attributes["stacked_obs"]
    else:
        vars(wrapper).update(attributes)


def _save_envs(env: VecEnv) -> list[bytes]:
    """
    Save the innermost environments.

    :param env: the environments without wrappers
    :return: one state of all of them, or a state of each
    :raises NotSavableError: if there is no way to it, with the reason
    """
    if type(env) is DummyVecEnv:
        return [save_envs(env.envs)]
    contents: list[bytes | str] = _reach(env, "save_state")
    for content in contents:
        if isinstance(content, str):
            raise NotSavableError(content)
    return [content for content in contents if isinstance(content, bytes)]


def _restore_envs(env: VecEnv, contents: list[bytes], trusted: bool) -> list[str]:
    """
    Let the innermost environments go on where others were.

    :param env: the environments without wrappers
    :param contents: the states, from ``_save_envs``
    :param trusted: whether texts may be set
    :return: a sentence for each thing that is not as it was
    """
    if type(env) is DummyVecEnv:
        (content,) = contents
        return restore_envs(env.envs, content, trusted=trusted)
    said: list[str] = []
    for i, content in enumerate(contents):
        ((why_not, mismatch, doubts),) = _reach(env, "restore_state", content, trusted, indices=i)
        if mismatch:
            raise UserError(mismatch)
        if why_not:
            raise NotSavableError(why_not)
        said += doubts
    return list(dict.fromkeys(said))


def _reach(env: VecEnv, method: str, *args: Any, indices: int | None = None) -> list[Any]:
    """
    Call a method of ``Checkpointable`` in other processes.

    :param env: the environments without wrappers
    :param method: the method's name
    :param args: the method's arguments
    :param indices: the environment's number; None calls it in all
    :return: the method's results
    :raises NotSavableError: if there is no such method
    """
    # A subclass may have a state of its own.
    if type(env) is not SubprocVecEnv:
        raise NotSavableError(f"{type(env).__name__} gives no access to the state of its environments")
    if not env.has_attr("save_state"):
        raise NotSavableError("environments in other processes need the wrapper Checkpointable")
    env.set_attr("is_outermost", True)
    results: list[Any] = env.env_method(method, *args, indices=indices)
    return results
