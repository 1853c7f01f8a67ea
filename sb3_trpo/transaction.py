"""
All or nothing: a policy that an update leaves half done is put back to what it was.
"""

import contextlib
import copy
from collections.abc import Iterator
from types import TracebackType

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Distribution as TorchDistribution


class NonFiniteError(ArithmeticError):
    """A value that has to be finite is not."""


class Transaction:
    """
    While it is open, an exception restores the policy's parameters, buffers and optimizer, bit for bit and in place,
    and goes on.

    :param policy: to be guarded
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._policy = policy

    def __enter__(self) -> None:
        self._saved = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        self._optimizer_state = copy.deepcopy(self._policy.optimizer.state_dict())

    def __exit__(
        self, exception: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exception is not None:
            with th.no_grad():
                for tensor, saved in self._saved:
                    tensor.copy_(saved)
            self._policy.optimizer.load_state_dict(self._optimizer_state)
            self._policy.optimizer.zero_grad()

    def check_finite(self) -> None:
        """
        :raises NonFiniteError: if a parameter or buffer is not finite
        """
        for name, tensor in self._policy.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NonFiniteError(f"{name} is not finite")

    def _tensors(self) -> list[th.Tensor]:
        return [*self._policy.parameters(), *self._policy.buffers()]


@contextlib.contextmanager
def no_distribution_checks() -> Iterator[None]:
    """
    Switch off torch's argument checks of distributions.

    A step that is too long may give parameters that are not finite. That is for the line search to judge, not for an
    exception from inside the policy; and on a GPU each check waits for the device.
    """
    checks = TorchDistribution._validate_args
    TorchDistribution.set_default_validate_args(False)
    try:
        yield
    finally:
        TorchDistribution.set_default_validate_args(checks)
