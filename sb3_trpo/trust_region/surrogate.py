"""
The surrogate objective that a trust-region step improves, and the KL divergence that bounds the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.trust_region.kl import Parameters, family_of
from sb3_trpo.trust_region.linearization import Linearizations

LogProb = Callable[[Distribution, th.Tensor], th.Tensor]


def log_prob_of_sampled(distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    :param distribution: of N states
    :param actions: (N, ...)
    :return: ln π(a|s), (N,)
    """
    return distribution.log_prob(actions)


@dataclass(frozen=True)
class PolicyBatch:
    """
    States with the actions taken there, and how good these were.

    :param samples: what the policy needs in order to give an action distribution for each state
    :param actions: as the distribution's ``log_prob`` takes them, (N, ...)
    :param advantages: (N,)
    """

    samples: Any
    actions: th.Tensor
    advantages: th.Tensor

    def __len__(self) -> int:
        return len(self.advantages)


def normalize_advantages(batches: Sequence[PolicyBatch]) -> list[PolicyBatch]:
    """
    Give the advantages of all batches together mean 0 and standard deviation 1.

    :param batches: chunks of the data
    :return: the same with other advantages
    """
    advantages = th.cat([batch.advantages for batch in batches]) if len(batches) > 1 else batches[0].advantages
    mean, std = advantages.mean(), advantages.std()
    return [replace(batch, advantages=(batch.advantages - mean) / (std + 1e-8)) for batch in batches]


class Surrogate:
    """
    L(θ) = E[π_θ(a|s) / π_old(a|s) A(s, a)] + c E[H(π_θ(·|s))] (TRPO paper, eq. 14, with an entropy bonus), and
    E[KL(π_old(·|s) ‖ π_θ(·|s))].

    π_old is the policy at the time of ``gradient``, not the log-probabilities in the rollout buffer: these went through
    batches of another size, and rounding would show in the ratio.

    :param distribution_of: evaluates the policy on a batch's samples
    :param batches: chunks of the data
    :param ent_coef: c
    :param log_prob: ln π(a|s) from action distributions and actions, (N,)
    """

    def __init__(
        self,
        distribution_of: Callable[[Any], Distribution],
        batches: Sequence[PolicyBatch],
        ent_coef: float,
        log_prob: LogProb = log_prob_of_sampled,
    ) -> None:
        self._distribution_of = distribution_of
        self._log_prob = log_prob
        self._batches = batches
        self._ent_coef = ent_coef
        self._n_samples = sum(map(len, batches))
        self._old: list[tuple[Parameters, th.Tensor]] = []
        self._old_entropy = th.zeros(())
        # At θ_old: L, and the entropy in it.
        self.objective = 0.0
        self.entropy = 0.0

    def gradient(self, linearizations: Linearizations) -> th.Tensor:
        """
        :param linearizations: of the batches, at θ_old
        :return: ∇L at θ_old, (P,)
        """
        self._old = []
        gradient: th.Tensor | None = None
        entropy = advantage = th.zeros(())
        for batch, linearization in zip(self._batches, linearizations, strict=True):
            log_prob = self._log_prob(linearization.distribution, batch.actions)
            old_log_prob = log_prob.detach()
            self._old.append((linearization.z, old_log_prob))
            change = _ratio_change(log_prob, old_log_prob)
            gain = (change * batch.advantages).sum()
            batch_entropy = _entropy(linearization.distribution, log_prob, change)
            part = linearization.gradient((gain + self._ent_coef * batch_entropy) / self._n_samples)
            gradient = part if gradient is None else gradient.add_(part)
            entropy = entropy + batch_entropy.detach()
            advantage = advantage + batch.advantages.sum()
        assert gradient is not None
        self._old_entropy = entropy
        self.entropy = float(entropy) / self._n_samples
        self.objective = float(advantage) / self._n_samples + self._ent_coef * self.entropy
        return gradient

    @th.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """
        :return: E[KL(π_old ‖ π_θ)] in nats and L(θ) − L(θ_old), at the policy as it is
        """
        kl = gain = entropy = th.zeros(())
        for batch, (z_old, old_log_prob) in zip(self._batches, self._old, strict=True):
            distribution = self._distribution_of(batch.samples)
            family = family_of(distribution)
            kl = kl + family.kl_divergence(z_old, family.parameters(distribution.distribution)).sum()
            log_prob = self._log_prob(distribution, batch.actions)
            change = _ratio_change(log_prob, old_log_prob)
            gain = gain + (change * batch.advantages).sum()
            if self._ent_coef != 0:
                entropy = entropy + _entropy(distribution, log_prob, change)
        if self._ent_coef != 0:
            gain = gain + self._ent_coef * (entropy - self._old_entropy)
        mean_kl, mean_gain = (th.stack([kl, gain]) / self._n_samples).tolist()
        return mean_kl, mean_gain


def _ratio_change(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """
    :return: π_θ/π_old − 1, (N,)
    """
    # The improvement is small against the advantages: subtracting 1 first keeps its digits.
    return th.expm1(log_prob - old_log_prob)


def _entropy(distribution: Distribution, log_prob: th.Tensor, ratio_change: th.Tensor) -> th.Tensor:
    """
    :return: the entropy, summed over the states
    """
    entropy = distribution.entropy()
    if entropy is None:
        # A squashed Gaussian's has no closed form; −ln π of the actions, reweighted to π_θ, is an estimate of it.
        entropy = -((1.0 + ratio_change) * log_prob)
    return entropy.sum()
