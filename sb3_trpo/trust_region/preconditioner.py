"""
A Kronecker-factored preconditioner for conjugate gradient on the Fisher information.
"""

from dataclasses import dataclass

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn.functional import unfold

from sb3_trpo.trust_region.conjugate_gradient import Operator
from sb3_trpo.trust_region.kl import Parameters
from sb3_trpo.trust_region.kronecker_factor import KroneckerFactor
from sb3_trpo.trust_region.linearization import LayerPass, Linearization

# The factors are only a preconditioner: of twice as many states or more, and beyond so many elements of a layer's
# inputs, some samples stand for all.
N_FACTOR_SAMPLES = 2048
MAX_FACTOR_ELEMENTS = 2**23
_SEED = 0


class PreconditionerError(Exception):
    """The factors can't be inverted."""


class _LayerBlock:
    """
    (A ⊗ G + λ I)⁻¹ for one layer, exactly, from the eigenvectors of A and G.

    :param weight: where the weight lies in θ
    :param bias: where the bias lies in θ, or None
    :param inputs: A, of size n, which counts the bias
    :param outputs: G, of size m
    :param damping: λ
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
        rotated = self.outputs.basis.t() @ matrix @ self.inputs.basis
        result = self.outputs.basis @ rotated.mul_(self.inside) @ self.inputs.basis.t()
        if self.outside > 0:
            result.add_(matrix, alpha=self.outside)
        solution[self.weight].copy_(result[:, : weight.shape[1]].view_as(solution[self.weight]))
        if self.bias is not None:
            solution[self.bias].copy_(result[:, -1])


def _check_curvature(curvature: th.Tensor, damping: float, is_complete: bool) -> None:
    """
    :param curvature: eigenvalues of A ⊗ G + λ I; none, if all rows of a factor are zero
    :param damping: λ
    :param is_complete: whether they are all there are, rather than all but those that are λ
    :raises PreconditionerError: if the matrix can't be inverted
    """
    bounds = th.stack(curvature.aminmax()) if curvature.numel() else curvature.new_full((2,), damping)
    smallest, largest = bounds.tolist()
    if damping == 0.0:
        # Without damping, eigenvalues this small are rounding errors. With it λ is exact, however small: where inputs
        # are not normalised, so that the largest is 10⁸ λ, plain conjugate gradient needs help the most.
        smallest = smallest - th.finfo(curvature.dtype).eps * largest if is_complete else 0.0
    if not (smallest > 0.0 and largest < float("inf")):
        raise PreconditionerError("the Kronecker factors of a layer are singular or not finite")


@dataclass(frozen=True)
class _ScalarBlock:
    """
    :param piece: where a parameter of no known layer lies in θ
    :param inverse: 1 / (its mean curvature + λ)
    """

    piece: int
    inverse: float

    def solve(self, pieces: list[th.Tensor], solution: list[th.Tensor]) -> None:
        th.mul(pieces[self.piece], self.inverse, out=solution[self.piece])


def kronecker_preconditioner(linearization: Linearization, damping: float) -> Operator:
    """
    K-FAC (Martens & Grosse 2015; for convolutions Grosse & Martens 2016) as an approximation of (F + λ I)⁻¹.

    Each linear layer's block of F is taken as A ⊗ G, where A = E[ããᵀ] for its inputs with a 1 for the bias, and
    G = E[gMgᵀ] for the derivatives g of z with respect to its outputs. M = R Rᵀ enters through one backward pass with
    R ε, ε independent signs: an estimate of G without bias. The signs come from a generator of their own, so that the
    random numbers that training sees don't depend on the preconditioner. A parameter of any other kind (log σ, a
    normalisation's gain, a recurrent cell) gets its mean curvature, from the same signs.

    :param linearization: of a sample of states
    :param damping: λ
    :return: r -> P⁻¹ r
    :raises PreconditionerError: if the factors are singular or not finite
    """
    parameters = linearization.parameters
    u = linearization.family.metric_root(linearization.z, _signs(linearization.z))
    every = max(1, len(linearization) // N_FACTOR_SAMPLES)
    position = {id(parameter): i for i, parameter in enumerate(parameters)}
    try:
        blocks: list[_LayerBlock | _ScalarBlock] = [
            _layer_block(layer, position, damping) for layer in linearization.layer_passes(u, every)
        ]
    except LinAlgError as error:
        raise PreconditionerError(str(error)) from error
    covered = {block.weight for block in blocks} | {block.bias for block in blocks}  # type: ignore[union-attr]
    rest = [i for i in range(len(position)) if i not in covered]
    if rest:
        blocks += _scalar_blocks(linearization, u, rest, damping)

    def solve(residual: th.Tensor) -> th.Tensor:
        solution = th.empty_like(residual)
        pieces, solution_pieces = parameters.split(residual), parameters.split(solution)
        for block in blocks:
            block.solve(pieces, solution_pieces)
        return solution

    return solve


def _thinned(rows: th.Tensor, max_rows: int) -> th.Tensor:
    """
    :param rows: (N, ...), neighbours alike, as in a rollout
    :param max_rows: of the result
    :return: every so-manieth row
    """
    return rows[:: -(-len(rows) // max_rows)]


def _signs(z: Parameters) -> Parameters:
    generator = th.Generator().manual_seed(_SEED)
    return tuple(
        (th.randint(0, 2, tensor.shape, generator=generator, dtype=th.int8) * 2 - 1).to(tensor) for tensor in z
    )


def _layer_block(layer: LayerPass, position: dict[int, int], damping: float) -> _LayerBlock:
    inputs, cotangents, n_samples = _positions(layer)
    # For convolutions, A sums over positions and G averages over them: inputs and derivatives are taken to be
    # independent of each other and from position to position.
    input_factor = KroneckerFactor.of(inputs, n_samples, with_ones=layer.bias is not None)
    output_factor = KroneckerFactor.of(cotangents, len(cotangents))
    bias = None if layer.bias is None else position[id(layer.bias)]
    return _LayerBlock(position[id(layer.weight)], bias, input_factor, output_factor, damping)


def _positions(layer: LayerPass) -> tuple[th.Tensor, th.Tensor, int]:
    """
    :param layer: with inputs and cotangents of N samples
    :return: inputs (N T, n) and cotangents (N T, m) of the T positions at which the layer is applied to each sample,
        and N, which may be less than there were
    """
    inputs, cotangents, conv = layer.inputs, layer.cotangents, layer.convolution
    fan_in = layer.weight[0].numel()
    n_positions = cotangents[0].numel() // len(layer.weight)
    max_samples = max(1, MAX_FACTOR_ELEMENTS // (fan_in * n_positions))
    inputs, cotangents = _thinned(inputs, max_samples), _thinned(cotangents, max_samples)
    n_samples = len(inputs)
    if conv is not None:
        assert not isinstance(conv.padding, str)
        patches = unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        inputs = patches.transpose(1, 2)
        cotangents = cotangents.flatten(2).transpose(1, 2)
    return inputs.reshape(-1, fan_in), cotangents.reshape(-1, len(layer.weight)), n_samples


def _scalar_blocks(linearization: Linearization, u: Parameters, rest: list[int], damping: float) -> list[_ScalarBlock]:
    """
    :param linearization: of N states
    :param u: R ε
    :param rest: positions of parameters in θ
    :param damping: λ
    :return: a block each; as ε is independent from state to state, (Jᵀ R ε)² / N has the mean diag F
    """
    blocks = []
    for i, piece in zip(rest, linearization.vjp_pieces(u, rest), strict=True):
        curvature = float(piece.square().mean()) / len(linearization) + damping
        if not 0.0 < curvature < float("inf"):
            raise PreconditionerError(f"the curvature of a parameter of shape {tuple(piece.shape)} is {curvature}")
        blocks.append(_ScalarBlock(i, 1.0 / curvature))
    return blocks
