"""
Closed-form KL divergence of action distributions, and the metric that it induces on their parameters.

Let z be the parameters of a distribution, a tuple of tensors of shape (N, ·) for N states. To second order,

    KL(z ‖ z + u) = ½ uᵀ M(z) u,

where M(z) is the Fisher information of z, known in closed form and cheap, for it acts on each state alone. Everything
is summed over action dimensions, for that is what the KL divergence of the joint distribution is.

The family is chosen by torch's distribution inside SB3's, so that squashed Gaussians and gSDE (a Gaussian, before the
bijection, which does not change KL) and masked categoricals need no entry of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn.functional import logsigmoid

Parameters = tuple[th.Tensor, ...]


class DistributionFamily(ABC):
    """A parametric family of action distributions."""

    @abstractmethod
    def parameters(self, distribution: Any) -> Parameters:
        """
        :param distribution: torch's distribution (for several sub-actions, a list of them), differentiable
        :return: z, tensors of shape (N, ·)
        """

    def kl_divergence(self, old: Parameters, new: Parameters) -> th.Tensor:
        """
        :param old: z_old
        :param new: z_new
        :return: KL(old ‖ new) in nats, summed over action dimensions, (N,)
        """
        # In single precision a KL of 1e-8 is lost in the differences that it is made of.
        return self._kl_divergence(_in_float64(old), _in_float64(new))

    @abstractmethod
    def _kl_divergence(self, old: Parameters, new: Parameters) -> th.Tensor:
        """As ``kl_divergence``."""

    @abstractmethod
    def metric(self, z: Parameters, u: Parameters) -> Parameters:
        """
        :param z: parameters
        :param u: tangents, shaped as z
        :return: M(z) u
        """

    @abstractmethod
    def metric_root(self, z: Parameters, u: Parameters) -> Parameters:
        """
        :param z: parameters
        :param u: as z
        :return: R u with R Rᵀ = M(z): with independent u of mean 0 and variance 1, a vector of covariance M(z)
        """


class GaussianFamily(DistributionFamily):
    """Independent Gaussians; z = (μ, σ), each (N, action dimensions)."""

    def parameters(self, distribution: Normal) -> Parameters:
        return distribution.loc, distribution.scale

    def _kl_divergence(self, old: Parameters, new: Parameters) -> th.Tensor:
        mean_old, std_old = old
        mean_new, std_new = new
        # Where the ratio underflows, KL is infinite: ∞ - ∞ would be NaN.
        log_ratio = th.log(std_new / std_old).clamp(min=-1e3)
        # ½ (σ_old²/σ_new² − 1) + ln(σ_new/σ_old), without the cancellation between terms of nearly the same size.
        spread = 0.5 * th.expm1(-2.0 * log_ratio) + log_ratio
        shift = 0.5 * ((mean_new - mean_old) / std_new).square()
        return (spread + shift).sum(dim=1).clamp(min=0.0)

    def metric(self, z: Parameters, u: Parameters) -> Parameters:
        # Dividing twice, for σ² underflows earlier than u/σ does.
        return u[0] / z[1] / z[1], 2.0 * u[1] / z[1] / z[1]

    def metric_root(self, z: Parameters, u: Parameters) -> Parameters:
        return u[0] / z[1], 2.0**0.5 * u[1] / z[1]


class CategoricalFamily(DistributionFamily):
    """
    One or several independent categoricals; z = (logits,), (N, sum of sizes), not necessarily normalised.

    :param sizes: the number of choices of each sub-action
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)

    def parameters(self, distribution: Categorical | list[Categorical]) -> Parameters:
        if isinstance(distribution, Categorical):
            return (distribution.logits,)
        return (th.cat([sub_action.logits for sub_action in distribution], dim=1),)

    def _kl_divergence(self, old: Parameters, new: Parameters) -> th.Tensor:
        total = th.zeros((), dtype=old[0].dtype, device=old[0].device)
        for logits_old, logits_new in zip(self._split(old[0]), self._split(new[0]), strict=True):
            log_p = logits_old.log_softmax(dim=1)
            log_q = logits_new.log_softmax(dim=1)
            p = log_p.exp()
            # 0 · (log 0 − log q) is 0: an action that was impossible adds nothing.
            total = total + th.where(p > 0, p * (log_p - log_q), th.zeros_like(p)).sum(dim=1)
        return total.clamp(min=0.0)

    def metric(self, z: Parameters, u: Parameters) -> Parameters:
        return (self._map(z[0], u[0], lambda p, v: p * (v - (p * v).sum(dim=1, keepdim=True))),)

    def metric_root(self, z: Parameters, u: Parameters) -> Parameters:
        # R = diag(√p) − p√pᵀ.
        return (self._map(z[0], u[0], lambda p, v: p.sqrt() * v - p * (p.sqrt() * v).sum(dim=1, keepdim=True)),)

    def _split(self, tensor: th.Tensor) -> Sequence[th.Tensor]:
        return tensor.split(self.sizes, dim=1)

    def _map(self, logits: th.Tensor, u: th.Tensor, function: Any) -> th.Tensor:
        pairs = zip(self._split(logits), self._split(u), strict=True)
        return th.cat([function(sub_logits.softmax(dim=1), sub_u) for sub_logits, sub_u in pairs], dim=1)


class BernoulliFamily(DistributionFamily):
    """Independent bits; z = (logits,), (N, bits)."""

    def parameters(self, distribution: Bernoulli) -> Parameters:
        return (distribution.logits,)

    def _kl_divergence(self, old: Parameters, new: Parameters) -> th.Tensor:
        (old_logits,), (new_logits,) = old, new
        p = old_logits.sigmoid()
        if_one = p * (logsigmoid(old_logits) - logsigmoid(new_logits))
        if_zero = (-old_logits).sigmoid() * (logsigmoid(-old_logits) - logsigmoid(-new_logits))
        return (if_one + if_zero).sum(dim=1).clamp(min=0.0)

    def metric(self, z: Parameters, u: Parameters) -> Parameters:
        return (self._variance(z[0]) * u[0],)

    def metric_root(self, z: Parameters, u: Parameters) -> Parameters:
        return (self._variance(z[0]).sqrt() * u[0],)

    @staticmethod
    def _variance(logits: th.Tensor) -> th.Tensor:
        return logits.sigmoid() * (-logits).sigmoid()


def _in_float64(z: Parameters) -> Parameters:
    # Apple's GPUs have no such numbers.
    return tuple(tensor if tensor.device.type == "mps" else tensor.double() for tensor in z)


def family_of(distribution: Distribution) -> DistributionFamily:
    """
    :param distribution: SB3's, with its parameters set
    :return: the family that it belongs to
    :raises ValueError: if KL of such a distribution is not known here
    """
    # sb3-contrib's masked sub-actions keep theirs under another name.
    inner = getattr(distribution, "distribution", None)
    if isinstance(inner, Normal):
        return GaussianFamily()
    if isinstance(inner, Categorical):
        return CategoricalFamily([inner.logits.shape[1]])
    if isinstance(inner, Bernoulli):
        return BernoulliFamily()
    if isinstance(inner, (list, tuple)):
        categoricals = [item for item in inner if isinstance(item, Categorical)]
        if categoricals and len(categoricals) == len(inner):
            return CategoricalFamily([item.logits.shape[1] for item in categoricals])
    raise ValueError(
        f"The policy's action distribution is {type(distribution).__name__} over {type(inner).__name__}; "
        "TRPO knows KL for Normal, Categorical (or a list of them) and Bernoulli."
    )
