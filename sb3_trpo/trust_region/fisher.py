"""
The Fisher information of a policy, as a product with vectors.
"""

from typing import Any

import torch as th

from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.trust_region.linearization import Linearizations

# The share of xᵀ (F + λ I) x below which xᵀ F x, as a difference, has lost too many digits.
CANCELLATION = 1e-2


class Fisher:
    """
    The Fisher information F = E_s[Jᵀ M(z) J], as an operator with ``@``.

    It is the Hessian of E_s[KL(π_old ‖ π_θ)] at θ_old (TRPO paper, appendix C.1). This Gauss-Newton form of the Hessian
    is exact, for KL's gradient in z vanishes at z_old: the term with the second derivative of z drops out. It is
    positive semi-definite whatever rounding does.

    :param linearizations: z(θ) on the states that the expectation is over, or on this rank's part of them
    :param ranks: the ranks that have the states
    """

    def __init__(self, linearizations: Linearizations[Any], ranks: Ranks = ALONE) -> None:
        self.linearizations = linearizations
        self._ranks = ranks
        self.parameters = linearizations.first().parameters

    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        """
        Multiply by F.

        :param v: the vector, (P,)
        :return: F v, (P,)
        """
        total: th.Tensor | None = None
        n_samples = 0
        for linearization in self.linearizations:
            product = linearization.vjp(linearization.family.metric(linearization.z, linearization.jvp(v)))
            n_samples += len(linearization)
            total = product if total is None else total.add_(product)
        assert total is not None
        return self._ranks.mean(total.div_(n_samples), n_samples)

    def quadratic_form(self, x: th.Tensor, damped_product: th.Tensor, damping: float) -> float:
        """
        Compute xᵀ F x from a product with F + λ I that is at hand, as it is after solving for x.

        :param x: the vector, (P,)
        :param damped_product: (F + λ I) x, (P,)
        :param damping: λ
        :return: xᵀ F x
        """
        damped = float(x.dot(damped_product))
        undamped = damped - damping * float(x.dot(x))
        # Where damping is nearly all of it, the difference has too few digits left: there one more product is worth it.
        return undamped if undamped > CANCELLATION * damped else float(x.dot(self @ x))
