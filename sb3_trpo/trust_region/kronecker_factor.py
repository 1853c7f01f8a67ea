"""
A factor of a layer's Kronecker-factored Fisher information, by its eigenvectors: all of them, or the leading ones.
"""

from dataclasses import dataclass
from enum import Enum

import torch as th

from sb3_trpo.ranks.alone import Share

# Beyond this size a factor is known by its leading eigenvectors: its spectrum falls so fast that, at the usual damping,
# they are all that counts, and all of them would take more time than the iterations that they save.
MAX_EXACT_SIZE = 128
N_LEADING = 48
# Below it, a square root or a square would be rounded to nothing.
_TINY = 1e-30
_SEED = 0


@dataclass(frozen=True)
class KroneckerFactor:
    """
    A matrix rowsᵀ rows / total, by its eigenvectors.

    :param values: the eigenvalues, without those that are taken as zero, (k,)
    :param basis: their eigenvectors, (n, k)
    """

    values: th.Tensor
    basis: th.Tensor

    @property
    def is_complete(self) -> bool:
        """Whether the eigenvectors span the whole space."""
        return self.basis.shape[0] == self.basis.shape[1]

    @classmethod
    def of(cls, rows: th.Tensor, total: float, with_ones: bool = False) -> "KroneckerFactor":
        """
        Decompose rowsᵀ rows / total, in the cheapest way for its shape.

        :param rows: the rows, (R, n)
        :param total: the number that the sum over rows is divided by
        :param with_ones: whether a 1 is added at the end of each row
        :return: the factor
        """
        return RowSums.of(rows, Share(0, len(rows)), with_ones).decompose(total)


class Form(Enum):
    """What of the rows a factor is made of."""

    MATRIX = "all eigenvectors, from the matrix itself"
    ROWS = "all eigenvectors, from the rows, for there are few"
    SKETCH = "the leading eigenvectors, from the matrix times a few directions"


@dataclass(frozen=True)
class RowSums:
    """
    What a factor is made of: sums over rows, which ranks can add up before one of them decomposes anything.

    :param form: what it is made of
    :param sums: the sums: the matrix, (n, n); the rows, (R, n), with zeros in the place of other ranks'; or the
        products with directions, (n, k)
    :param directions: the random directions of a sketch, (n, k)
    """

    form: Form
    sums: th.Tensor
    directions: th.Tensor | None = None

    @classmethod
    def of(cls, rows: th.Tensor, share: Share, with_ones: bool = False) -> "RowSums":
        """
        Sum over rows, in the cheapest way for the shape of all of them together.

        :param rows: this rank's rows, (R, n)
        :param share: which of all rows these are
        :param with_ones: whether a 1 is added at the end of each row
        :return: the sums
        """
        size = rows.shape[1] + with_ones
        if size <= MAX_EXACT_SIZE and size <= share.total:
            return cls(Form.MATRIX, _gram_matrix(rows, with_ones))
        if share.total <= MAX_EXACT_SIZE:
            if with_ones:
                rows = th.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            if len(rows) < share.total:
                places = rows.new_zeros(share.total, size)
                places[share.offset : share.offset + len(rows)] = rows
                rows = places
            return cls(Form.ROWS, rows)
        directions = _directions(size, rows)
        return cls(Form.SKETCH, _sketch(rows, with_ones, directions), directions)

    def decompose(self, total: float) -> KroneckerFactor:
        """
        Decompose rowsᵀ rows / total.

        :param total: the number that the sum over rows is divided by
        :return: the factor
        """
        if self.form is Form.MATRIX:
            values, basis = th.linalg.eigh(self.sums / total)
            return KroneckerFactor(values.clamp(min=0), basis)
        if self.form is Form.ROWS:
            # The matrix has no more directions than rows, which a singular value decomposition finds without squaring
            # their lengths.
            return KroneckerFactor(*_nonzero_eigenpairs(self.sums.t() / total**0.5))
        assert self.directions is not None
        return KroneckerFactor(*_leading_eigenpairs(self.sums / total, self.directions))


def _nonzero_eigenpairs(root: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Decompose root rootᵀ.

    :param root: a matrix of shape (n, k), k ≤ n
    :return: the eigenvalues that are not zero, and their eigenvectors, orthonormal to rounding
    """
    basis, singular, _ = th.linalg.svd(root, full_matrices=False)
    kept = singular > th.finfo(singular.dtype).eps * len(singular) * singular[0]
    return singular[kept].square(), basis[:, kept]


def _directions(size: int, like: th.Tensor) -> th.Tensor:
    """
    Make the random directions Q of Nyström's approximation, always the same for a size.

    :param size: n
    :param like: a tensor with their type and device
    :return: k = ``N_LEADING`` orthonormal directions, (n, k)
    """
    # A generator of its own, so that the random numbers that training sees do not depend on the preconditioner.
    generator = th.Generator().manual_seed(_SEED)
    directions: th.Tensor = th.linalg.qr(th.randn(size, N_LEADING, generator=generator).to(like)).Q
    return directions


def _sketch(rows: th.Tensor, with_ones: bool, directions: th.Tensor) -> th.Tensor:
    """
    Compute rowsᵀ rows Q, in one pass over the rows in k directions, where rowsᵀ rows takes n.

    :param rows: the rows, (R, n)
    :param with_ones: whether a 1 is added at the end of each row
    :param directions: Q, (n, k)
    :return: the products, (n, k)
    """
    projections = rows @ directions[: rows.shape[1]]
    if with_ones:
        projections += directions[-1]
    sketch = rows.t() @ projections
    return th.cat([sketch, projections.sum(dim=0, keepdim=True)]) if with_ones else sketch


def _leading_eigenpairs(sketch: th.Tensor, directions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Approximate S by Nyström's S Q (Qᵀ S Q)⁻¹ Qᵀ S with random directions Q.

    The source is Tropp et al. 2017, https://arxiv.org/abs/1706.05736, algorithm 3.

    :param sketch: S Q, (n, k)
    :param directions: Q, (n, k)
    :return: up to k = ``N_LEADING`` eigenvalues and their eigenvectors
    """
    # Rounding could make Qᵀ S Q indefinite where S has but few directions; the shift is taken off again.
    shift = (th.finfo(sketch.dtype).eps * N_LEADING * sketch.norm()).clamp(min=_TINY)
    sketch = sketch + shift * directions
    root = th.linalg.cholesky(directions.t() @ sketch)
    values, basis = _nonzero_eigenpairs(th.linalg.solve_triangular(root.t(), sketch, upper=True, left=False))
    kept = values > 2 * shift
    return values[kept] - shift, basis[:, kept]


def _gram_matrix(rows: th.Tensor, with_ones: bool) -> th.Tensor:
    """
    Compute rowsᵀ rows, without a copy of the rows for the ones.

    :param rows: the rows, (R, n)
    :param with_ones: whether a 1 is added at the end of each row
    :return: rowsᵀ rows
    """
    products = rows.t() @ rows
    if not with_ones:
        return products
    sums = rows.sum(dim=0)
    border = th.cat([sums, sums.new_tensor([len(rows)])])
    return th.cat([th.cat([products, sums.unsqueeze(0)]), border.unsqueeze(1)], dim=1)
