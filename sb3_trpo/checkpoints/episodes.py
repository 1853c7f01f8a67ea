"""
The last episodes that an algorithm has seen, over which the log takes its means.
"""

from collections import deque
from typing import Any

from sb3_trpo.checkpoints.fit import is_number
from sb3_trpo.checkpoints.tree import pack
from sb3_trpo.checkpoints.tree_format import NotSavableError
from sb3_trpo.validation.values import UserError


def save_episodes(episodes: deque[Any] | None) -> deque[Any] | None:
    """
    Take from episodes what can be saved: environments may put anything into them.

    :param episodes: the episodes: numbers, or dictionaries
    :return: the episodes without what can't be saved
    """
    if episodes is None:
        return None
    return deque(map(_savable, episodes), episodes.maxlen)


def restore_episodes(name: str, saved: Any, present: deque[Any] | None, trusted: bool) -> deque[Any] | None:
    """
    Check the episodes of a file.

    :param name: the attribute that they become
    :param saved: the episodes, from ``save_episodes``
    :param present: the present episodes
    :param trusted: whether they may hold anything but numbers
    :return: the episodes to use
    :raises UserError: if the file holds something else
    """
    if saved is None or present is None:
        return present
    if not isinstance(saved, deque):
        raise UserError(f"The checkpoint does not fit this training: {name} is a {type(saved).__name__}, no queue.")
    episodes = saved if trusted else filter(None.__ne__, map(_numbers, saved))
    return deque(episodes, present.maxlen)


def _savable(episode: Any) -> Any:
    if not isinstance(episode, dict):
        return episode if is_number(episode) else None
    return {key: value for key, value in episode.items() if _is_savable([key, value])}


def _is_savable(value: Any) -> bool:
    if is_number(value):
        return True
    try:
        pack(value)
    except NotSavableError:
        return False
    return True


def _numbers(episode: Any) -> Any:
    if not isinstance(episode, dict):
        return episode if is_number(episode) else None
    return {key: value for key, value in episode.items() if isinstance(key, str) and is_number(value)}
