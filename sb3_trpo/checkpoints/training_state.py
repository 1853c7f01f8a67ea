"""
The state of a training between two updates: of what SB3's model file does not hold.
"""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.callbacks.tree import leaves
from sb3_trpo.checkpoints.env_state import OFFERS_STATE, process_random
from sb3_trpo.checkpoints.kinds import KINDS
from sb3_trpo.checkpoints.tree import class_path, pack, unpack
from sb3_trpo.checkpoints.vec_env_state import own_copy, restore_vec_env, save_vec_env

# Those that `learn` sets anew, and observations, which a model that is not trusted comes without.
ATTRIBUTES = (
    "num_timesteps",
    "_episode_num",
    "_current_progress_remaining",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "_last_noise",
    "ep_info_buffer",
    "ep_success_buffer",
)
# Values that were logged, and not yet written.
LOGGED = ("name_to_value", "name_to_count", "name_to_excluded")
# Of gSDE: drawn before the rollout's start.
NOISE = ("exploration_mat", "exploration_matrices")
CALLBACKS: dict[type, tuple[str, ...]] = {
    BaseCallback: ("n_calls", "num_timesteps"),
    EveryNTimesteps: ("last_time_trigger",),
    EvalCallback: (
        "best_mean_reward",
        "last_mean_reward",
        "evaluations_results",
        "evaluations_timesteps",
        "evaluations_length",
        "evaluations_successes",
        "_is_success_buffer",
    ),
    StopTrainingOnMaxEpisodes: ("n_episodes",),
    StopTrainingOnNoModelImprovement: ("last_best_mean_reward", "no_improvement_evals"),
}


def save_training(model: OnPolicyAlgorithm, callback: BaseCallback) -> bytes:
    """
    :param model: at the start of a rollout
    :param callback: that was given to ``learn``
    :return: everything that is not in the model's file
    """
    assert model.env is not None
    env = save_vec_env(model.env)
    callbacks = [[class_path(item), _save_callback(item)] for item in leaves(callback)]
    return pack({"local": pack(_local(model), KINDS), "env": env, "callbacks": callbacks})


def restore_training(model: OnPolicyAlgorithm, callback: BaseCallback, content: bytes) -> str:
    """
    :param model: loaded, at the start of the first rollout
    :param callback: that was given to ``learn``
    :param content: of ``save_training``
    :return: why the environments had to be reset; empty if they go on where they were
    :raises ValueError: if the environments are others
    """
    assert model.env is not None
    saved = unpack(content)
    _restore_callbacks(callback, saved["callbacks"])
    local = unpack(saved["local"], _local(model), KINDS)
    steps = local["attributes"]["num_timesteps"]
    obs, why_not = restore_vec_env(model.env, saved["env"], (model.seed or 0) + steps)
    _set_local(model, local)
    if why_not:
        model._last_obs = obs
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
        normalization = model.get_vec_normalize_env()
        model._last_original_obs = None if normalization is None else normalization.get_original_obs()
    for item in leaves(callback):
        if isinstance(item, ProgressBarCallback):
            item.pbar.update(steps)
    return why_not


def _local(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    :param model: at the start of a rollout
    :return: what there is to be saved of it, and of the process
    """
    distribution = _distribution(model)
    noise = vars(distribution) if isinstance(distribution, StateDependentNoiseDistribution) else {}
    return {
        "attributes": {name: own_copy(getattr(model, name)) for name in ATTRIBUTES if hasattr(model, name)},
        "spaces": [model.observation_space, model.action_space],
        "logged": {name: dict(getattr(model.logger, name)) for name in LOGGED},
        "noise": {name: noise[name].detach().cpu().numpy().copy() for name in NOISE if name in noise},
        "process": process_random(),
        "torch": th.get_rng_state().numpy().copy(),
        "cuda": [state.cpu().numpy().copy() for state in th.cuda.get_rng_state_all()] if th.cuda.is_available() else [],
    }


def _set_local(model: OnPolicyAlgorithm, local: dict[str, Any]) -> None:
    for name, value in local["attributes"].items():
        setattr(model, name, value)
    # What was done before is not counted into this session's speed.
    model._num_timesteps_at_start = model.num_timesteps
    for name in LOGGED:
        getattr(model.logger, name).update(local["logged"][name])
    for name, value in local["noise"].items():
        setattr(_distribution(model), name, th.as_tensor(value, device=model.device))
    th.set_rng_state(th.as_tensor(local["torch"]))
    if len(local["cuda"]) == (th.cuda.device_count() if th.cuda.is_available() else 0):
        for i, state in enumerate(local["cuda"]):
            th.cuda.set_rng_state(th.as_tensor(state), i)


def _distribution(model: OnPolicyAlgorithm) -> Any:
    return model.policy.action_dist


def _save_callback(callback: BaseCallback) -> dict[str, Any]:
    saved: dict[str, Any] = {"attributes": pack(_attributes(callback))}
    if _offers_state(callback):
        saved["offered"] = pack(callback.get_checkpoint_state())  # type: ignore[attr-defined]
    if isinstance(callback, EvalCallback):
        saved["env"] = save_vec_env(callback.eval_env)
    return saved


def _restore_callbacks(callback: BaseCallback, saved: list[Any]) -> None:
    """
    :param callback: that was given to ``learn``
    :param saved: callbacks' states, with the names of their classes; those without a counterpart are passed over
    """
    remaining = list(leaves(callback))
    for path, state in saved:
        item = next((item for item in remaining if class_path(item) == path), None)
        if item is None:
            continue
        remaining.remove(item)
        vars(item).update(unpack(state["attributes"]))
        if "offered" in state and _offers_state(item):
            item.set_checkpoint_state(unpack(state["offered"]))  # type: ignore[attr-defined]
        if "env" in state and isinstance(item, EvalCallback):
            restore_vec_env(item.eval_env, state["env"], item.num_timesteps)


def _attributes(callback: BaseCallback) -> dict[str, Any]:
    names = [name for kind, names in CALLBACKS.items() if isinstance(callback, kind) for name in names]
    return {name: vars(callback)[name] for name in names if name in vars(callback)}


def _offers_state(callback: BaseCallback) -> bool:
    return all(callable(getattr(type(callback), name, None)) for name in OFFERS_STATE)
