"""
The actor's parameters θ as one vector.

The vector is a copy. Making every parameter a view of one vector instead would save that copy, a few microseconds, but
would move the parameters' storage, to which compiled policies, optimizers and shared memory hold on.
"""

from collections.abc import Iterator, Sequence

import torch as th
from torch import nn


class FlatParameters:
    """
    :param parameters: at least one, each of them once
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        self._sizes = [parameter.numel() for parameter in self.parameters]

    def __len__(self) -> int:
        return sum(self._sizes)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self.parameters)

    def vector(self) -> th.Tensor:
        """
        :return: a copy of the parameters, (P,)
        """
        return flatten(self.parameters)

    def write_(self, vector: th.Tensor) -> None:
        """
        Set the parameters, in place: their storage stays where it is.

        :param vector: (P,)
        """
        with th.no_grad():
            for parameter, values in zip(self.parameters, self.split(vector), strict=True):
                parameter.copy_(values)

    def split(self, vector: th.Tensor) -> list[th.Tensor]:
        """
        :param vector: (P,)
        :return: views of it, shaped as the parameters
        """
        pieces = vector.split(self._sizes)
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def flatten_gradients(self, gradients: Sequence[th.Tensor | None]) -> th.Tensor:
        """
        :param gradients: one for each parameter; None, as autograd has it, for one that the result does not depend on
        :return: (P,)
        """
        pairs = zip(self.parameters, gradients, strict=True)
        return flatten([th.zeros_like(p) if gradient is None else gradient for p, gradient in pairs])


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    :param tensors: at least one
    :return: their elements in one vector, a copy
    """
    return th.cat([tensor.detach().reshape(-1) for tensor in tensors])
