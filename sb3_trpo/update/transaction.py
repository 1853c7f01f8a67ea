"""
All or nothing: a policy that an update leaves half done is put back to what it was.
"""

import copy
import math
from types import TracebackType
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn.parameter import is_lazy


class NonFiniteError(ArithmeticError):
    """A value that has to be finite is not."""


class Transaction:
    """
    A block in which an exception restores the policy before it goes on.

    Parameters and buffers are then what they were, bit for bit and in place; the optimizer's state is, too, in tensors
    of its own. A tensor that a module has put in the place of a buffer stays.

    :param policy: the policy to guard
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._policy = policy

    def __enter__(self) -> "Transaction":
        self._saved = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]
        self._optimizer_state = _cloned(self._policy.optimizer.state_dict())
        return self

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
        Check that the policy is finite.

        The optimizer's state counts too: with an infinite second moment Adam would never again move that parameter,
        which itself looks healthy. A buffer may hold what it held before, such as a mask of infinities.

        :raises NonFiniteError: if a parameter, a buffer or the optimizer's state is not finite
        """
        name = _first_not_finite(self._policy)
        if name:
            raise NonFiniteError(
                f"{name}, or its state in the optimizer, is not finite; a lower learning_rate, max_grad_norm or "
                "normalised rewards (VecNormalize) may help"
            )
        saved = {id(tensor): copy_ for tensor, copy_ in self._saved}
        for name, buffer in self._policy.named_buffers():
            if not _is_finite(buffer) and _is_finite(saved.get(id(buffer), buffer)):
                raise NonFiniteError(f"{name} is not finite")

    def _tensors(self) -> list[th.Tensor]:
        return [*self._policy.parameters(), *self._policy.buffers()]


def check_before_rollout(policy: ActorCriticPolicy) -> None:
    """
    Check that a policy is finite before it acts: no update leaves other weights, but a file or a callback may.

    :param policy: the policy that is about to act
    :raises NonFiniteError: if a parameter or the optimizer's state is not finite
    """
    name = _first_not_finite(policy)
    if name:
        raise NonFiniteError(
            f"The policy's {name}, or its state in the optimizer, is not finite before the rollout, so that no update "
            "can succeed. TRPO's updates leave no such weights: look at the file that the policy was loaded from, or "
            "at what else has changed it."
        )


def _first_not_finite(policy: ActorCriticPolicy) -> str:
    """
    Find a parameter that is not finite, or whose state in the optimizer is not.

    :param policy: the policy with its optimizer
    :return: the parameter's name; empty if there is none
    """
    for name, parameter in policy.named_parameters():
        if not all(map(_is_finite, [parameter, *policy.optimizer.state.get(parameter, {}).values()])):
            return name
    return ""


def _is_finite(value: Any) -> bool:
    # A lazy module's parameters have no numbers before the first rollout.
    if not isinstance(value, th.Tensor) or is_lazy(value):
        return True
    if value.is_complex():
        value = th.view_as_real(value.detach())
    # A sum is quicker than a test of every number; where it overflows, the test decides.
    return math.isfinite(float(value.detach().sum())) or bool(value.isfinite().all())


def _cloned(value: Any) -> Any:
    """
    Copy an optimizer's state, for whose tensors ``deepcopy`` would take ten times as long.

    :param value: the state, or a part of it
    :return: the copy
    """
    if isinstance(value, th.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cloned(part) for part in value]
    return copy.deepcopy(value)
