"""
The linearisation of a plain network with state-dependent noise, written out.
"""

from typing import ClassVar

import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import nn

from sb3_trpo.networks.mlp import PlainMlp
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.mlp_linearization import Cotangents, MlpLinearization


class GsdeLinearization(MlpLinearization):
    """
    The linearisation of a plain network with gSDE (Raffin et al. 2021, https://arxiv.org/abs/2005.05719).

    The network gives mean actions μ. The noise is linear in the latent h that enters the last layer, with weights of
    standard deviation S(log σ). So actions have the variance s² = h² S² + ε, and z = (μ, s), where squares are
    elementwise:

        ds = ((h ∘ dh) S² + h² (S ∘ dS)) / s.

    :param mlp: the network
    :param features: the network's inputs, (N, n_in)
    :param action_dist: the policy's action distribution
    :param parameters: θ: the network's parameters, then log σ
    :param log_std: log σ, (n, action dimensions) or (n, 1)
    """

    uses_latent: ClassVar[bool] = True

    def __init__(
        self,
        mlp: PlainMlp,
        features: th.Tensor,
        action_dist: StateDependentNoiseDistribution,
        parameters: FlatParameters,
        log_std: nn.Parameter,
    ) -> None:
        super().__init__(
            mlp,
            features,
            lambda outputs, latent: action_dist.proba_distribution(outputs, log_std, latent),
            parameters,
            log_std,
        )
        # S and dS/dlog σ, elementwise, both (n, action dimensions).
        self._std = action_dist.get_std(log_std.detach())
        elements = log_std.detach().expand_as(self._std).clone().requires_grad_()
        with th.enable_grad():
            (self._slope,) = th.autograd.grad(action_dist.get_std(elements).sum(), elements)
        self._variance = self._std.square()
        with th.no_grad():
            self._latent_squared = self._latent.square()

    def _tangents(
        self, on_outputs: th.Tensor, on_latent: th.Tensor | None, log_std: th.Tensor | None
    ) -> DistributionParameters:
        assert log_std is not None
        on_variance = self._latent_squared @ (self._std * self._slope * log_std)
        if on_latent is not None:
            on_variance.addmm_(self._latent * on_latent, self._variance)
        return on_outputs, on_variance.div_(self.z[1])

    def _cotangents(self, u: DistributionParameters) -> Cotangents:
        assert self._log_std is not None
        on_half_variance = u[1] / self.z[1]
        on_latent = (on_half_variance @ self._variance.t()).mul_(self._latent)
        on_std = (self._latent_squared.t() @ on_half_variance).mul_(self._std)
        return Cotangents(u[0], on_latent, on_std.mul_(self._slope).sum_to_size(self._log_std.shape))
