"""
The state of callbacks: of SB3's callbacks what changes, of others what they offer.
"""

from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)

from sb3_trpo.checkpoints.callback_tree import walk_callbacks
from sb3_trpo.checkpoints.fit import check_count, check_fits, check_numbers, part
from sb3_trpo.checkpoints.known_objects import CODECS
from sb3_trpo.checkpoints.offered_state import offered_by, offers_state
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.checkpoints.tree_format import NotSavableError, class_path
from sb3_trpo.checkpoints.vec_env_state import restore_vec_env, save_vec_env
from sb3_trpo.saved_models.refused import printable

# These are numbers: nothing else is set, neither paths nor names.
COUNTERS: dict[type, tuple[str, ...]] = {
    BaseCallback: ("n_calls", "num_timesteps"),
    EveryNTimesteps: ("last_time_trigger",),
    StopTrainingOnMaxEpisodes: ("n_episodes",),
    StopTrainingOnNoModelImprovement: ("no_improvement_evals",),
}
NUMBERS: dict[type, tuple[str, ...]] = {
    EvalCallback: (
        "best_mean_reward",
        "last_mean_reward",
        "evaluations_results",
        "evaluations_timesteps",
        "evaluations_length",
        "evaluations_successes",
        "_is_success_buffer",
    ),
    StopTrainingOnNoModelImprovement: ("last_best_mean_reward",),
}


def save_callbacks(callback: BaseCallback, doubts: list[str]) -> list[dict[str, Any]]:
    """
    Save a callback, and all that it calls.

    :param callback: the callback that was given to ``learn``
    :param doubts: the list to which a sentence is added for each state that can't be saved
    :return: the states, as plain data
    """
    return [_save(item, doubts) for item in walk_callbacks(callback)]


def restore_callbacks(callback: BaseCallback, saved: list[Any], doubts: list[str], trusted: bool) -> None:
    """
    Let callbacks go on where others were.

    Saved states without a callback of the same class are passed over.

    :param callback: the callback that was given to ``learn``
    :param saved: the states, from ``save_callbacks``
    :param doubts: the list to which a sentence is added for each state that can't be restored
    :param trusted: whether texts may be set
    :raises UserError: if a value is of another type or shape
    """
    remaining = list(walk_callbacks(callback))
    for state in saved:
        path = part(state, "class", str)
        item = next((item for item in remaining if class_path(item) == path), None)
        if item is not None:
            remaining.remove(item)
            _restore(item, state, doubts, trusted)


def _save(callback: BaseCallback, doubts: list[str]) -> dict[str, Any]:
    names = _names(callback, COUNTERS) + _names(callback, NUMBERS)
    saved: dict[str, Any] = {"class": class_path(callback)}
    saved["numbers"] = {name: vars(callback)[name] for name in names if name in vars(callback)}
    if offers_state(callback):
        try:
            saved["offered"] = pack(offered_by(callback), CODECS)
        except NotSavableError as error:
            doubts.append(f"the state of {type(callback).__name__} could not be saved ({str(error).strip()})")
    if isinstance(callback, EvalCallback):
        saved["env"] = save_vec_env(callback.eval_env)
    return saved


def _restore(callback: BaseCallback, saved: dict[str, Any], doubts: list[str], trusted: bool) -> None:
    numbers, kind = part(saved, "numbers", dict), type(callback).__name__
    for name in _names(callback, COUNTERS):
        if name in numbers:
            setattr(callback, name, check_count(f"{name} of {kind}", numbers[name]))
    for name in _names(callback, NUMBERS):
        if name in numbers:
            value = check_numbers(f"{name} of {kind}", numbers[name])
            setattr(callback, name, check_fits(f"{name} of {kind}", value, vars(callback).get(name)))
    if "offered" in saved and offers_state(callback):
        try:
            state = unpack(part(saved, "offered", bytes), offered_by(callback), CODECS, trusted=trusted)
            callback.set_checkpoint_state(state)
        except NotSavableError as error:
            doubts.append(f"the state of {kind} could not be restored ({str(error).strip()})")
    if "env" in saved and isinstance(callback, EvalCallback):
        restored = restore_vec_env(callback.eval_env, part(saved, "env", dict), callback.num_timesteps, trusted=trusted)
        doubts += [f"of the evaluation environments of {kind}: {doubt}" for doubt in restored.doubts]
        if restored.why_reset:
            doubts.append(
                f"the evaluation environments of {kind} go on with new episodes: {printable(str(restored.why_reset))}"
            )


def _names(callback: BaseCallback, table: dict[type, tuple[str, ...]]) -> list[str]:
    return [name for kind, names in table.items() if isinstance(callback, kind) for name in names]
