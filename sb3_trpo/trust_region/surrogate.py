"""
The surrogate objective that a trust-region step improves, and the KL divergence that bounds the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.linearization import Linearizations, SamplesT

LogProb = Callable[[Distribution, th.Tensor], th.Tensor]


def log_prob_of_sampled(distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    Give the log-probability of actions as the distribution itself has it.

    :param distribution: the action distribution of N states
    :param actions: the actions, (N, ...)
    :return: ln π(a|s), (N,)
    """
    return distribution.log_prob(actions)


@dataclass(frozen=True)
class PolicyBatch(Generic[SamplesT]):
    """
    States with the actions taken there, and how good these were.

    :param samples: what the policy needs in order to give an action distribution for each state
    :param actions: the actions as the distribution's ``log_prob`` takes them, (N, ...)
    :param advantages: A(s, a), (N,)
    """

    samples: SamplesT
    actions: th.Tensor
    advantages: th.Tensor

    def __len__(self) -> int:
        return len(self.advantages)


def normalize_advantages(batches: Sequence[PolicyBatch[SamplesT]], ranks: Ranks = ALONE) -> list[PolicyBatch[SamplesT]]:
    """
    Give the advantages of all chunks together mean 0 and standard deviation 1.

    :param batches: the rollout, in chunks
    :param ranks: the ranks that have a part of the rollout each
    :return: the same chunks with these advantages
    """
    advantages = th.cat([batch.advantages for batch in batches]) if len(batches) > 1 else batches[0].advantages
    if ranks.is_alone:
        mean, std = advantages.mean(), advantages.std()
    else:
        mean, std = _moments(advantages, ranks)
    return [replace(batch, advantages=(batch.advantages - mean) / (std + 1e-8)) for batch in batches]


def _moments(numbers: th.Tensor, ranks: Ranks) -> tuple[th.Tensor, th.Tensor]:
    """
    Compute mean and standard deviation over all ranks, in one collective.

    :param numbers: this rank's numbers, (N,)
    :param ranks: the ranks
    :return: the mean, and the standard deviation with Bessel's correction
    """
    # In double precision the difference of squares keeps enough digits.
    exact = numbers.double()
    n, total, squares = ranks.sum(th.stack([exact.new_tensor(len(exact)), exact.sum(), exact.square().sum()]))
    mean = total / n
    variance = (squares - n * mean.square()).clamp(min=0.0) / (n - 1.0)
    return mean.to(numbers), variance.sqrt().to(numbers)


class Surrogate:
    """
    The surrogate L(θ) and the KL divergence from π_old, the policy when this is made.

    With an entropy bonus (TRPO paper, eq. 14) they are

        L(θ) = E[π_θ(a|s) / π_old(a|s) A(s, a)] + c E[H(π_θ(· | s))],    E[KL(π_old(· | s) ‖ π_θ(· | s))].

    What is known at θ_old is there at once: ``gradient``, ∇L, (P,); ``objective``, L; ``entropy``, E[H]. ``evaluate``
    gives the rest at any other θ.

    :param distribution_of: a function that evaluates the policy on a chunk's samples
    :param batches: the rollout, in chunks
    :param linearizations: the linearisations of the same chunks, at θ_old
    :param ent_coef: c
    :param log_prob: a function of action distributions and actions that gives ln π(a|s), (N,)
    :param ranks: the ranks that have a part of the rollout each
    """

    def __init__(
        self,
        distribution_of: Callable[[SamplesT], Distribution],
        batches: Sequence[PolicyBatch[SamplesT]],
        linearizations: Linearizations[SamplesT],
        ent_coef: float,
        log_prob: LogProb = log_prob_of_sampled,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._distribution_of = distribution_of
        self._log_prob = log_prob
        self._batches = batches
        self._ent_coef = ent_coef
        self._n_samples = sum(map(len, batches))
        # For each chunk: z_old and ln π_old(a|s). π_old is evaluated here, by the arithmetic that evaluates π_θ: the
        # log-probabilities in the rollout buffer went through batches of another size, and their rounding would show in
        # the ratio.
        self._old: list[tuple[DistributionParameters, th.Tensor]] = []

        gradient: th.Tensor | None = None
        entropy = advantage = th.zeros(())
        for batch, linearization in zip(batches, linearizations, strict=True):
            new_log_prob = log_prob(linearization.distribution, batch.actions)
            old_log_prob = new_log_prob.detach()
            self._old.append((linearization.z, old_log_prob))
            change = _ratio_change(new_log_prob, old_log_prob)
            gain = (change * batch.advantages).sum()
            batch_entropy = _entropy(linearization.distribution, new_log_prob, change)
            part = linearization.gradient((gain + ent_coef * batch_entropy) / self._n_samples)
            gradient = part if gradient is None else gradient.add_(part)
            entropy = entropy + batch_entropy.detach()
            advantage = advantage + batch.advantages.sum()
        assert gradient is not None
        self._old_entropy = entropy
        self.gradient = ranks.mean(gradient, self._n_samples)
        self.entropy, mean_advantage = float(entropy) / self._n_samples, float(advantage) / self._n_samples
        if not ranks.is_alone:
            means = th.tensor([self.entropy, mean_advantage], dtype=th.float64)
            self.entropy, mean_advantage = ranks.mean(means, self._n_samples).tolist()
        self.objective = mean_advantage + ent_coef * self.entropy

    @th.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """
        Measure how far the policy, as it is now, has come from π_old.

        :return: E[KL(π_old ‖ π_θ)] in nats and L(θ) − L(θ_old)
        """
        kl = gain = entropy = th.zeros(())
        for batch, (z_old, old_log_prob) in zip(self._batches, self._old, strict=True):
            distribution = self._distribution_of(batch.samples)
            family, z = family_and_z(distribution)
            kl = kl + family.kl_divergence(z_old, z).sum()
            log_prob = self._log_prob(distribution, batch.actions)
            change = _ratio_change(log_prob, old_log_prob)
            gain = gain + (change * batch.advantages).sum()
            if self._ent_coef != 0:
                entropy = entropy + _entropy(distribution, log_prob, change)
        if self._ent_coef != 0:
            gain = gain + self._ent_coef * (entropy - self._old_entropy)
        mean_kl, mean_gain = self._ranks.mean(th.stack([kl, gain]) / self._n_samples, self._n_samples).tolist()
        return mean_kl, mean_gain


def _ratio_change(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """
    Compute π_θ(a|s)/π_old(a|s) − 1, by which each action has become more, or less, likely.

    :param log_prob: ln π_θ(a|s), (N,)
    :param old_log_prob: ln π_old(a|s), (N,)
    :return: the change, (N,)
    """
    # The improvement is small against the advantages: subtracting 1 first keeps its digits.
    return th.expm1(log_prob - old_log_prob)


def _entropy(distribution: Distribution, log_prob: th.Tensor, ratio_change: th.Tensor) -> th.Tensor:
    """
    Add up the entropy over the states.

    :param distribution: π_θ(· | s) of N states
    :param log_prob: ln π_θ(a|s) of the actions that π_old took, (N,)
    :param ratio_change: π_θ(a|s)/π_old(a|s) − 1, (N,)
    :return: the entropy in nats, a scalar
    """
    entropy = distribution.entropy()
    if entropy is None:
        # A squashed Gaussian has no closed form; −ln π of the actions, reweighted to π_θ, is an estimate of it.
        entropy = -((1.0 + ratio_change) * log_prob)
    return entropy.sum()
