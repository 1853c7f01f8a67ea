"""
What callbacks see of a rollout: SB3's local variables, of which those that cost time are computed when they are read.

SB3 hands its loop's local variables to ``BaseCallback.update_locals`` at each step. Values, log-probabilities and deep
copies of the infos take longer than a step of many environments, and few callbacks read them.
"""

from collections.abc import Callable, Iterator
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList


class Lazy:
    """
    A value that is computed when it is first read, and kept until it is to be forgotten.

    :param compute: a function that gives the value
    """

    __slots__ = ("_compute", "_value", "is_read")

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._value: Any = None
        self.is_read = False

    def read(self) -> Any:
        """
        Compute the value, the first time.

        :return: the value
        """
        if not self.is_read:
            self._value, self.is_read = self._compute(), True
        return self._value

    def forget(self) -> None:
        """Compute the value anew when it is next read."""
        self._value, self.is_read = None, False


class ShownLocals(dict[str, Any]):
    """
    A dictionary whose ``Lazy`` values are computed for whoever looks at them.

    Whatever copies it (``dict(...)``, ``{**...}``, the ``update`` of an ordinary dictionary) gets the values: Python
    copies a class that defines ``__iter__`` by its keys and ``[]``.
    """

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if type(value) is Lazy:
            value = value.read()
            super().__setitem__(name, value)
        return value

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def __repr__(self) -> str:
        return repr(dict(self))

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default if there is none."""
        return self[name] if name in self else default  # noqa: SIM401

    def items(self) -> Any:
        """Return the names with their values, all of them computed."""
        return dict(self).items()

    def values(self) -> Any:
        """Return the values, all of them computed."""
        return dict(self).values()

    def copy(self) -> dict[str, Any]:
        """Return an ordinary dictionary."""
        return dict(self)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a value and return it."""
        value = super().pop(name, *default)
        return value.read() if type(value) is Lazy else value

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a value, which is the default if there was none."""
        super().setdefault(name, default)
        return self[name]

    def update(self, /, *others: Any, **more: Any) -> None:
        """Take over values; those of another ``ShownLocals`` are not computed by that."""
        for other in others:
            if other is self:
                continue
            if isinstance(other, ShownLocals):
                for name in other:
                    self[name] = dict.__getitem__(other, name)
            else:
                super().update(other)
        if more:
            super().update(more)

    def show(self, /, **values: Any) -> None:
        """Take over values, of which those that are ``Lazy`` are not computed: quicker than ``update``."""
        super().update(values)


class ShowingCallback(CallbackList):
    """
    The callback that was given to ``learn``, which finds the rollout's local variables in ``ShownLocals``.

    :param callback: the user's callback, initialised
    :param model: the algorithm that learns
    """

    def __init__(self, callback: BaseCallback, model: BaseAlgorithm) -> None:
        super().__init__([callback])
        self.model = model

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Begin the training, as SB3 does, with the local variables of ``learn`` and the global ones of its module."""
        shown = ShownLocals(locals_)
        # Callbacks find in it what they would without this one.
        shown["callback"] = self.callbacks[0]
        super().on_training_start(shown, globals_)

    def on_rollout_start(self) -> None:
        """Begin the rollout, also where a callback gives the model other environments, for the rollout after this."""
        # ``set_env`` forgets it.
        last_obs = self.model._last_obs
        super().on_rollout_start()
        if self.model._last_obs is None:
            self.model._last_obs = last_obs
