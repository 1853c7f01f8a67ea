"""
The distribution parameters z(θ) of a batch of states, linearised at the current θ.

Everything that TRPO needs to know about the policy's networks are the products of the Jacobian J = ∂z/∂θ with vectors,
from either side: the surrogate's gradient is one Jᵀu, a Fisher-vector product one Jv and one Jᵀu, the Kronecker factors
one Jᵀu. ``GraphLinearization`` takes them from autograd, for any policy; ``MlpLinearization`` has them written out.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import Parameters, family_of


@dataclass(frozen=True)
class LayerPass:
    """
    What went through a linear layer or convolution, forward and backward.

    :param weight: the layer's, (m, ...)
    :param bias: the layer's, (m,), or None if it is not among the parameters
    :param convolution: the layer, if it is one
    :param inputs: what entered it, (N, ..., n) or, for a convolution, (N, channels, height, width)
    :param cotangents: gradient with respect to what left it, (N, ..., m) or (N, m, height, width)
    """

    weight: th.Tensor
    bias: th.Tensor | None
    convolution: nn.Conv2d | None
    inputs: th.Tensor
    cotangents: th.Tensor


class Linearization(ABC):
    """
    :param distribution: π(·|s) for a batch of states, differentiable
    :param parameters: θ
    """

    def __init__(self, distribution: Distribution, parameters: FlatParameters) -> None:
        # A policy uses one distribution object for everything, and sets it anew at each evaluation.
        self.distribution = copy.copy(distribution)
        self.family = family_of(distribution)
        self.parameters = parameters
        # z, each (N, ·)
        self.z: Parameters = tuple(tensor.detach() for tensor in self.family.parameters(distribution.distribution))

    def __len__(self) -> int:
        return len(self.z[0])

    @abstractmethod
    def gradient(self, objective: th.Tensor) -> th.Tensor:
        """
        :param objective: a scalar computed from ``distribution``
        :return: its gradient in θ, (P,)
        """

    @abstractmethod
    def jvp(self, v: th.Tensor) -> Parameters:
        """
        :param v: (P,)
        :return: J v, shaped as z
        """

    @abstractmethod
    def vjp(self, u: Parameters) -> th.Tensor:
        """
        :param u: shaped as z
        :return: Jᵀ u, (P,)
        """

    @abstractmethod
    def vjp_pieces(self, u: Parameters, positions: Sequence[int]) -> list[th.Tensor]:
        """
        :param u: shaped as z
        :param positions: of parameters in θ, at least one
        :return: what Jᵀ u has for these parameters, shaped as they are
        """

    @abstractmethod
    def layer_passes(self, u: Parameters, every: int = 1) -> Iterator[LayerPass]:
        """
        :param u: shaped as z, to be propagated backward
        :param every: k; only every k-th state is wanted, if leaving out the others saves time
        :return: the layers whose weights are among the parameters and that were called exactly once; no two of them
            share a parameter
        """


class Linearizations:
    """
    The linearisations of the chunks of a batch. One is kept; several are made anew each time, to bound the memory.

    :param linearize: makes the linearisation of a chunk
    :param chunks: the batch, in chunks
    """

    def __init__(self, linearize: Callable[[Any], Linearization], chunks: Sequence[Any]) -> None:
        self._linearize = linearize
        self.chunks = chunks
        self._kept: Linearization | None = None

    def __iter__(self) -> Iterator[Linearization]:
        if len(self.chunks) > 1:
            yield from map(self._linearize, self.chunks)
        else:
            yield self.first()

    def first(self) -> Linearization:
        """
        :return: the first chunk's linearisation
        """
        if self._kept is not None:
            return self._kept
        first = self._linearize(self.chunks[0])
        if len(self.chunks) == 1:
            self._kept = first
        return first
