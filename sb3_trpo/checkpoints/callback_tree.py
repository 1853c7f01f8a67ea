"""
The tree of callbacks: lists of callbacks, and callbacks that call others.
"""

from collections.abc import Iterator

from stable_baselines3.common.callbacks import BaseCallback, CallbackList


def walk_callbacks(callback: BaseCallback) -> Iterator[BaseCallback]:
    """
    Go through a callback and all that it calls, always in the same order.

    :param callback: the callback, which may be a list of callbacks, or call others
    :return: the callback, and all below it
    """
    yield callback
    children = [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    for child in [*children, *(callback.callbacks if isinstance(callback, CallbackList) else [])]:
        if isinstance(child, BaseCallback):
            yield from walk_callbacks(child)
