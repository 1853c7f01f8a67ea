"""
State that an object offers by itself: algorithms, callbacks, environments and wrappers may.
"""

from typing import Any, Protocol, TypeGuard, runtime_checkable


@runtime_checkable
class OffersState(Protocol):
    """
    Something that says what its state is.

    The state is plain data: numbers, texts, arrays, tensors, containers of these. Methods of these names are found by
    their names; nothing has to be imported for them.
    """

    def get_checkpoint_state(self) -> Any:
        """
        Give the state between two updates.

        :return: the state, which may share its memory with the object
        """

    def set_checkpoint_state(self, state: Any) -> None:
        """
        Go on from a state.

        :param state: what ``get_checkpoint_state`` has returned in another process
        """


def offers_state(value: object) -> TypeGuard[OffersState]:
    """
    Tell whether an object offers its state.

    :param value: an algorithm, a callback, an environment or a wrapper
    :return: whether its class has both methods; what an instance passes on to others (``VecEnvWrapper`` does) is not
        its own
    """
    return issubclass(type(value), OffersState)


METHODS = "get_checkpoint_state and set_checkpoint_state"
