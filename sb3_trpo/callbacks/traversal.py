"""
Callbacks hold callbacks.
"""

from collections.abc import Iterator

from stable_baselines3.common.callbacks import BaseCallback, CallbackList


def leaves(callback: BaseCallback) -> Iterator[BaseCallback]:
    """
    :param callback: possibly a list of callbacks, or one with children
    :return: it and all below it, always in the same order
    """
    yield callback
    children = [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    for child in [*children, *(callback.callbacks if isinstance(callback, CallbackList) else [])]:
        if isinstance(child, BaseCallback):
            yield from leaves(child)
