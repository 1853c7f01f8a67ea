"""
A Kronecker-factored preconditioner for conjugate gradient on the Fisher information.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # By its types torch does not export it.

from sb3_trpo.ranks.alone import ALONE, Ranks, Share
from sb3_trpo.trust_region.conjugate_gradient import Operator
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.kronecker_factor import KroneckerFactor, RowSums
from sb3_trpo.trust_region.layer_rows import LayerSamples
from sb3_trpo.trust_region.linearization import LayerPass, Linearization

# The factors are only a preconditioner, so that some samples may stand for all: of twice as many states or more every
# second, third, ...
N_FACTOR_SAMPLES = 2048
_SEED = 0


class PreconditionerError(Exception):
    """The factors can't be inverted."""


def kronecker_preconditioner(linearization: Linearization, damping: float, ranks: Ranks = ALONE) -> Operator:
    """
    Approximate (F + λ I)⁻¹ by K-FAC (Martens & Grosse 2015; for convolutions Grosse & Martens 2016).

    Each linear layer's block of F is taken as A ⊗ G, where A = E[ããᵀ] for its inputs with a 1 for the bias, and
    G = E[gMgᵀ] for the derivatives g of z with respect to its outputs. M = R Rᵀ enters through one backward pass with
    R ε, ε independent signs: an estimate of G without bias.

    A parameter of any other kind (log σ, a normalisation's gain, a recurrent cell) gets its mean curvature, from the
    same signs. So does that of a layer whose block cannot be had: one that saw no sample, for example.

    :param linearization: z(θ) on a sample of states, or on this rank's part of it
    :param damping: λ
    :param ranks: the ranks that have the sample
    :return: r -> P⁻¹ r
    :raises PreconditionerError: if there is a parameter whose curvature is not finite, or not above 0
    """
    parameters = linearization.parameters
    share = ranks.share(len(linearization))
    u = linearization.family.metric_root(linearization.z, _signs(linearization.z, share))
    every = max(1, share.total // N_FACTOR_SAMPLES)
    position = {id(parameter): i for i, parameter in enumerate(parameters)}
    layers = _layer_sums(list(linearization.layer_passes(u, every, share.every(every).start)), position, ranks)

    # All that is summed over states goes over the ranks at once.
    others = _not_in(layers, len(position))
    pieces = linearization.vjp_pieces(u, others) if others else []
    n_sums = 2 * len(layers)
    summed = ranks.sum_each([*(sums.sums for layer in layers for sums in (layer.inputs, layer.outputs)), *pieces])
    layer_blocks = list(_layer_blocks(layers, summed[:n_sums], damping))
    blocks: list[_Block] = [*layer_blocks, *_scalar_blocks(others, summed[n_sums:], share.total, damping)]
    # Layers whose block cannot be had; the same on all ranks, for what it is made of is the same.
    others = [i for i in _not_in(layer_blocks, len(position)) if i not in set(others)]
    if others:
        summed = ranks.sum_each(linearization.vjp_pieces(u, others))
        blocks += _scalar_blocks(others, summed, share.total, damping)

    def solve(residual: th.Tensor) -> th.Tensor:
        solution = th.empty_like(residual)
        pieces, solution_pieces = parameters.split(residual), parameters.split(solution)
        for block in blocks:
            block.solve(pieces, solution_pieces)
        return solution

    return solve


class _Block(Protocol):
    """The inverse of a block of P."""

    def solve(self, pieces: list[th.Tensor], solution: list[th.Tensor]) -> None:
        """
        Multiply by this inverse.

        :param pieces: r, in pieces shaped as the parameters
        :param solution: P⁻¹ r, likewise; the block writes its own pieces
        """


class _LayerBlock:
    """
    (A ⊗ G + λ I)⁻¹ for one layer, exactly, from the eigenvectors of A and G.

    :param weight: the weight's place in θ
    :param bias: the bias's place in θ, or None
    :param inputs: A, of size n, which counts the bias
    :param outputs: G, of size m
    :param damping: λ
    :raises PreconditionerError: if the matrix can't be inverted
    """

    def __init__(
        self, weight: int, bias: int | None, inputs: KroneckerFactor, outputs: KroneckerFactor, damping: float
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.inputs = inputs
        self.outputs = outputs
        curvature = th.outer(outputs.values, inputs.values).add_(damping)
        is_complete = inputs.is_complete and outputs.is_complete
        _check_curvature(curvature, damping, is_complete)
        # In a direction outside of the bases there is no curvature but λ.
        self.outside = 0.0 if is_complete else 1.0 / damping
        self.inside = curvature.reciprocal_().sub_(self.outside)

    def solve(self, pieces: list[th.Tensor], solution: list[th.Tensor]) -> None:
        weight = pieces[self.weight].flatten(1)
        matrix = weight if self.bias is None else th.cat([weight, pieces[self.bias].unsqueeze(1)], dim=1)
        # θ may be of a higher precision than this layer.
        matrix = matrix.to(self.inside.dtype)
        rotated = self.outputs.basis.t() @ matrix @ self.inputs.basis
        result = self.outputs.basis @ rotated.mul_(self.inside) @ self.inputs.basis.t()
        if self.outside > 0:
            result.add_(matrix, alpha=self.outside)
        solution[self.weight].copy_(result[:, : weight.shape[1]].view_as(solution[self.weight]))
        if self.bias is not None:
            solution[self.bias].copy_(result[:, -1])


def _check_curvature(curvature: th.Tensor, damping: float, is_complete: bool) -> None:
    """
    Refuse a matrix that can't be inverted.

    :param curvature: eigenvalues of A ⊗ G + λ I; none, if all rows of a factor are zero
    :param damping: λ
    :param is_complete: whether these are all eigenvalues; if not, the others are λ
    :raises PreconditionerError: if one of them is not finite, or not above 0
    """
    bounds = th.stack(curvature.aminmax()) if curvature.numel() else curvature.new_full((2,), damping)
    smallest, largest = bounds.tolist()
    if damping == 0.0:
        # Without damping, eigenvalues this small are rounding errors. With it λ is exact, however small: where inputs
        # are not normalised, so that the largest is 10⁸ λ, plain conjugate gradient needs help the most.
        smallest = smallest - th.finfo(curvature.dtype).eps * largest if is_complete else 0.0
    if not (smallest > 0.0 and largest < math.inf):
        raise PreconditionerError("the Kronecker factors of a layer are singular or not finite")


@dataclass(frozen=True)
class _LayerSums:
    """
    What a layer's block is made of.

    :param weight: the weight's place in θ
    :param bias: the bias's place in θ, or None
    :param inputs: what A is made of, and by what it is divided
    :param outputs: what G is made of, and by what it is divided
    :param input_total: the number that A's sum over rows is divided by
    :param output_total: the number that G's sum over rows is divided by
    """

    weight: int
    bias: int | None
    inputs: RowSums
    outputs: RowSums
    input_total: float
    output_total: float


def _not_in(layers: Sequence["_LayerSums | _LayerBlock"], n_parameters: int) -> list[int]:
    covered = {i for layer in layers for i in (layer.weight, layer.bias)}
    return [i for i in range(n_parameters) if i not in covered]


def _layer_sums(passes: Sequence[LayerPass], position: dict[int, int], ranks: Ranks) -> list[_LayerSums]:
    """
    Sum over the samples of those layers that can have a block.

    :param passes: what went through each layer
    :param position: the place of each parameter in θ, by its id
    :param ranks: the ranks that have a part of the samples each
    :return: the sums over this rank's samples, for each layer that has seen samples on all ranks
    """
    # 1. A branch of the network may see some states only, so that each layer has samples of its own number.
    samples = {position[id(layer.weight)]: LayerSamples.of(layer) for layer in passes}
    counts = [0] * (2 * len(position))
    for i, layer in samples.items():
        if layer is not None:
            counts[2 * i : 2 * i + 2] = len(layer), layer.layer.n_states
    table = ranks.counts(counts)
    sums = []
    for i, layer in samples.items():
        n_samples, n_states = [row[2 * i] for row in table], sum(row[2 * i + 1] for row in table)
        if layer is None or min(n_samples) == 0:
            continue
        share = ranks.share_of(n_samples)
        step = layer.thinning(share)
        inputs, cotangents = layer.rows(share.every(step))
        if len(inputs) != len(cotangents):
            continue
        taken = share.thinned(step)
        rows = Share(taken.offset * layer.n_positions, taken.total * layer.n_positions)
        # 2. A sums over the rows of each state and G averages over them: inputs and derivatives are taken to be
        #    independent of each other and from row to row.
        # 3. Whether the rows of a state are positions of a convolution, tokens, or whether it has none, is all the
        #    same.
        bias = layer.layer.bias
        sums.append(
            _LayerSums(
                i,
                None if bias is None else position[id(bias)],
                RowSums.of(inputs, rows, with_ones=bias is not None),
                RowSums.of(cotangents, rows),
                n_states * (taken.total / share.total),
                rows.total,
            )
        )
    return sums


def _layer_blocks(layers: Sequence[_LayerSums], summed: Sequence[th.Tensor], damping: float) -> Iterator[_LayerBlock]:
    """
    Make the blocks of those layers that can have one.

    :param layers: what the blocks are made of
    :param summed: the sums of their inputs and outputs in turn, over all ranks
    :param damping: λ
    :return: a block for each of these layers
    """
    for layer, of_inputs, of_outputs in zip(layers, summed[::2], summed[1::2], strict=True):
        try:
            inputs = replace(layer.inputs, sums=of_inputs).decompose(layer.input_total)
            outputs = replace(layer.outputs, sums=of_outputs).decompose(layer.output_total)
            yield _LayerBlock(layer.weight, layer.bias, inputs, outputs, damping)
        except (PreconditionerError, LinAlgError):
            # Its parameters are then parameters of any other kind.
            continue


def _signs(z: DistributionParameters, share: Share) -> DistributionParameters:
    """
    Draw ε, always the same for a number of states.

    :param z: the distribution parameters of this rank's states
    :param share: which of all states these are
    :return: this rank's signs, shaped as z
    """
    # A generator of its own, so that the random numbers that training sees do not depend on the preconditioner.
    generator = th.Generator().manual_seed(_SEED)
    rows = slice(share.offset, share.offset + len(z[0]))
    shapes = [(share.total, *tensor.shape[1:]) for tensor in z]
    signs = [th.randint(0, 2, shape, generator=generator, dtype=th.int8)[rows] * 2 - 1 for shape in shapes]
    return tuple(sign.to(tensor) for sign, tensor in zip(signs, z, strict=True))


@dataclass(frozen=True)
class _ScalarBlock:
    """
    The inverse of a block that is a multiple of the identity.

    :param piece: the place in θ of a parameter of no known layer
    :param inverse: 1 / (its mean curvature + λ)
    """

    piece: int
    inverse: float

    def solve(self, pieces: list[th.Tensor], solution: list[th.Tensor]) -> None:
        th.mul(pieces[self.piece], self.inverse, out=solution[self.piece])


def _scalar_blocks(
    places: Sequence[int], pieces: Sequence[th.Tensor], n_states: int, damping: float
) -> Iterator[_ScalarBlock]:
    """
    Give each of some parameters its mean curvature.

    As ε is independent from state to state, (Jᵀ R ε)² / N has the mean diag F.

    :param places: the places of these parameters in θ
    :param pieces: Jᵀ R ε, in pieces for them
    :param n_states: N
    :param damping: λ
    :return: a block for each
    :raises PreconditionerError: if a curvature is not finite, or not above 0
    """
    for i, piece in zip(places, pieces, strict=True):
        if piece.numel() == 0:
            continue
        curvature = float(piece.square().mean()) / n_states + damping
        if not 0.0 < curvature < math.inf:
            raise PreconditionerError(f"the curvature of a parameter of shape {tuple(piece.shape)} is {curvature}")
        yield _ScalarBlock(i, 1.0 / curvature)
