"""
The linearisation of a plain network, written out.
"""

from collections.abc import Callable, Iterator, Sequence

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

from sb3_trpo.networks.mlp import PlainMlp, to_columns
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.linearization import LayerPass, Linearization


class MlpLinearization(Linearization):
    """
    A plain network that gives mean actions or logits, with or without a log σ that no state changes.

    θ is the network's parameters, then log σ. Logits count as the network gives them, before torch normalises them: J v
    may differ by a shift of all logits of an action, to which the metric is blind (M 1 = 0, 1ᵀM = 0).

    :param mlp: the network
    :param features: its inputs, (N, n_in)
    :param distribution_of: maps the network's outputs to an action distribution, differentiably
    :param parameters: θ
    :param log_std: log σ, (action dimensions,), or None
    """

    def __init__(
        self,
        mlp: PlainMlp,
        features: th.Tensor,
        distribution_of: Callable[[th.Tensor], Distribution],
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
        super().__init__(distribution_of(self._outputs), parameters)

    def gradient(self, objective: th.Tensor) -> th.Tensor:
        leaves = [self._outputs] if self._log_std is None else [self._outputs, self._log_std]
        on_outputs, *on_log_std = th.autograd.grad(objective, leaves, retain_graph=True)
        return self._pull_back(on_outputs, on_log_std)

    @th.no_grad()
    def jvp(self, v: th.Tensor) -> DistributionParameters:
        tangents = self.parameters.split(v)
        on_outputs = self._mlp.jvp(self._inputs, tangents[: len(self._layers)]).t()
        return (on_outputs,) if self._log_std is None else (on_outputs, self.z[1] * tangents[-1])

    @th.no_grad()
    def vjp(self, u: DistributionParameters) -> th.Tensor:
        return self._pull_back(u[0], [] if self._log_std is None else [self._on_log_std(u)])

    @th.no_grad()
    def vjp_pieces(self, u: DistributionParameters, positions: Sequence[int]) -> list[th.Tensor]:
        if list(positions) == [len(self._layers)]:
            # log σ alone, which needs no pass through the network.
            return [self._on_log_std(u)]
        pieces = self.parameters.split(self.vjp(u))
        return [pieces[i] for i in positions]

    def _on_log_std(self, u: DistributionParameters) -> th.Tensor:
        return (u[1] * self.z[1]).sum(dim=0)

    @th.no_grad()
    def layer_passes(self, u: DistributionParameters, every: int = 1) -> Iterator[LayerPass]:
        inputs = self._inputs.every(every)
        for i, cotangents in enumerate(self._mlp.backward(inputs, u[0][::every].t())):
            weight, bias = self._layers[2 * i : 2 * i + 2]
            rows = inputs.transposed[i][:, :-1]
            yield LayerPass(weight, bias, None, rows, cotangents.t(), len(rows))

    @th.no_grad()
    def _pull_back(self, on_outputs: th.Tensor, on_log_std: Sequence[th.Tensor]) -> th.Tensor:
        gradient = th.empty(len(self.parameters), dtype=on_outputs.dtype, device=on_outputs.device)
        pieces = self.parameters.split(gradient)
        self._mlp.vjp_in_pieces(self._inputs, on_outputs.t(), out=pieces)
        for piece, value in zip(pieces[len(self._layers) :], on_log_std, strict=True):
            piece.copy_(value)
        return gradient
