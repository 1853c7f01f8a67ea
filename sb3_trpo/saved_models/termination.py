"""
The end of the process by a signal, in the midst of something that has to be tidied up.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# What ends a process politely: job schedulers, ``kill``, a shutdown; and a terminal that is closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Terminated(BaseException):
    """Raised where the signal comes, so that what is going on tidies up, as after Ctrl-C."""


@contextlib.contextmanager
def unwind_when_terminated() -> Iterator[None]:
    """
    Let a signal that ends the process raise an exception in the block, and end the process when the block is left.

    The process ends by the signal itself, so that whoever waits for it sees the same as without this. A signal for
    which the user has a handler, or that is ignored, is left alone; so are all in threads other than the main one,
    where Python runs no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def unwind(number: int, _: FrameType | None) -> None:
        received.append(number)
        # A second one must not interrupt the tidying up.
        if len(received) == 1:
            raise _Terminated

    watched = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in watched:
            signal.signal(number, unwind)
        yield
    finally:
        for number in watched:
            if signal.getsignal(number) is unwind:
                signal.signal(number, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received[0])
