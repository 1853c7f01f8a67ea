"""
Adam on all parameters of a network at once.
"""

import functools
from collections.abc import Iterable

import torch as th
from torch import nn

from sb3_trpo.networks.mlp import PlainMlp, to_matrices, write_matrices_
from sb3_trpo.trust_region.flat import flatten


def is_flat_adam(optimizer: th.optim.Optimizer, network: PlainMlp, free: Iterable[nn.Parameter]) -> bool:
    """
    Tell whether ``FlatAdam`` does what the optimizer would do with a network's parameters.

    :param optimizer: the policy's optimizer
    :param network: the network to train
    :param free: the parameters that may be moved
    :return: whether it does
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    # The last two keep their count of steps on the parameters' device.
    options = ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay", "capturable", "fused")
    unusual = any(group.get(option) for option in options)
    own, movable = {id(p) for p in network.parameters}, {id(p) for p in free}
    known = {id(p) for p in group["params"]}
    with_state = {id(p) for p in optimizer.state if id(p) in own}
    steps = {float(optimizer.state[p]["step"]) for p in optimizer.state if id(p) in own}
    # All of the network or nothing: one count of steps for all its parameters.
    same_age = with_state in (set(), own) and len(steps) <= 1
    return not unusual and own <= movable & known and same_age


class FlatAdam:
    """
    ``torch.optim.Adam`` on a network's parameters as one vector: the same arithmetic in one kernel a step.

    The network's own parameters, and the optimizer's state, stay as they were until ``commit``.

    :param network: the network to train
    :param optimizer: the optimizer with the settings and the state to use
    """

    def __init__(self, network: PlainMlp, optimizer: th.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = network.parameters
        matrices = to_matrices(self._parameters)
        self._shapes = [matrix.shape for matrix in matrices]
        self._sizes = [matrix.numel() for matrix in matrices]
        group = optimizer.param_groups[0]
        self._fused_adam = functools.partial(
            th._fused_adam_,
            lr=float(group["lr"]),
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            amsgrad=False,
            maximize=False,
        )
        state = optimizer.state
        self._vector = flatten(matrices)
        if self._parameters[0] in state:
            moments = ([state[p][name] for p in self._parameters] for name in ("exp_avg", "exp_avg_sq"))
            self._moments = [flatten(to_matrices(moment)) for moment in moments]
            self._step = state[self._parameters[0]]["step"].detach().clone().to(self._vector.device)
        else:
            self._moments = [th.zeros_like(self._vector), th.zeros_like(self._vector)]
            self._step = th.zeros((), dtype=th.float32, device=self._vector.device)
        self._one = th.ones_like(self._step)
        # The gradient for the next step, and its views.
        self.gradient = th.zeros_like(self._vector)
        self.matrices = self._views(self._vector)
        self.gradients = self._views(self.gradient)

    def step(self, max_grad_norm: float | None) -> None:
        """
        Take one step along ``gradient``.

        :param max_grad_norm: the Euclidean norm that the gradient is scaled down to; None leaves it as it is
        """
        if max_grad_norm is not None:
            # As in torch's clip_grad_norm_, so that both ways give the same numbers.
            self.gradient.mul_((max_grad_norm / (self.gradient.norm() + 1e-6)).clamp(max=1.0))
        self._step.add_(self._one)
        exp_avg, exp_avg_sq = self._moments
        self._fused_adam([self._vector], [self.gradient], [exp_avg], [exp_avg_sq], [], [self._step])

    @th.no_grad()
    def commit(self) -> None:
        """Write parameters and state back, the parameters in place."""
        write_matrices_(self._parameters, self.matrices)
        moments = []
        for moment in self._moments:
            moments.append([th.empty_like(parameter) for parameter in self._parameters])
            write_matrices_(moments[-1], self._views(moment))
        for parameter, exp_avg, exp_avg_sq in zip(self._parameters, *moments, strict=True):
            step = self._step.detach().clone().cpu()
            self._optimizer.state[parameter] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    def _views(self, vector: th.Tensor) -> list[th.Tensor]:
        return [
            piece.view(shape) for piece, shape in zip(vector.split_with_sizes(self._sizes), self._shapes, strict=True)
        ]
