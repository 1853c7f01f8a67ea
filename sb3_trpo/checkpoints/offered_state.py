"""
State that an object offers by itself, as algorithms, callbacks, environments and wrappers may.
"""

from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch as th

from sb3_trpo.checkpoints.tree_format import NotSavableError

METHODS = "get_checkpoint_state and set_checkpoint_state"


@runtime_checkable
class OffersState(Protocol):
    """
    An object that says what its state is.

    The state is plain data: numbers, texts, arrays, tensors, containers of these. An object needs methods of these
    names, and nothing has to be imported for them.
    """

    def get_checkpoint_state(self) -> Any:
        """
        Give the state between two updates.

        :return: the state, which may share its memory with the object
        """

    def set_checkpoint_state(self, state: Any) -> None:
        """
        Go on from a state.

        :param state: the state, from ``get_checkpoint_state`` in another process
        """


def offers_state(value: object) -> TypeGuard[OffersState]:
    """
    Tell whether an object offers its state.

    :param value: an algorithm, a callback, an environment or a wrapper
    :return: whether its class has both methods; methods that an instance borrows from others, as a ``VecEnvWrapper``
        does, do not count
    """
    return issubclass(type(value), OffersState)


def offered_by(value: OffersState) -> Any:
    """
    Get the state that an object offers.

    :param value: the object
    :return: the state, in memory of its own
    :raises NotSavableError: if the object raises anything, for it is the user's, and no checkpoint may end a training
    """
    try:
        return own_copy(value.get_checkpoint_state())
    except Exception as error:
        raise NotSavableError(f"{type(value).__name__} gives no state ({type(error).__name__}: {error})") from error


def own_copy(value: Any) -> Any:
    """
    Copy what may lie in the memory of a simulation, or be a part of something larger.

    :param value: arrays, tensors, containers of these; anything else stays as it is
    :return: a copy of it, with arrays and tensors in memory of their own
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, th.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: own_copy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(own_copy, value))
    return type(value)(*map(own_copy, value)) if isinstance(value, tuple) and hasattr(value, "_fields") else value
