"""
A clock for the parts of a run. It imports nothing that takes time.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock


class Stopwatch:
    """
    Adds up the time that is spent in each part, without the parts that it calls.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # For each part that is running, the time of the parts that it called.
        self._inner: list[float] = []

    def timed(self, function: Any, part: str) -> Any:
        """Return the function, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                inner = self._inner.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + elapsed - inner
                if self._inner:
                    self._inner[-1] += elapsed

        return call

    @contextlib.contextmanager
    def watch(self, parts: tuple[tuple[Any, str, str], ...]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, part in parts:
                stack.enter_context(mock.patch.object(owner, name, self.timed(getattr(owner, name), part)))
            yield
