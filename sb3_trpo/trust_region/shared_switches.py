"""
Switches of torch that count for the whole process, while several trainings in threads need them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch as th
from torch.distributions import Distribution


class SharedSwitches:
    """
    Switches that are set while at least one training needs them.

    The first training sets them, and the last one puts them back. If each did so by itself, one that ends while another
    goes on would leave behind what it had found: the other's setting.

    :param settings: functions that make context managers, each of which sets a switch
    """

    def __init__(self, *settings: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        # Objects rather than a count: it does no harm to take one out twice, or one that never came in. So an
        # interruption at any line of ``hold`` leaves the right state.
        self._holders: set[object] = set()
        self._stack = contextlib.ExitStack()
        self._is_set = False

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the switches set in the block."""
        holder = object()
        try:
            with self._lock:
                self._holders.add(holder)
                if not self._is_set:
                    self._is_set = True
                    for setting in self._settings:
                        self._stack.enter_context(setting())
            yield
        finally:
            with self._lock:
                self._holders.discard(holder)
                if not self._holders:
                    self._stack.close()
                    self._is_set = False


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    # Its other switches stay the user's.
    enabled = th.backends.cudnn.enabled
    try:
        th.backends.cudnn.enabled = False
        yield
    finally:
        th.backends.cudnn.enabled = enabled


NO_CUDNN = SharedSwitches(_without_cudnn)


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    checks = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(False)
        yield
    finally:
        Distribution.set_default_validate_args(checks)


_UNCHECKED = SharedSwitches(_unchecked_distributions)


def skip_distribution_checks() -> contextlib.AbstractContextManager[None]:
    """
    Switch off torch's argument checks of distributions in a block.

    A step that is too long may give distribution parameters that are not finite. That is for the line search to judge,
    not for an exception from inside the policy; and on a GPU each check waits for the device. torch has one switch for
    the whole process and no other way.

    :return: the context manager
    """
    return _UNCHECKED.hold()
