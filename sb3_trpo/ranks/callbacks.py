"""
Which callbacks run on which rank.

Callbacks print, evaluate, save: once is enough, on the first rank. One that changes the training itself, such as a
growing discount factor, says so by an attribute ``runs_on_all_ranks = True``, of its class or of itself.
"""

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trpo.ranks.alone import Ranks

ATTRIBUTE = "runs_on_all_ranks"


def callbacks_of_rank(callback: MaybeCallback, ranks: Ranks) -> MaybeCallback:
    """
    Choose the callbacks that run on this rank.

    :param callback: what was given to ``learn``
    :param ranks: the ranks
    :return: on the first rank all of it, on others those callbacks that run on all ranks
    """
    if ranks.is_first or callback is None:
        return callback
    if isinstance(callback, CallbackList):
        callback = callback.callbacks
    callbacks = callback if isinstance(callback, list) else [callback]
    chosen: list[BaseCallback] = []
    for each in callbacks:
        if isinstance(each, CallbackList):
            of_rank = callbacks_of_rank(each, ranks)
            assert isinstance(of_rank, list)
            chosen += of_rank
        elif getattr(each, ATTRIBUTE, False):
            assert isinstance(each, BaseCallback)
            chosen.append(each)
    return chosen
