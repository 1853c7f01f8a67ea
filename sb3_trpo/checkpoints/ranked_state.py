"""
The state of a training on several ranks: of each its own environments, callbacks and random numbers.
"""

from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.checkpoints.training_state import Resumed, restore_training, save_training
from sb3_trpo.checkpoints.tree_format import NotSavableError
from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.rollouts.collect import RolloutCollector


def ranks_of(model: OnPolicyAlgorithm) -> Ranks:
    """
    Find the processes that train together.

    :param model: the algorithm, which may be one of SB3's
    :return: the ranks
    """
    return model.ranks if isinstance(model, RolloutCollector) else ALONE


def save_ranks(model: OnPolicyAlgorithm, callback: BaseCallback) -> list[bytes]:
    """
    Save the state of each rank.

    :param model: the algorithm, at the start of a rollout
    :param callback: the callback that was given to ``learn``
    :return: the states, on each rank those of all
    :raises NotSavableError: on all ranks, if the state of one can't be saved
    """
    state, why_not = b"", ""
    try:
        state = save_training(model, callback)
    except NotSavableError as error:
        why_not = str(error)
    saved = ranks_of(model).gather((state, why_not))
    for _, reason in saved:
        if reason:
            raise NotSavableError(reason)
    return [each for each, _ in saved]


def restore_rank(
    model: OnPolicyAlgorithm, callback: BaseCallback, states: Sequence[bytes], *, trusted: bool = True
) -> Resumed:
    """
    Let this rank go on where it was, or where the first was with new episodes, if there are more ranks now.

    :param model: the algorithm, loaded, at the start of the first rollout
    :param callback: the callback that was given to ``learn``
    :param states: the states, from ``save_ranks``
    :param trusted: whether texts may be set in environments, wrappers and callbacks
    :return: how the training goes on
    :raises UserError: if the environments are others, or something else is of another type or shape
    """
    ranks = ranks_of(model)
    is_new = ranks.rank >= len(states)
    resumed = restore_training(
        model,
        callback,
        states[0 if is_new else ranks.rank],
        trusted=trusted,
        new_rank=ranks.rank if is_new else None,
    )
    if isinstance(model, RolloutCollector) and model._statistics is not None:
        # What was restored is no news of this training's.
        model._statistics.start_alike()
    return resumed
