"""
A Kronecker-factored preconditioner for conjugate gradient on the Fisher information.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # By its types torch does not export it.
from torch.nn.functional import unfold

from sb3_trpo.trust_region.conjugate_gradient import Operator
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.kronecker_factor import KroneckerFactor
from sb3_trpo.trust_region.linearization import LayerPass, Linearization

# The factors are only a preconditioner, so that some samples may stand for all: of twice as many states or more every
# second, third, ..., and of a layer's inputs at most this many elements.
N_FACTOR_SAMPLES = 2048
MAX_FACTOR_ELEMENTS = 2**23
_SEED = 0


class PreconditionerError(Exception):
    """The factors can't be inverted."""


def kronecker_preconditioner(linearization: Linearization, damping: float) -> Operator:
    """
    Approximate (F + λ I)⁻¹ by K-FAC (Martens & Grosse 2015; for convolutions Grosse & Martens 2016).

    Each linear layer's block of F is taken as A ⊗ G, where A = E[ããᵀ] for its inputs with a 1 for the bias, and
    G = E[gMgᵀ] for the derivatives g of z with respect to its outputs. M = R Rᵀ enters through one backward pass with
    R ε, ε independent signs: an estimate of G without bias.

    A parameter of any other kind (log σ, a normalisation's gain, a recurrent cell) gets its mean curvature, from the
    same signs. So does that of a layer whose block cannot be had: one that saw no sample, for example.

    :param linearization: z(θ) on a sample of states
    :param damping: λ
    :return: r -> P⁻¹ r
    :raises PreconditionerError: if there is a parameter whose curvature is not finite, or not above 0
    """
    parameters = linearization.parameters
    u = linearization.family.metric_root(linearization.z, _signs(linearization.z))
    every = max(1, len(linearization) // N_FACTOR_SAMPLES)
    position = {id(parameter): i for i, parameter in enumerate(parameters)}
    layer_blocks = list(_layer_blocks(linearization.layer_passes(u, every), position, damping))
    covered = {i for block in layer_blocks for i in (block.weight, block.bias)}
    rest = [i for i in range(len(position)) if i not in covered]
    blocks: list[_Block] = [*layer_blocks, *_scalar_blocks(linearization, u, rest, damping)]

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


def _layer_blocks(layers: Iterator[LayerPass], position: dict[int, int], damping: float) -> Iterator[_LayerBlock]:
    """
    Make the blocks of those layers that can have one.

    :param layers: what went through each layer
    :param position: the place of each parameter in θ, by its id
    :param damping: λ
    :return: a block for each of these layers
    """
    for layer in layers:
        try:
            block = _layer_block(layer, position, damping)
        except (PreconditionerError, LinAlgError):
            # Its parameters are then parameters of any other kind.
            continue
        if block is not None:
            yield block


def _layer_block(layer: LayerPass, position: dict[int, int], damping: float) -> _LayerBlock | None:
    inputs, cotangents, share = _rows(layer)
    if len(inputs) == 0 or len(inputs) != len(cotangents):
        return None
    # 1. A sums over the rows of each state and G averages over them: inputs and derivatives are taken to be independent
    #    of each other and from row to row.
    # 2. Whether the rows of a state are positions of a convolution, tokens, or whether it has none, is all the same.
    input_factor = KroneckerFactor.of(inputs, layer.n_states * share, with_ones=layer.bias is not None)
    output_factor = KroneckerFactor.of(cotangents, len(cotangents))
    bias = None if layer.bias is None else position[id(layer.bias)]
    return _LayerBlock(position[id(layer.weight)], bias, input_factor, output_factor, damping)


def _rows(layer: LayerPass) -> tuple[th.Tensor, th.Tensor, float]:
    """
    Bring a layer's pass into rows, one for each time that its weight was multiplied with something.

    Of very many rows some stand for all.

    :param layer: what went through the layer
    :return: inputs (R, n), cotangents (R, m), and the share of all rows that these are
    """
    fan_out, fan_in = len(layer.weight), math.prod(layer.weight.shape[1:])
    inputs, cotangents = layer.inputs, layer.cotangents
    if layer.convolution is not None:
        # One image may come without an axis for it.
        inputs, cotangents = (x.unsqueeze(0) if x.dim() == 3 else x for x in (inputs, cotangents))
    elif inputs.dim() == 1:
        inputs, cotangents = inputs.unsqueeze(0), cotangents.unsqueeze(0)
    n_samples = len(inputs)
    has_shape = len(cotangents) == n_samples and cotangents.shape[1 if layer.convolution else -1] == fan_out
    if inputs.numel() == 0 or fan_out == 0 or not has_shape:
        # No sample went through the layer, or it has no unit; or a hook of the user's has changed what left it.
        return inputs.new_empty(0, fan_in), cotangents.new_empty(0, fan_out), 0.0
    n_positions = cotangents[0].numel() // fan_out
    max_samples = max(1, MAX_FACTOR_ELEMENTS // max(1, fan_in * n_positions))
    inputs, cotangents = _thinned(inputs, max_samples), _thinned(cotangents, max_samples)
    share = len(inputs) / n_samples
    if layer.convolution is not None:
        conv = layer.convolution
        assert not isinstance(conv.padding, str)
        patches = unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        inputs = patches.transpose(1, 2)
        cotangents = cotangents.flatten(2).transpose(1, 2)
    return _decomposable(inputs.reshape(-1, fan_in)), _decomposable(cotangents.reshape(-1, fan_out)), share


def _decomposable(rows: th.Tensor) -> th.Tensor:
    # torch has no eigenvectors in half precision.
    return rows.float() if rows.dtype in (th.float16, th.bfloat16) else rows


def _thinned(rows: th.Tensor, max_rows: int) -> th.Tensor:
    """
    Take rows at equal distances.

    :param rows: the rows, (N, ...); neighbours are alike, as in a rollout
    :param max_rows: the most rows to take
    :return: every k-th row, for the least k that is enough
    """
    return rows[:: -(-len(rows) // max_rows)]


def _signs(z: DistributionParameters) -> DistributionParameters:
    # A generator of its own, so that the random numbers that training sees do not depend on the preconditioner.
    generator = th.Generator().manual_seed(_SEED)
    return tuple(
        (th.randint(0, 2, tensor.shape, generator=generator, dtype=th.int8) * 2 - 1).to(tensor) for tensor in z
    )


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
    linearization: Linearization, u: DistributionParameters, rest: Sequence[int], damping: float
) -> Iterator[_ScalarBlock]:
    """
    Give each of some parameters its mean curvature.

    As ε is independent from state to state, (Jᵀ R ε)² / N has the mean diag F.

    :param linearization: z(θ) on N states
    :param u: R ε
    :param rest: the places of these parameters in θ
    :param damping: λ
    :return: a block for each
    :raises PreconditionerError: if a curvature is not finite, or not above 0
    """
    if not rest:
        return
    for i, piece in zip(rest, linearization.vjp_pieces(u, rest), strict=True):
        if piece.numel() == 0:
            continue
        curvature = float(piece.square().mean()) / len(linearization) + damping
        if not 0.0 < curvature < math.inf:
            raise PreconditionerError(f"the curvature of a parameter of shape {tuple(piece.shape)} is {curvature}")
        yield _ScalarBlock(i, 1.0 / curvature)
