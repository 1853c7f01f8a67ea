"""
The distribution parameters z(θ) of a batch of states, linearised at the current θ.

All that TRPO needs to know about the policy's networks is the product of the Jacobian J = ∂z/∂θ with a vector, from
either side. The surrogate's gradient takes one Jᵀu, a Fisher-vector product one Jv and one Jᵀu, the Kronecker factors
one Jᵀu. ``GraphLinearization`` takes them from autograd, for any policy; ``MlpLinearization`` has them written out.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import DistributionParameters

# What a policy is evaluated on: rollout samples, or whatever else it takes.
SamplesT = TypeVar("SamplesT")


@dataclass(frozen=True)
class LayerPass:
    """
    What went through a linear layer or convolution, forward and backward.

    :param weight: the layer's weight, (m, ...)
    :param bias: the layer's bias, (m,), or None if it is not among the parameters
    :param convolution: the layer, if it is a convolution
    :param inputs: what entered the layer, (..., n) or, for a convolution, (..., channels, height, width)
    :param cotangents: the gradient with respect to what left it, (..., m) or (..., m, height, width)
    :param n_states: the number of states N that all rows together stand for; the leading axes need not count them: a
        branch of the network may see some states only, or each state in several rows
    """

    weight: th.Tensor
    bias: th.Tensor | None
    convolution: nn.Conv2d | None
    inputs: th.Tensor
    cotangents: th.Tensor
    n_states: int


class Linearization(ABC):
    """
    z(θ) ≈ z + J (θ − θ_old) for a batch of N states.

    ``distribution`` is π(· | s), differentiable. ``family`` is its family, and ``z`` has its parameters there, tensors
    of shape (N, ·).

    :param distribution: π(· | s) for a batch of states, differentiable
    :param parameters: θ
    """

    def __init__(self, distribution: Distribution, parameters: FlatParameters) -> None:
        # A policy uses one distribution object for everything, and sets it anew at each evaluation.
        self.distribution = copy.copy(distribution)
        self.family, z = family_and_z(distribution)
        self.parameters = parameters
        self.z: DistributionParameters = tuple(tensor.detach() for tensor in z)

    def __len__(self) -> int:
        return len(self.z[0])

    @abstractmethod
    def gradient(self, objective: th.Tensor) -> th.Tensor:
        """
        Differentiate a function of the action distributions.

        :param objective: a scalar computed from ``distribution``
        :return: its gradient in θ, (P,)
        """

    @abstractmethod
    def jvp(self, v: th.Tensor) -> DistributionParameters:
        """
        Multiply by the Jacobian: how z changes along v.

        :param v: the direction, (P,)
        :return: J v, shaped as z
        """

    @abstractmethod
    def vjp(self, u: DistributionParameters) -> th.Tensor:
        """
        Multiply by the transposed Jacobian: the gradient of u · z.

        :param u: a vector shaped as z
        :return: Jᵀ u, (P,)
        """

    @abstractmethod
    def vjp_pieces(self, u: DistributionParameters, positions: Sequence[int]) -> list[th.Tensor]:
        """
        Compute the pieces of Jᵀ u that belong to some of the parameters.

        :param u: a vector shaped as z
        :param positions: the places of these parameters in θ, at least one
        :return: a piece for each, shaped as ``FlatParameters.split`` gives it
        """

    @abstractmethod
    def layer_passes(self, u: DistributionParameters, every: int = 1, first: int = 0) -> Iterator[LayerPass]:
        """
        Go through the layers that have Kronecker factors.

        These are the layers whose weights are among the parameters and that were called exactly once. No two of them
        share a parameter.

        :param u: the vector to propagate backward, shaped as z
        :param every: k; every k-th state is enough, if leaving out the others saves time
        :param first: the place of the first of these states, below k
        :return: what went through each of the layers
        """


class Linearizations(Generic[SamplesT]):
    """
    The linearisations of the chunks of a rollout.

    A single one is kept; several are made anew each time, to bound the memory.

    :param linearize: a function that linearises z(θ) on a chunk
    :param chunks: the samples, in chunks
    :param part: the samples that stand for all; None for the first chunk
    """

    def __init__(
        self,
        linearize: Callable[[SamplesT], Linearization],
        chunks: Sequence[SamplesT],
        part: SamplesT | None = None,
    ) -> None:
        self._linearize = linearize
        self._part = part
        self.chunks = chunks
        self._kept: Linearization | None = None

    def __iter__(self) -> Iterator[Linearization]:
        if len(self.chunks) > 1:
            yield from map(self._linearize, self.chunks)
        else:
            yield self.first()

    def first(self) -> Linearization:
        """
        Linearise the first chunk.

        :return: its linearisation
        """
        if self._kept is not None:
            return self._kept
        first = self._linearize(self.chunks[0])
        if len(self.chunks) == 1:
            self._kept = first
        return first

    def representative(self) -> Linearization:
        """
        Linearise samples that stand for all.

        :return: their linearisation
        """
        return self.first() if self._part is None else self._linearize(self._part)
