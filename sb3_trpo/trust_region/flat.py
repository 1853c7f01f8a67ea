"""
The actor's parameters θ as one real vector.

The vector is a copy. Making every parameter a view of one vector instead would save that copy, a few microseconds, but
would move the parameters' storage, to which compiled policies, optimizers and shared memory hold on.
"""

from collections.abc import Iterator, Sequence

import torch as th
from torch import nn


class FlatParameters:
    """
    θ: tensors of any shape, seen as one vector of P real numbers.

    A complex parameter counts as its real and imaginary parts, side by side. Parameters of different precisions share a
    vector of the highest.

    :param tensors: the parameters, at least one, each of them once, in the order of θ
    """

    def __init__(self, tensors: Sequence[nn.Parameter]) -> None:
        self.tensors = tuple(tensors)
        self._shapes = [as_real(tensor.detach()).shape for tensor in self.tensors]
        self._sizes = [shape.numel() for shape in self._shapes]

    def __len__(self) -> int:
        return sum(self._sizes)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self.tensors)

    def vector(self) -> th.Tensor:
        """
        Copy the parameters into one vector.

        :return: θ, (P,)
        """
        return flatten(self.tensors)

    def write_(self, vector: th.Tensor) -> None:
        """
        Set the parameters in place: their storage stays where it is.

        :param vector: θ, (P,)
        """
        with th.no_grad():
            for tensor, values in zip(self.tensors, self.split(vector), strict=True):
                as_real(tensor).copy_(values)

    def split(self, vector: th.Tensor) -> list[th.Tensor]:
        """
        Cut a vector into a piece for each parameter.

        :param vector: a vector like θ, (P,)
        :return: views of it, shaped as the parameters; for a complex one with one more axis, of real and imaginary part
        """
        pieces = vector.split_with_sizes(self._sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def flatten_gradients(self, gradients: Sequence[th.Tensor | None]) -> th.Tensor:
        """
        Put gradients into one vector.

        :param gradients: a gradient for each parameter; None, as autograd gives it, counts as zero
        :return: the gradient in θ, (P,)
        """
        pairs = zip(self.tensors, gradients, strict=True)
        return flatten([th.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in pairs])


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    Put the elements of tensors into one vector.

    :param tensors: at least one; a complex one counts as its real and imaginary parts
    :return: a copy of their elements
    """
    return th.cat([as_real(as_dense(tensor.detach())).reshape(-1) for tensor in tensors])


def as_dense(gradient: th.Tensor) -> th.Tensor:
    """
    Fill up a sparse gradient, as that of an ``Embedding(sparse=True)``, which has the rows that were looked up alone.

    :param gradient: any gradient
    :return: the gradient with all its elements; a dense one as it is
    """
    return gradient.to_dense() if gradient.is_sparse else gradient


def as_real(tensor: th.Tensor) -> th.Tensor:
    """
    View a complex tensor as its real and imaginary parts.

    :param tensor: any tensor
    :return: the parts, in a last axis of 2; a real tensor as it is
    """
    # A gradient of a complex parameter is conjugated lazily, and that has no real view.
    return th.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
