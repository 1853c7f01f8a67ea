"""
KL divergence of action distributions, and the metric that it induces on their parameters.

Let z be the parameters of a distribution, a tuple of tensors of shape (N, ...) for N states. To second order,

    KL(z ‖ z + u) = ½ uᵀ M(z) u,

where M(z) is the Fisher information of z. It is cheap, for it acts on each state alone. Everything is summed over
action dimensions, for that is what the KL divergence of the joint distribution is.

Here are the families that have closed forms for both; ``families`` says which family a distribution belongs to.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch as th
from torch.distributions import Bernoulli, Categorical, Normal, OneHotCategorical
from torch.distributions import Distribution as TorchDistribution
from torch.nn.functional import logsigmoid

# z, and whatever is shaped as it.
DistributionParameters = tuple[th.Tensor, ...]
DistributionT = TypeVar("DistributionT", bound=TorchDistribution)


class DistributionFamily(ABC, Generic[DistributionT]):
    """
    A parametric family of action distributions.

    A family of one's own has to say what z is and what KL is; the metric then comes from KL by autograd. Closed forms
    for the metric are faster.
    """

    # The leading axes of z along which distributions are independent of each other: at least that of the states.
    batch_dims = 1

    @abstractmethod
    def z_of(self, distribution: DistributionT) -> DistributionParameters:
        """
        Read the parameters of a distribution.

        Any z near these has to be a distribution of the family: no tensor may be tied to another, as probabilities are
        that sum to 1.

        :param distribution: torch's distribution of N states, differentiable
        :return: z, tensors of shape (N, ...)
        """

    @abstractmethod
    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """
        Compute KL(old ‖ new), by operations that autograd can differentiate twice in ``new``.

        :param old: z_old, in double precision where the device has it
        :param new: z_new, likewise
        :return: KL in nats, summed over action dimensions, (N,)
        """

    def kl_divergence(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """
        Measure KL(old ‖ new) to as many digits as there are.

        :param old: z_old
        :param new: z_new
        :return: KL in nats, summed over action dimensions, never negative, (N,)
        """
        # In single precision a KL of 1e-8 is lost in the differences that it is made of.
        return self.compute_kl(in_float64(old), in_float64(new)).clamp(min=0.0)

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """
        Multiply by M(z), here by differentiating KL(z ‖ ·) twice at z.

        :param z: the distribution parameters
        :param u: a change of them, shaped as z
        :return: M(z) u
        """
        with th.enable_grad():
            old = in_float64(tuple(part.detach() for part in z))
            new = tuple(part.clone().requires_grad_() for part in old)
            # Each state's KL depends on its own z alone, so that the sum has all of their derivatives.
            gradient = th.autograd.grad(self.compute_kl(old, new).sum(), new, create_graph=True, materialize_grads=True)
            curved = [(g, u_g) for g, u_g in zip(gradient, in_float64(u), strict=True) if g.requires_grad]
            if not curved:
                return tuple(th.zeros_like(part) for part in u)
            slopes, tangents = zip(*curved, strict=True)
            product = th.autograd.grad(slopes, new, tangents, materialize_grads=True)
        return tuple(part.to(u_part) for part, u_part in zip(product, u, strict=True))

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """
        Multiply by a square root of M(z), here from its eigenvalues.

        :param z: the distribution parameters
        :param u: a vector shaped as z
        :return: R u with R Rᵀ = M(z): with independent u of mean 0 and variance 1, a vector of covariance M(z)
        """
        batch = z[0].shape[: self.batch_dims]
        sizes = [math.prod(part.shape[self.batch_dims :]) for part in z]

        def flat(parts: DistributionParameters) -> th.Tensor:
            return th.cat([part.reshape(-1, size) for part, size in zip(parts, sizes, strict=True)], dim=1)

        def shaped(rows: th.Tensor) -> DistributionParameters:
            return tuple(
                rows_i.reshape(part.shape) for rows_i, part in zip(rows.split_with_sizes(sizes, dim=1), z, strict=True)
            )

        exact = in_float64(z)
        units = th.eye(sum(sizes), dtype=exact[0].dtype, device=exact[0].device)
        columns = [flat(self.metric(exact, shaped(unit.expand(math.prod(batch), -1)))) for unit in units]
        values, vectors = th.linalg.eigh(th.stack(columns, dim=2))
        # Rounding may leave a direction of no curvature with a little less than none.
        root = vectors * values.clamp(min=0.0).sqrt().unsqueeze(1)
        product = shaped((root @ flat(in_float64(u)).unsqueeze(2)).squeeze(2))
        return tuple(part.to(u_part) for part, u_part in zip(product, u, strict=True))


def in_float64(z: DistributionParameters) -> DistributionParameters:
    """
    Convert distribution parameters to double precision, where the device has it.

    :param z: the parameters
    :return: the same numbers
    """
    # Apple's GPUs have no such numbers.
    return tuple(tensor if tensor.device.type == "mps" else tensor.double() for tensor in z)


def _in_rows(tensor: th.Tensor) -> th.Tensor:
    """
    Join all axes but the first.

    :param tensor: a tensor of shape (N, ...)
    :return: the same elements, (N, K)
    """
    return tensor if tensor.dim() == 2 else tensor.reshape(len(tensor), -1)


class GaussianFamily(DistributionFamily[Normal]):
    """Independent Gaussians; z = (μ, σ), each (N, action dimensions)."""

    def z_of(self, distribution: Normal) -> DistributionParameters:
        """Read the means and standard deviations."""
        return _in_rows(distribution.loc), _in_rows(distribution.scale)

    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """Compute Σ ½ (σ_old²/σ_new² − 1) + ln(σ_new/σ_old) + ½ ((μ_old − μ_new)/σ_new)²."""
        mean_old, std_old = old
        mean_new, std_new = new
        # Where the ratio underflows, KL is infinite: ∞ - ∞ would be NaN.
        log_ratio = th.log(std_new / std_old).clamp(min=-1e3)
        # The terms in σ, without cancellation where they are of nearly the same size.
        spread = 0.5 * th.expm1(-2.0 * log_ratio) + log_ratio
        shift = 0.5 * ((mean_new - mean_old) / std_new).square()
        return (spread + shift).sum(dim=1)

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by M(z) = diag(1/σ², 2/σ²)."""
        # Dividing twice, for σ² underflows earlier than u/σ does.
        return u[0] / z[1] / z[1], 2.0 * u[1] / z[1] / z[1]

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by R = diag(1/σ, √2/σ)."""
        return u[0] / z[1], 2.0**0.5 * u[1] / z[1]


class CategoricalFamily(DistributionFamily[Categorical | OneHotCategorical]):
    """
    One or several independent categoricals; z = (logits,), (N, sum of sizes), not necessarily normalised.

    :param sizes: the number of choices of each sub-action
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)

    def z_of(self, distribution: Categorical | OneHotCategorical) -> DistributionParameters:
        """Read the logits, which for several sub-actions stand side by side."""
        return (_in_rows(distribution.logits),)

    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """Compute Σ p_old (ln p_old − ln p_new), over choices and sub-actions."""
        total = th.zeros((), dtype=old[0].dtype, device=old[0].device)
        for logits_old, logits_new in zip(self._split(old[0]), self._split(new[0]), strict=True):
            log_p = logits_old.log_softmax(dim=1)
            log_q = logits_new.log_softmax(dim=1)
            p = log_p.exp()
            # 0 · (log 0 − log q) is 0: an action that was impossible adds nothing.
            total = total + th.where(p > 0, p * (log_p - log_q), th.zeros_like(p)).sum(dim=1)
        return total

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by M(z) = diag(p) − p pᵀ, for each sub-action."""
        return (self._map(z[0], u[0], lambda p, v: p * (v - (p * v).sum(dim=1, keepdim=True))),)

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by R = diag(√p) − p √pᵀ, for each sub-action."""
        return (self._map(z[0], u[0], lambda p, v: p.sqrt() * v - p * (p.sqrt() * v).sum(dim=1, keepdim=True)),)

    def _split(self, tensor: th.Tensor) -> Sequence[th.Tensor]:
        return tensor.split_with_sizes(self.sizes, dim=1)

    def _map(self, logits: th.Tensor, u: th.Tensor, function: Callable[[th.Tensor, th.Tensor], th.Tensor]) -> th.Tensor:
        pairs = zip(self._split(logits), self._split(u), strict=True)
        return th.cat([function(sub_logits.softmax(dim=1), sub_u) for sub_logits, sub_u in pairs], dim=1)


class BernoulliFamily(DistributionFamily[Bernoulli]):
    """Independent bits; z = (logits,), (N, bits)."""

    def z_of(self, distribution: Bernoulli) -> DistributionParameters:
        """Read the logits."""
        return (_in_rows(distribution.logits),)

    def compute_kl(self, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
        """Add up KL over both outcomes of each bit."""
        (old_logits,), (new_logits,) = old, new
        return (self._share(old_logits, new_logits) + self._share(-old_logits, -new_logits)).sum(dim=1)

    def metric(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by M(z) = diag(p (1 − p))."""
        return (self._variance(z[0]) * u[0],)

    def metric_root(self, z: DistributionParameters, u: DistributionParameters) -> DistributionParameters:
        """Multiply by R = diag(√(p (1 − p)))."""
        return (self._variance(z[0]).sqrt() * u[0],)

    @staticmethod
    def _share(old_logits: th.Tensor, new_logits: th.Tensor) -> th.Tensor:
        """
        Compute what one outcome of each bit adds to KL.

        :param old_logits: the logits of the outcome under the old distribution, (N, bits)
        :param new_logits: the same under the new one, (N, bits)
        :return: p (ln p − ln q), and 0 where p is 0, (N, bits)
        """
        p = old_logits.sigmoid()
        share = p * (logsigmoid(old_logits) - logsigmoid(new_logits))
        return th.where(p > 0, share, th.zeros_like(p))

    @staticmethod
    def _variance(logits: th.Tensor) -> th.Tensor:
        return logits.sigmoid() * (-logits).sigmoid()
