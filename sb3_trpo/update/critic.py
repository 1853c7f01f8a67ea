"""
Regression of the critic on the returns.

Only parameters that the action distribution does not depend on are moved: the trust region bounds the policy's change,
and a critic step on shared parameters would change it again behind its back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.functional import mse_loss

from sb3_trpo.networks.mlp import ColumnMlp, LayerInputs, PlainMlp
from sb3_trpo.networks.plain_policy import actor_modules, extract_features, plain_critic, why_features_change
from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.trust_region.flat import FlatParameters, as_dense
from sb3_trpo.update.flat_adam import FlatAdam, is_flat_adam
from sb3_trpo.update.samples import RolloutT, chunks, select
from sb3_trpo.update.training_mode import train_critic
from sb3_trpo.update.transaction import Transaction

# Up to this size all features are put into an epoch's order at once; beyond, that copy would take too much memory.
MAX_SHUFFLED_ELEMENTS = 2**22
# What rounding may add to KL from one evaluation of the same policy to the next, where a GPU sums in any order.
KL_ROUNDING = 1e-6

# Gives for each minibatch of one epoch the rows of its samples.
DrawRows: TypeAlias = Callable[[RolloutT, int], Sequence[th.Tensor]]


@dataclass(frozen=True)
class CriticFit:
    """
    What the fit did.

    :param losses: the mean squared error of each minibatch, before the step that it led to, (number of steps,)
    :param held: the names of parameters that the critic would train but may not, for the policy moves with them
    """

    losses: th.Tensor
    held: tuple[str, ...] = ()

    @property
    def mean_loss(self) -> float:
        """The mean over the minibatches; 0 if there was none."""
        return float(self.losses.mean()) if len(self.losses) else 0.0


@dataclass(frozen=True)
class CriticSettings:
    """
    How the critic is fitted.

    :param n_epochs: the number of passes over the rollout
    :param batch_size: the number of samples in a minibatch
    :param max_grad_norm: the Euclidean norm that the gradient is scaled down to; None leaves it as it is
    """

    n_epochs: int
    batch_size: int
    max_grad_norm: float | None


def shuffle_rows(samples: RolloutT, batch_size: int) -> Sequence[th.Tensor]:
    """
    Draw the minibatches of one epoch: every sample once, in random order.

    :param samples: the rollout
    :param batch_size: the number of samples in a minibatch
    :return: for each minibatch the rows of its samples
    """
    returns = samples.returns
    return th.split(th.randperm(len(returns), device=returns.device), batch_size)


@dataclass(frozen=True)
class TrustRegion:
    """
    The bound on the policy's change in the whole update.

    :param measure_kl: a function that measures E[KL(π_old ‖ π)] of the policy as it is
    :param max_kl: δ
    """

    measure_kl: Callable[[], float]
    max_kl: float

    def is_exceeded(self) -> bool:
        """
        Say whether the policy, as it is, lies outside.

        :return: whether KL is more than δ, or not a number
        """
        return not self.measure_kl() <= self.max_kl * (1.0 + KL_ROUNDING)


@dataclass(frozen=True)
class Regression(Generic[RolloutT]):
    """
    What the critic is fitted to, and how.

    :param policy: the policy with the critic, in evaluation mode
    :param predict_values: a function that gives the values of samples, (N, 1)
    :param samples: the rollout: N states, as ``predict_values`` takes them, and their returns R, (N,)
    :param settings: the settings of the fit
    :param is_builtin: whether ``predict_values`` is nothing but the policy's own method
    :param draw_rows: a function that draws the minibatches of an epoch
    :param trust_region: the bound on the policy's change; None leaves it unmeasured
    :param ranks: the ranks that have a part of each minibatch
    """

    policy: ActorCriticPolicy
    predict_values: Callable[[RolloutT], th.Tensor]
    samples: RolloutT
    settings: CriticSettings
    is_builtin: bool
    draw_rows: DrawRows[RolloutT] = shuffle_rows
    trust_region: TrustRegion | None = None
    ranks: Ranks = ALONE

    def epochs(self) -> Iterator[Sequence[th.Tensor]]:
        """
        Draw the minibatches, epoch by epoch.

        :return: for each epoch, the rows of its minibatches
        """
        for _ in range(self.settings.n_epochs):
            yield self.draw_rows(self.samples, self.settings.batch_size)

    def minibatches(self) -> Iterator[RolloutT]:
        """
        Select the minibatches, one by one.

        :return: the samples of each
        """
        for epoch in self.epochs():
            for rows in epoch:
                yield select(self.samples, rows)


def fit_critic(regression: Regression[RolloutT], actor_parameters: Iterable[nn.Parameter]) -> CriticFit:
    """
    Minimise E[(V(s) − R)²] over the critic's own parameters by minibatches, with the policy's optimizer.

    A parameter may move the policy without a gradient that tells (an encoder whose output the actor detaches). If the
    policy has left the trust region after the fit, the fit is done again without such parameters.

    :param regression: what the critic is fitted to, and how
    :param actor_parameters: the parameters that stay as they are
    :return: the losses, and the parameters that were left out
    """
    policy, trust_region = regression.policy, regression.trust_region
    fixed = {id(parameter) for parameter in actor_parameters}
    free = [p for p in policy.parameters() if p.requires_grad and id(p) not in fixed]
    if trust_region is None or not _may_move_policy(policy, free):
        return _fit(regression, free)
    return _fit_within(regression, trust_region, free)


def _may_move_policy(policy: ActorCriticPolicy, free: Iterable[nn.Parameter]) -> bool:
    """
    Tell whether a critic step may move the policy, too.

    :param policy: the policy
    :param free: the parameters that the critic may move
    :return: False if none of them can have to do with the action distribution
    """
    modules = actor_modules(policy)
    if modules is None:
        return True
    acting = {id(parameter) for module in modules for parameter in module.parameters()}
    return any(id(parameter) in acting for parameter in free)


class _OutsideError(Exception):
    """The policy has left the trust region while the critic was fitted."""


def _fit_within(regression: Regression[RolloutT], trust_region: TrustRegion, free: Sequence[nn.Parameter]) -> CriticFit:
    """
    Fit the critic with as many of its parameters as leave the policy in its trust region.

    :param regression: the regression to do
    :param trust_region: the bound on the policy's change
    :param free: the parameters that the critic may move, some of which may move the policy
    :return: the losses, and the parameters that were left out
    """
    names = {id(parameter): name for name, parameter in regression.policy.named_parameters()}
    moved: list[th.Tensor] = []
    try:
        with Transaction(regression.policy):
            fit = _fit(regression, free)
            if not trust_region.is_exceeded():
                return fit
            moved = [parameter.detach().clone() for parameter in free]
            raise _OutsideError
    except _OutsideError:
        acting = _acting_parameters(trust_region, free, moved)
    try:
        with Transaction(regression.policy):
            kept = [parameter for parameter in free if id(parameter) not in acting]
            fit = _fit(regression, kept, in_training_mode=False)
            if trust_region.is_exceeded():
                raise _OutsideError
            return replace(fit, held=tuple(names[id(p)] for p in free if id(p) in acting))
    except _OutsideError:
        return CriticFit(th.zeros(0), tuple(names[id(parameter)] for parameter in free))


@th.no_grad()
def _acting_parameters(
    trust_region: TrustRegion, parameters: Sequence[nn.Parameter], moved: Sequence[th.Tensor]
) -> set[int]:
    """
    Find the parameters that the policy depends on, by trying each of them alone.

    :param trust_region: the measure of the policy's change
    :param parameters: the parameters, as they were before the critic was fitted
    :param moved: the values that the fit gave them
    :return: the ids of those that change the policy
    """
    kl, acting = trust_region.measure_kl(), set()
    for parameter, value in zip(parameters, moved, strict=True):
        before = parameter.detach().clone()
        parameter.copy_(value)
        # Not "==": a GPU sums in any order.
        if not abs(trust_region.measure_kl() - kl) <= KL_ROUNDING * trust_region.max_kl:
            acting.add(id(parameter))
        parameter.copy_(before)
    return acting


def _fit(regression: Regression[RolloutT], free: Sequence[nn.Parameter], in_training_mode: bool = True) -> CriticFit:
    """
    Fit the critic, by the fastest way that its network and optimizer allow.

    :param regression: the regression to do
    :param free: the parameters to move
    :param in_training_mode: whether the critic's own modules are in training mode meanwhile
    :return: the losses
    """
    policy = regression.policy
    network = plain_critic(policy) if regression.is_builtin else None
    if network is not None and _features_stay(policy, free) and is_flat_adam(policy.optimizer, network, free):
        return _fit_plain(regression, network)
    if not in_training_mode:
        return _fit_by_autograd(regression, free)
    trust_region = regression.trust_region
    with train_critic(policy, free, trust_region.measure_kl if trust_region else None):
        return _fit_by_autograd(regression, free)


def _fit_by_autograd(regression: Regression[RolloutT], parameters: Sequence[nn.Parameter]) -> CriticFit:
    optimizer, max_grad_norm = regression.policy.optimizer, regression.settings.max_grad_norm
    losses: list[th.Tensor] = []
    for minibatch in regression.minibatches():
        optimizer.zero_grad()
        gradients: Sequence[th.Tensor | None] = [None] * len(parameters)
        # On several ranks a minibatch may have no row on this one.
        if len(minibatch.returns):
            loss = mse_loss(regression.predict_values(minibatch).flatten(), minibatch.returns)
            losses.append(loss.detach())
            if parameters and loss.requires_grad:
                gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        gradients = _mean_gradients(parameters, gradients, len(minibatch.returns), regression.ranks)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # SB3's optimizer takes no sparse one.
            parameter.grad = None if gradient is None else as_dense(gradient)
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
    optimizer.zero_grad()
    return CriticFit(th.stack(losses) if losses else th.zeros(0))


def _mean_gradients(
    parameters: Sequence[nn.Parameter], gradients: Sequence[th.Tensor | None], n_samples: int, ranks: Ranks
) -> Sequence[th.Tensor | None]:
    """
    Average gradients over the samples of all ranks.

    :param parameters: the parameters
    :param gradients: the gradient of each on this rank; None where the loss does not depend on it
    :param n_samples: the number of this rank's samples
    :param ranks: the ranks
    :return: the gradient of each; None where no rank has one
    """
    if ranks.is_alone or not parameters:
        return gradients
    flat = FlatParameters(parameters)
    vector = flat.flatten_gradients(gradients)
    presence = vector.new_tensor([gradient is not None for gradient in gradients])
    mean = ranks.mean(th.cat([presence, vector]), n_samples)
    pieces = zip(mean[: len(parameters)].tolist(), flat.split(mean[len(parameters) :]), parameters, strict=True)
    return [
        None if not is_present else (th.view_as_complex(piece) if parameter.is_complex() else piece).to(parameter)
        for is_present, piece, parameter in pieces
    ]


def _features_stay(policy: ActorCriticPolicy, free: Iterable[nn.Parameter]) -> bool:
    extractor = policy.vf_features_extractor
    return not why_features_change(extractor, free, is_counted_on=extractor is policy.pi_features_extractor)


@th.no_grad()
def _feature_columns(policy: ActorCriticPolicy, samples: RolloutT) -> th.Tensor:
    """
    Extract the features of a rollout, chunk by chunk, so that there is no other copy of them all on the way.

    :param policy: a policy whose critic's features do not change in the fit
    :param samples: the rollout
    :return: the features with a last row of ones, (n_features + 1, N)
    """
    returns, extractor = samples.returns, policy.vf_features_extractor
    columns = th.ones(extractor.features_dim + 1, len(returns), dtype=returns.dtype, device=returns.device)
    parts = chunks(samples, None)
    for i, part in enumerate(parts):
        # The i-th chunk has the rows i, i + k, i + 2k, ... where there are k chunks.
        columns[:-1, i :: len(parts)].copy_(extract_features(policy, part.observations, extractor).t())
    return columns


def _shuffled(columns: th.Tensor, epoch: Sequence[th.Tensor]) -> Iterator[th.Tensor]:
    """
    Cut columns into the minibatches of an epoch.

    :param columns: one column for each sample, (n, N)
    :param epoch: the samples of each minibatch
    :return: the columns of each minibatch
    """
    if epoch and columns.numel() <= MAX_SHUFFLED_ELEMENTS:
        yield from columns.index_select(1, th.cat(list(epoch))).split_with_sizes([len(rows) for rows in epoch], dim=1)
    else:
        yield from (columns.index_select(1, rows) for rows in epoch)


@th.no_grad()
def _fit_plain(regression: Regression[RolloutT], network: PlainMlp) -> CriticFit:
    """
    Do what ``_fit_by_autograd`` does with the backward pass written out, on features that do not change.

    :param regression: the regression to do
    :param network: the plain network from features to values
    :return: the losses
    """
    policy, settings, returns = regression.policy, regression.settings, regression.samples.returns
    columns, targets = _feature_columns(policy, regression.samples), returns.unsqueeze(0)
    adam = FlatAdam(network, policy.optimizer)
    working_copy = ColumnMlp(adam.matrices, network.activations)
    # Places for activations, by the number of samples, for a last minibatch may be smaller.
    inputs: dict[int, LayerInputs] = {}
    squares, factors = [], []
    for epoch in regression.epochs():
        minibatches = zip(_shuffled(columns, epoch), _shuffled(targets, epoch), strict=True)
        for minibatch, minibatch_targets in minibatches:
            n = minibatch_targets.shape[1]
            inputs[n] = working_copy.layer_inputs(minibatch, out=inputs.get(n))
            # 2 (V − R) / n, the gradient of the loss with respect to V.
            gradient = working_copy.scaled_error(inputs[n], minibatch_targets, 2.0 / n)
            flat = gradient.view(-1)
            squares.append(flat.dot(flat))
            factors.append(n / 4.0)
            working_copy.vjp(inputs[n], gradient, out=adam.gradients)
            regression.ranks.mean_(adam.gradient, n)
            adam.step(settings.max_grad_norm)
    adam.commit()
    # The mean squared error is n / 4 times the gradient's square.
    return CriticFit(th.stack(squares) * th.tensor(factors, device=returns.device) if squares else th.zeros(0))
