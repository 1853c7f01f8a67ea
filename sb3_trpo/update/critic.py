"""
Regression of the critic on the returns.

Only parameters that the action distribution does not depend on are moved: the trust region bounds the policy's change,
and a critic step on shared parameters would change it again behind its back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.functional import mse_loss

from sb3_trpo.networks.mlp import ColumnMlp, LayerInputs, PlainMlp
from sb3_trpo.networks.plain_policy import extract_features, plain_critic, why_features_change
from sb3_trpo.update.flat_adam import FlatAdam, is_flat_adam
from sb3_trpo.update.samples import chunks, select

# Up to this size, features are put into an epoch's order all at once; beyond, that copy would take too much memory.
MAX_SHUFFLED_ELEMENTS = 2**22


@dataclass(frozen=True)
class CriticFit:
    """
    :param losses: mean squared error of each minibatch, before the step that it led to, (number of steps,)
    """

    losses: th.Tensor

    @property
    def mean_loss(self) -> float:
        return float(self.losses.mean()) if len(self.losses) else 0.0


@dataclass(frozen=True)
class CriticSettings:
    """
    :param n_epochs: passes over the data
    :param batch_size: samples of a minibatch
    :param max_grad_norm: the gradient is scaled down to this Euclidean norm; None leaves it as it is
    """

    n_epochs: int
    batch_size: int
    max_grad_norm: float | None


def fit_critic(
    policy: ActorCriticPolicy,
    predict_values: Callable[[Any], th.Tensor],
    samples: Any,
    actor_parameters: Iterable[nn.Parameter],
    settings: CriticSettings,
    is_builtin: bool,
) -> CriticFit:
    """
    Minimise E[(V(s) − R)²] over the critic's own parameters by minibatches, with the policy's optimizer.

    :param policy: whose critic it is
    :param predict_values: values of samples, (N, 1)
    :param samples: the rollout: N states, as ``predict_values`` takes them, and their returns R, (N,)
    :param actor_parameters: not to be moved
    :param settings: see there
    :param is_builtin: whether ``predict_values`` is nothing but the policy's
    :return: the losses
    """
    returns = samples.returns
    fixed = {id(parameter) for parameter in actor_parameters}
    free = [p for p in policy.parameters() if p.requires_grad and id(p) not in fixed]
    network = plain_critic(policy) if is_builtin else None
    if network is not None and _features_stay(policy, free) and is_flat_adam(policy.optimizer, network, free):
        parts = chunks(samples, None)
        columns = _feature_columns(policy, parts)
        returns = th.cat([part.returns for part in parts])
        return _fit_plain(network, policy.optimizer, columns, returns, settings)
    with _TrainingMode(policy, free):
        return _fit_any(predict_values, free, policy.optimizer, samples, returns, settings)


def _epochs(returns: th.Tensor, settings: CriticSettings) -> Iterator[th.Tensor]:
    """
    :return: for each epoch, the order of the samples
    """
    for _ in range(settings.n_epochs):
        yield th.randperm(len(returns), device=returns.device)


def _fit_any(
    predict_values: Callable[[Any], th.Tensor],
    parameters: Sequence[nn.Parameter],
    optimizer: th.optim.Optimizer,
    samples: Any,
    returns: th.Tensor,
    settings: CriticSettings,
) -> CriticFit:
    losses: list[th.Tensor] = []
    for order in _epochs(returns, settings):
        for index in order.split(settings.batch_size):
            loss = mse_loss(predict_values(select(samples, index)).flatten(), returns[index])
            losses.append(loss.detach())
            optimizer.zero_grad()
            if loss.requires_grad:
                for parameter, grad in zip(
                    parameters, th.autograd.grad(loss, parameters, allow_unused=True), strict=True
                ):
                    parameter.grad = grad
            if settings.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
    optimizer.zero_grad()
    return CriticFit(th.stack(losses) if losses else th.zeros(0))


def _features_stay(policy: ActorCriticPolicy, free: Iterable[nn.Parameter]) -> bool:
    extractor = policy.vf_features_extractor
    return not why_features_change(extractor, free, is_counted_on=extractor is policy.pi_features_extractor)


@th.no_grad()
def _feature_columns(policy: ActorCriticPolicy, parts: Sequence[Any]) -> th.Tensor:
    """
    :param policy: whose critic's features do not change
    :param parts: chunks of rollout samples
    :return: their features with a last row of ones, (n_features + 1, N), with no other copy of them all on the way
    """
    sizes = [len(part.returns) for part in parts]
    n_features = policy.vf_features_extractor.features_dim
    columns = th.ones(n_features + 1, sum(sizes), dtype=parts[0].returns.dtype, device=parts[0].returns.device)
    for part, place in zip(parts, columns[:-1].split(sizes, dim=1), strict=True):
        place.copy_(extract_features(policy, part.observations, policy.vf_features_extractor).t())
    return columns


class _TrainingMode:
    """
    Puts the critic's modules into training mode while it is open, for dropout and batch-norm. A module in which there
    are other parameters than those that the critic may move, or none at all, stays as it is: it may be shared with the
    actor, whose batch statistics must not move.

    :param policy: in evaluation mode
    :param free: the parameters that the critic may move
    """

    def __init__(self, policy: nn.Module, free: Iterable[nn.Parameter]) -> None:
        self._policy = policy
        self._free = set(map(id, free))

    def __enter__(self) -> None:
        self._train(self._policy)

    def __exit__(self, *_: object) -> None:
        self._policy.train(False)

    def _train(self, module: nn.Module) -> None:
        parameters = {id(parameter) for parameter in module.parameters()}
        if parameters and parameters <= self._free:
            module.train(True)
        else:
            for child in module.children():
                self._train(child)


def _shuffled(columns: th.Tensor, order: th.Tensor, batch_size: int) -> Iterator[th.Tensor]:
    """
    :param columns: one for each sample, (n, N)
    :param order: of the samples
    :param batch_size: samples of a minibatch
    :return: the minibatches
    """
    if columns.numel() <= MAX_SHUFFLED_ELEMENTS:
        yield from columns.index_select(1, order).split(batch_size, dim=1)
    else:
        yield from (columns.index_select(1, index) for index in order.split(batch_size))


@th.no_grad()
def _fit_plain(
    network: PlainMlp, optimizer: th.optim.Optimizer, columns: th.Tensor, returns: th.Tensor, settings: CriticSettings
) -> CriticFit:
    """
    As ``_fit_any``, with the backward pass written out, on features that do not change.

    :param columns: features with a last row of ones, (n_features + 1, N)
    """
    adam = FlatAdam(network, optimizer)
    working_copy = ColumnMlp(adam.matrices, network.activations)
    targets = returns.unsqueeze(0)
    # By the number of samples, for a last minibatch may be smaller.
    inputs: dict[int, LayerInputs] = {}
    squares, factors = [], []
    for order in _epochs(returns, settings):
        batches = zip(
            _shuffled(columns, order, settings.batch_size), _shuffled(targets, order, settings.batch_size), strict=True
        )
        for batch_columns, batch_targets in batches:
            n = batch_targets.shape[1]
            inputs[n] = working_copy.layer_inputs(batch_columns, out=inputs.get(n))
            # 2 (V − R) / n, the gradient of the loss with respect to V.
            gradient = working_copy.scaled_error(inputs[n], batch_targets, 2.0 / n)
            flat = gradient.view(-1)
            squares.append(flat.dot(flat))
            factors.append(n / 4.0)
            working_copy.vjp(inputs[n], gradient, out=adam.gradients)
            adam.step(settings.max_grad_norm)
    adam.commit()
    # The mean squared error is n / 4 times the gradient's square.
    return CriticFit(th.stack(squares) * th.tensor(factors, device=returns.device) if squares else th.zeros(0))
