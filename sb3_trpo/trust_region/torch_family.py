"""
Families that torch itself knows KL for (``torch.distributions.kl_divergence``).

``TorchFamily`` takes KL from there and its metric from autograd, for any distribution; those below have a metric in
closed form.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch as th
from torch.distributions import Beta, Laplace, constraints, kl_divergence
from torch.distributions import Distribution as TorchDistribution

from sb3_trpo.trust_region.kl import DistributionFamily, DistributionParameters, DistributionT, in_float64
from sb3_trpo.validation.values import UserError

# Of the arguments that say the same, the one that any change leaves valid stands first.
_ALTERNATIVES = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))
# How far from z KL is compared with its quadratic form, and how much they may differ: terms of third order are 1% then.
_CHECK_STEP = 1e-3
_CHECK_TOLERANCE = 0.1


class TorchFamily(DistributionFamily[DistributionT]):
    """
    The distributions of one of torch's classes; z = the arguments of its constructor, each of shape (batch shape, ...).

    The first axis of the batch shape is that of the states; further ones are sub-actions, over which KL is summed.

    :param distribution: a distribution of this class
    :raises UserError: if its constructor's arguments cannot be read from its attributes
    """

    def __init__(self, distribution: DistributionT) -> None:
        self._kind = type(distribution)
        self.batch_dims = len(distribution.batch_shape)
        self._constraints: dict[str, Any] = {}
        self._constants: dict[str, object] = {}
        for name, argument in inspect.signature(self._kind).parameters.items():
            constraint = distribution.arg_constraints.get(name)
            if name == "validate_args" or self._is_said_by_another(name):
                continue
            if not hasattr(distribution, name):
                if argument.default is inspect.Parameter.empty:
                    raise UserError(f"{self._kind.__name__} has no attribute {name!r}, which its constructor takes.")
                continue
            value = getattr(distribution, name)
            is_continuous = constraint is not None and not constraint.is_discrete
            if is_continuous and isinstance(value, th.Tensor) and value.is_floating_point():
                self._constraints[name] = constraint
            else:
                self._constants[name] = value
        nested = any(isinstance(value, TorchDistribution) for value in self._constants.values())
        if nested or not self._constraints:
            raise UserError(
                f"The parameters of {self._kind.__name__} cannot be told from its constructor: "
                "sb3_trpo.register_family tells TRPO what they are."
            )

    def _is_said_by_another(self, name: str) -> bool:
        arguments = inspect.signature(self._kind).parameters
        return any(
            name in names and any(other in arguments for other in names[: names.index(name)]) for names in _ALTERNATIVES
        )

    def z_of(self, distribution: DistributionT) -> DistributionParameters:
        """Read the arguments of the constructor, expanded to the batch shape."""
        batch_shape = distribution.batch_shape
        z = []
        for name, constraint in self._constraints.items():
            value = getattr(distribution, name)
            own_shape = value.shape[value.dim() - constraint.event_dim :]
            z.append(value.expand(*batch_shape, *own_shape))
        return tuple(z)

    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """Compute KL by torch's own rule."""
        try:
            kl = kl_divergence(self._distribution(old), self._distribution(new))
        except NotImplementedError as error:
            raise UserError(
                f"torch has no rule for the KL divergence between two {self._kind.__name__} distributions: "
                "sb3_trpo.register_family tells TRPO about one."
            ) from error
        return kl.reshape(len(kl), -1).sum(dim=1)

    def check(self, z: DistributionParameters) -> None:
        """
        Compare KL with what the metric makes of it, a small step away.

        :param z: the parameters of some distributions
        :raises UserError: if torch has no KL for them, or none with a second derivative
        """
        exact = in_float64(tuple(part.detach() for part in z))
        generator = th.Generator().manual_seed(0)
        for i, constraint in enumerate(self._constraints.values()):
            is_real = constraint in (constraints.real, constraints.real_vector)
            size = _CHECK_STEP * (exact[i].abs() + 1.0 if is_real else exact[i].abs())
            signs = 2.0 * th.randint(0, 2, size.shape, generator=generator).to(size) - 1.0
            u = tuple(signs * size if j == i else th.zeros_like(part) for j, part in enumerate(exact))
            kl = float(self.compute_kl(exact, tuple(a + b for a, b in zip(exact, u, strict=True))).sum())
            quadratic = 0.5 * sum(float((a * b).sum()) for a, b in zip(self.metric(exact, u), u, strict=True))
            # With logits, a shift of all of them is no change at all.
            if not math.isclose(kl, quadratic, rel_tol=_CHECK_TOLERANCE, abs_tol=1e-12):
                raise UserError(
                    f"torch's KL divergence between two {self._kind.__name__} distributions does not curve as their "
                    "Fisher information does: sb3_trpo.register_family tells TRPO what its metric is."
                )

    def _distribution(self, z: DistributionParameters) -> TorchDistribution:
        arguments: dict[str, Any] = dict(zip(self._constraints, z, strict=True))
        make: Callable[..., TorchDistribution] = self._kind
        return make(**arguments, **self._constants, validate_args=False)


class BetaFamily(TorchFamily[Beta]):
    """Independent Beta distributions; z = (α, β), each (N, action dimensions)."""

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by M(z) = [ψ₁(α) − s, −s; −s, ψ₁(β) − s] with s = ψ₁(α + β)."""
        of_alpha, of_beta, of_both = self._trigammas(z)
        shift = of_both * (u[0] + u[1])
        return (of_alpha * u[0] - shift).to(u[0]), (of_beta * u[1] - shift).to(u[1])

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by the Cholesky factor of M(z)."""
        of_alpha, of_beta, of_both = self._trigammas(z)
        first = (of_alpha - of_both).sqrt()
        below = -of_both / first
        last = (of_beta - of_both - below.square()).clamp(min=0.0).sqrt()
        return (first * u[0]).to(u[0]), (below * u[0] + last * u[1]).to(u[1])

    @staticmethod
    def _trigammas(z: DistributionParameters) -> DistributionParameters:
        # Where α and β are large, what is left of the differences needs double precision.
        alpha, beta = in_float64(z)
        return tuple(th.special.polygamma(1, x) for x in (alpha, beta, alpha + beta))


class LaplaceFamily(TorchFamily[Laplace]):
    """
    Independent Laplace distributions; z = (location, scale), each (N, action dimensions).

    KL has a second derivative, but autograd does not see it, for it takes that of ``|x|`` at 0 for 0.
    """

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by M(z) = 1/b², where b is the scale."""
        return u[0] / z[1] / z[1], u[1] / z[1] / z[1]

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by R = 1/b, where b is the scale."""
        return u[0] / z[1], u[1] / z[1]
