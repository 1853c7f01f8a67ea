"""
A factor of a layer's Kronecker-factored Fisher information, by its eigenvectors: all of them, or the leading ones.
"""

from dataclasses import dataclass

import torch as th

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
        size = rows.shape[1] + with_ones
        # 1. Small: all eigenvectors, from the matrix itself.
        if size <= MAX_EXACT_SIZE and size <= len(rows):
            values, basis = th.linalg.eigh(_gram_matrix(rows, with_ones) / total)
            return cls(values.clamp(min=0), basis)
        # 2. Few rows: the matrix has no more directions than these, which a singular value decomposition finds without
        #    squaring their lengths.
        if len(rows) <= MAX_EXACT_SIZE:
            if with_ones:
                rows = th.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            return cls(*_nonzero_eigenpairs(rows.t() / total**0.5))
        # 3. Large.
        return cls(*_leading_eigenpairs(rows, total, with_ones))


def _nonzero_eigenpairs(root: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Decompose root rootᵀ.

    :param root: a matrix of shape (n, k), k ≤ n
    :return: the eigenvalues that are not zero, and their eigenvectors, orthonormal to rounding
    """
    basis, singular, _ = th.linalg.svd(root, full_matrices=False)
    kept = singular > th.finfo(singular.dtype).eps * len(singular) * singular[0]
    return singular[kept].square(), basis[:, kept]


def _leading_eigenpairs(rows: th.Tensor, total: float, with_ones: bool) -> tuple[th.Tensor, th.Tensor]:
    """
    Approximate S = rowsᵀ rows / total by Nyström's S Q (Qᵀ S Q)⁻¹ Qᵀ S with random directions Q.

    This takes one pass over the rows in k directions, where S itself takes n (Tropp et al. 2017,
    https://arxiv.org/abs/1706.05736, algorithm 3).

    :param rows: the rows, (R, n)
    :param total: the number that the sum over rows is divided by
    :param with_ones: whether a 1 is added at the end of each row
    :return: up to k = ``N_LEADING`` eigenvalues and their eigenvectors
    """
    size = rows.shape[1] + with_ones
    # A generator of its own, so that the random numbers that training sees do not depend on the preconditioner.
    generator = th.Generator().manual_seed(_SEED)
    directions = th.linalg.qr(th.randn(size, N_LEADING, generator=generator).to(rows)).Q
    projections = rows @ directions[: rows.shape[1]]
    if with_ones:
        projections += directions[-1]
    sketch = rows.t() @ projections
    if with_ones:
        sketch = th.cat([sketch, projections.sum(dim=0, keepdim=True)])
    sketch /= total
    # Rounding could make Qᵀ S Q indefinite where S has but few directions; the shift is taken off again.
    shift = (th.finfo(rows.dtype).eps * N_LEADING * sketch.norm()).clamp(min=_TINY)
    sketch += shift * directions
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
