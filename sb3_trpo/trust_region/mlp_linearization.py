"""
The linearisation of a plain network, written out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

from sb3_trpo.networks.mlp import PlainMlp, to_columns
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.linearization import LayerPass, Linearization


class Cotangents(NamedTuple):
    """
    A gradient with respect to what z is computed from.

    :param outputs: the gradient in the network's outputs, (N, n_out)
    :param latent: the gradient in what enters the network's last layer, (N, n), where z depends on that in another way
        as well
    :param log_std: the gradient in log σ, shaped as log σ
    """

    outputs: th.Tensor
    latent: th.Tensor | None = None
    log_std: th.Tensor | None = None


class MlpLinearization(Linearization):
    """
    The linearisation of a plain network that gives mean actions or logits.

    θ is the network's parameters, then log σ, if the policy has one for all states. Logits count as the network gives
    them, before torch normalises or masks them. So J v may differ by a shift of all logits of an action, and in those
    that are masked; to both the metric is blind (M 1 = 0, 1ᵀM = 0, and M is 0 where the probability is).

    :param mlp: the network
    :param features: the network's inputs, (N, n_in)
    :param distribution_of: a differentiable function that makes the action distribution from the network's outputs and
        from what entered its last layer
    :param parameters: θ
    :param log_std: log σ, (action dimensions,), or None
    """

    # Whether z depends on the inputs of the last layer in another way than through that layer.
    uses_latent: ClassVar[bool] = False

    def __init__(
        self,
        mlp: PlainMlp,
        features: th.Tensor,
        distribution_of: Callable[[th.Tensor, th.Tensor], Distribution],
        parameters: FlatParameters,
        log_std: nn.Parameter | None,
    ) -> None:
        self._layers = mlp.parameters
        self._mlp = mlp.on_columns()
        self._log_std = log_std
        with th.no_grad():
            self._inputs = self._mlp.layer_inputs(to_columns(features), with_tangents=True)
            self._outputs = self._mlp.outputs(self._inputs).t()
        self._outputs.requires_grad_()
        self._latent = self._inputs.hidden[-1].t()
        self._latent.requires_grad_(self.uses_latent)
        super().__init__(distribution_of(self._outputs, self._latent), parameters)

    def gradient(self, objective: th.Tensor) -> th.Tensor:
        """Differentiate to the network's outputs by autograd, and from there to θ by the written-out pass."""
        leaves = {"outputs": self._outputs}
        if self.uses_latent:
            leaves["latent"] = self._latent
        if self._log_std is not None:
            leaves["log_std"] = self._log_std
        # gSDE may detach the latent.
        gradients = th.autograd.grad(objective, list(leaves.values()), retain_graph=True, allow_unused=self.uses_latent)
        return self._pull_back(Cotangents(**dict(zip(leaves, gradients, strict=True))))

    @th.no_grad()
    def jvp(self, v: th.Tensor) -> DistributionParameters:
        """Multiply by J, by one forward pass of tangents."""
        tangents = self.parameters.split(v)
        on_outputs = self._mlp.jvp(self._inputs, tangents[: len(self._layers)]).t()
        on_latent = self._inputs.tangents[-1].t() if self._inputs.tangents else None
        return self._tangents(on_outputs, on_latent, None if self._log_std is None else tangents[-1])

    @th.no_grad()
    def vjp(self, u: DistributionParameters) -> th.Tensor:
        """Multiply by Jᵀ, by one backward pass."""
        return self._pull_back(self._cotangents(u))

    @th.no_grad()
    def vjp_pieces(self, u: DistributionParameters, positions: Sequence[int]) -> list[th.Tensor]:
        """Take the pieces from Jᵀ u; log σ alone takes no pass through the network."""
        if list(positions) == [len(self._layers)]:
            on_log_std = self._cotangents(u).log_std
            assert on_log_std is not None
            return [on_log_std]
        pieces = self.parameters.split(self.vjp(u))
        return [pieces[i] for i in positions]

    @th.no_grad()
    def layer_passes(self, u: DistributionParameters, every: int = 1, first: int = 0) -> Iterator[LayerPass]:
        """Go through the network's layers, on every k-th state."""
        inputs, (on_outputs, on_latent, _) = self._inputs.every(every, first), self._cotangents(u)
        latent_columns = None if on_latent is None else on_latent[first::every].t()
        for i, cotangents in enumerate(self._mlp.backward(inputs, on_outputs[first::every].t(), latent_columns)):
            weight, bias = self._layers[2 * i : 2 * i + 2]
            rows = inputs.transposed[i][:, :-1]
            yield LayerPass(weight, bias, None, rows, cotangents.t(), len(rows))

    def _tangents(
        self, on_outputs: th.Tensor, on_latent: th.Tensor | None, log_std: th.Tensor | None
    ) -> DistributionParameters:
        """
        Compute how z changes from how the things change that it is computed from.

        :param on_outputs: the change of the network's outputs, (N, n_out)
        :param on_latent: the change of what enters the last layer, (N, n); None if that does not depend on θ
        :param log_std: the change of log σ, if there is one
        :return: the change of z
        """
        return (on_outputs,) if log_std is None else (on_outputs, self.z[1] * log_std)

    def _cotangents(self, u: DistributionParameters) -> Cotangents:
        """
        Propagate u back to what z is computed from.

        :param u: a vector shaped as z
        :return: the gradient of u · z in the network's outputs and in log σ
        """
        return Cotangents(u[0]) if self._log_std is None else Cotangents(u[0], None, (u[1] * self.z[1]).sum(dim=0))

    @th.no_grad()
    def _pull_back(self, on: Cotangents) -> th.Tensor:
        gradient = th.empty(len(self.parameters), dtype=on.outputs.dtype, device=on.outputs.device)
        pieces = self.parameters.split(gradient)
        on_latent = None if on.latent is None else on.latent.t()
        self._mlp.vjp_in_pieces(self._inputs, on.outputs.t(), out=pieces, on_latent=on_latent)
        if on.log_std is not None:
            pieces[-1].copy_(on.log_std)
        return gradient
