"""
The state of a training between two updates, as far as SB3's model file does not hold it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from sb3_trpo.checkpoints.callback_state import restore_callbacks, save_callbacks
from sb3_trpo.checkpoints.callback_tree import walk_callbacks
from sb3_trpo.checkpoints.env_state import process_random
from sb3_trpo.checkpoints.episodes import restore_episodes, save_episodes
from sb3_trpo.checkpoints.fit import check_count, check_fits, check_numbers, part
from sb3_trpo.checkpoints.known_objects import CODECS
from sb3_trpo.checkpoints.logged import restore_logged, save_logged
from sb3_trpo.checkpoints.offered_state import offered_by, offers_state, own_copy
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.checkpoints.tree_format import NotSavableError
from sb3_trpo.checkpoints.vec_env_state import restore_vec_env, save_vec_env
from sb3_trpo.saved_models.refused import printable
from sb3_trpo.validation.values import MAX_SEED

# ``learn`` sets counters anew, and a model that is not trusted comes without observations.
COUNTERS = ("num_timesteps", "_episode_num")
OBSERVATIONS = ("_last_obs", "_last_original_obs", "_last_episode_starts")
EPISODES = ("ep_info_buffer", "ep_success_buffer")
# gSDE draws these before the rollout's start.
NOISE = ("exploration_mat", "exploration_matrices")
# These algorithms have no other state.
KNOWN = (A2C, PPO)


@dataclass
class Resumed:
    """
    How a training goes on.

    :param why_reset: the reason why its environments had to be reset; empty if they go on where they were
    :param doubts: a sentence for each other thing that is not as it was
    """

    why_reset: str = ""
    doubts: list[str] = field(default_factory=list)


def is_state_known(model: OnPolicyAlgorithm) -> bool:
    """
    Tell whether the whole state of an algorithm will be in a checkpoint.

    :param model: the algorithm
    :return: whether its class is known, or offers its state
    """
    return type(model) in KNOWN or offers_state(model)


def save_training(model: OnPolicyAlgorithm, callback: BaseCallback) -> bytes:
    """
    Save everything that is not in the model's file.

    :param model: the algorithm, at the start of a rollout
    :param callback: the callback that was given to ``learn``
    :return: the state
    """
    assert model.env is not None
    doubts: list[str] = []
    saved = {
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "progress": model._current_progress_remaining,
        "total": model._total_timesteps,
        "observations": {name: own_copy(getattr(model, name)) for name in OBSERVATIONS},
        "episodes": {name: save_episodes(getattr(model, name)) for name in EPISODES},
        "logged": save_logged(model.logger),
        "noise": _noise(model),
        "torch": _torch_random(),
        "process": pack(process_random(), CODECS),
        "spaces": _attempt(doubts, "random numbers of the model's spaces", lambda: pack(_spaces(model), CODECS)),
        "offered": _attempt(doubts, f"state of {type(model).__name__}", lambda: _save_offered(model)),
        "env": save_vec_env(model.env),
        "callbacks": save_callbacks(callback, doubts),
    }
    return pack({**saved, "doubts": doubts})


def restore_training(
    model: OnPolicyAlgorithm,
    callback: BaseCallback,
    content: bytes,
    *,
    trusted: bool = True,
    new_rank: int | None = None,
) -> Resumed:
    """
    Let a training go on.

    :param model: the algorithm, loaded, at the start of the first rollout
    :param callback: the callback that was given to ``learn``
    :param content: the state, from ``save_training``
    :param trusted: whether texts may be set in environments, wrappers and callbacks
    :param new_rank: the number of this rank, if the state is another's: it begins with episodes and random numbers of
        its own
    :return: how the training goes on
    :raises UserError: if the environments are others, or something else is of another type or shape
    """
    assert model.env is not None
    saved = unpack(content)
    resumed = Resumed(doubts=[printable(str(doubt)) for doubt in part(saved, "doubts", list)])
    restore_callbacks(callback, part(saved, "callbacks", list), resumed.doubts, trusted)
    counters = part(saved, "counters", dict)
    steps = check_count("num_timesteps", counters["num_timesteps"])
    seed = (model.seed or 0) + steps + (new_rank or 0) * model.n_envs
    saved_env = _env_of_rank(part(saved, "env", dict), new_rank)
    env = restore_vec_env(model.env, saved_env, seed, trusted=trusted)
    resumed.why_reset = printable(str(env.why_reset))
    resumed.doubts += env.doubts
    for name in COUNTERS:
        setattr(model, name, check_count(name, counters.get(name)))
    # Steps from before do not count for this process's speed.
    model._num_timesteps_at_start = steps
    model._current_progress_remaining = float(check_numbers("progress", part(saved, "progress", float)))
    if saved.get("total") != model._total_timesteps:
        # The training has become longer or shorter: other shares of it are left.
        model._update_current_progress_remaining(steps, model._total_timesteps)
    for name in EPISODES:
        setattr(model, name, restore_episodes(name, saved["episodes"].get(name), getattr(model, name), trusted))
    restore_logged(model.logger, part(saved, "logged", dict), trusted)
    if saved["spaces"] is not None:
        _attempt(
            resumed.doubts,
            "random numbers of the model's spaces",
            lambda: unpack(saved["spaces"], _spaces(model), CODECS, trusted=trusted),
        )
    _attempt(resumed.doubts, f"state of {type(model).__name__}", lambda: _restore_offered(model, saved, trusted))
    if env.why_reset:
        _begin_episodes(model, env.obs)
    else:
        observations = part(saved, "observations", dict)
        for name in OBSERVATIONS:
            setattr(model, name, check_fits(name, observations.get(name), getattr(model, name)))
    for item in walk_callbacks(callback):
        if isinstance(item, ProgressBarCallback):
            item.pbar.update(steps)
    # Last of all, for what was done before may have drawn random numbers.
    _restore_random(model, saved, None if new_rank is None else seed)
    return resumed


def _env_of_rank(saved: dict[str, Any], new_rank: int | None) -> dict[str, Any]:
    if new_rank is None:
        return saved
    return {**saved, "why_not": f"there was no rank {new_rank} when the checkpoint was written"}


def _restore_random(model: OnPolicyAlgorithm, saved: dict[str, Any], seed: int | None) -> None:
    """
    Let random numbers go on, or begin.

    :param model: the algorithm
    :param saved: the state of the training
    :param seed: the seed of a rank that is new; None goes on
    """
    if seed is not None:
        set_random_seed(seed % (MAX_SEED + 1))
        return
    _restore_noise(model, part(saved, "noise", dict))
    unpack(part(saved, "process", bytes), process_random(), CODECS)
    _restore_torch_random(part(saved, "torch", list))


def _attempt(doubts: list[str], what: str, action: Callable[[], Any]) -> Any:
    """
    Do what may not be possible; then the training goes on without it.

    :param doubts: the list to which a sentence is added if it is not possible
    :param what: the part of the state that is missing then, in words
    :param action: the function to call
    :return: the result of the function; None if it is not possible
    """
    try:
        return action()
    except NotSavableError as error:
        doubts.append(f"the {what} could not be saved or restored ({str(error).strip()})")
        return None


def _spaces(model: OnPolicyAlgorithm) -> list[Any]:
    return [model.observation_space, model.action_space]


def _save_offered(model: OnPolicyAlgorithm) -> bytes | None:
    return pack(offered_by(model), CODECS) if offers_state(model) else None


def _restore_offered(model: OnPolicyAlgorithm, saved: dict[str, Any], trusted: bool) -> None:
    if saved.get("offered") is not None and offers_state(model):
        state = unpack(part(saved, "offered", bytes), offered_by(model), CODECS, trusted=trusted)
        model.set_checkpoint_state(state)


def _begin_episodes(model: OnPolicyAlgorithm, obs: Any) -> None:
    """
    Begin with the first observations of new episodes.

    :param model: the algorithm
    :param obs: the observations
    """
    model._last_obs = obs
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    normalization = model.get_vec_normalize_env()
    model._last_original_obs = None if normalization is None else normalization.get_original_obs()


def _noise(model: OnPolicyAlgorithm) -> dict[str, np.ndarray]:
    distribution = model.policy.action_dist
    noise = vars(distribution) if isinstance(distribution, StateDependentNoiseDistribution) else {}
    return {name: noise[name].detach().cpu().numpy().copy() for name in NOISE if name in noise}


def _restore_noise(model: OnPolicyAlgorithm, saved: dict[str, Any]) -> None:
    present = _noise(model)
    for name in NOISE:
        if name in saved:
            noise = check_fits(name, saved[name], present.get(name))
            setattr(model.policy.action_dist, name, th.as_tensor(noise, device=model.device))


def _torch_random() -> list[np.ndarray]:
    devices = th.cuda.get_rng_state_all() if th.cuda.is_available() else []
    return [state.cpu().numpy().copy() for state in (th.get_rng_state(), *devices)]


def _restore_torch_random(saved: list[Any]) -> None:
    present = _torch_random()
    for i, (new, old) in enumerate(zip(saved, present, strict=False)):
        state = th.as_tensor(check_fits("torch's random numbers", new, old))
        if i == 0:
            th.set_rng_state(state)
        elif len(saved) == len(present):
            th.cuda.set_rng_state(state, i - 1)
