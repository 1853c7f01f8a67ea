"""
What an update did, for the log, and advice on runs that go wrong.

There is one warning for each kind of trouble. It comes when the trouble has lasted, and says what to change.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.trust_region.conjugate_gradient import Solution
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult
from sb3_trpo.trust_region.surrogate import Surrogate

# Updates in a row before a symptom is reported: single ones are ordinary.
PATIENCE = 5
# A relative residual above which CG has hardly begun to solve for the natural gradient.
FAR_FROM_SOLVED = 0.5
# A critic has diverged if its squared error is this many times that of a critic that says 0 of every state ...
DIVERGED = 2.0
# ... and that of an untrained network, which counts where returns are nearly 0.
UNTRAINED_SQUARED_ERROR = 1.0
MIN_SAMPLES_PER_ACTION_DIMENSION = 32
# A new policy's actions hardly ever lie further from 0 than this many standard deviations.
REACH = 3.0


@dataclass(frozen=True)
class PolicyStep:
    """
    What the policy step did.

    :param parameters: θ, which the critic step must not move
    :param surrogate: L(θ)
    :param grad_norm: the Euclidean norm of g = ∇L(θ_old)
    :param solution: the solution of (F + λ I) x = g
    :param expected_improvement: g · step, for the full step
    :param line_search: the result of the line search
    """

    parameters: FlatParameters
    surrogate: Surrogate
    grad_norm: float
    solution: Solution
    expected_improvement: float
    line_search: LineSearchResult


def record_update(
    logger: Logger,
    policy: ActorCriticPolicy,
    step: PolicyStep,
    value_loss: float,
    explained_variance: float,
    max_kl: float,
) -> None:
    """
    Log what an update did: first sb3-contrib's keys, then our own.

    :param logger: the algorithm's logger
    :param policy: the policy after the update
    :param step: the policy step
    :param value_loss: the mean squared error of the critic
    :param explained_variance: the share of the returns' variance that the critic's values explained in the rollout
    :param max_kl: δ
    """
    search = step.line_search
    logger.record("train/policy_objective", step.surrogate.objective + search.improvement)
    logger.record("train/value_loss", value_loss)
    logger.record("train/kl_divergence_loss", search.kl)
    logger.record("train/explained_variance", explained_variance)
    logger.record("train/is_line_search_success", float(search.success))
    if hasattr(policy, "log_std"):
        logger.record("train/std", th.exp(policy.log_std).mean().item())

    logger.record("train/entropy", step.surrogate.entropy)
    logger.record("train/cg_iterations", step.solution.iterations)
    logger.record("train/cg_residual", step.solution.residual)
    logger.record("train/line_search_steps", search.n_evaluations)
    logger.record("train/step_fraction", search.fraction)
    logger.record("train/grad_norm", step.grad_norm)
    logger.record("train/expected_improvement", step.expected_improvement)
    logger.record("train/surrogate_improvement", search.improvement)
    logger.record("train/target_kl", max_kl)


@dataclass
class Advice:
    """
    What was noticed of the training, and said of it: a warning comes once for each symptom.

    :param counts: for each symptom, the number of updates in a row that had it
    :param given: the symptoms that were warned of
    """

    counts: dict[str, int] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)

    def observe(self, symptom: str, is_present: bool, message: str, patience: int = PATIENCE) -> None:
        """
        Count a symptom, and warn of it once it has lasted.

        :param symptom: the symptom's name
        :param is_present: whether this update has it
        :param message: what the trouble is, and what to do about it
        :param patience: the number of updates in a row that it takes
        """
        self.counts[symptom] = self.counts.get(symptom, 0) + 1 if is_present else 0
        if self.counts[symptom] >= patience and symptom not in self.given:
            self.given.add(symptom)
            warnings.warn(f"TRPO: {message} (This is said once.)", UserWarning, stacklevel=2)

    def on_policy_step(self, cg_residual: float, is_line_search_success: bool) -> None:
        """
        Look at a policy step.

        :param cg_residual: the relative residual of conjugate gradient
        :param is_line_search_success: whether the update moved the policy
        """
        self.observe(
            "conjugate gradient",
            cg_residual > FAR_FROM_SOLVED,
            f"conjugate gradient stops with a relative residual above {FAR_FROM_SOLVED}, so that the step is hardly a "
            "natural gradient step: raise cg_max_steps or cg_damping.",
        )
        self.observe(
            "line search",
            not is_line_search_success,
            f"the line search has failed in {PATIENCE} updates in a row, so that the policy does not change: collect "
            "more steps per update (n_steps or environments), raise cg_damping, or lower target_kl.",
        )

    def on_critic_step(self, value_loss: float, mean_squared_return: float) -> None:
        """
        Look at the critic's fit.

        Explained variance would not tell: it is low where the returns hardly differ, as in a task that is solved.

        :param value_loss: the mean squared error of the critic during its fit
        :param mean_squared_return: the mean squared error of a critic that says 0
        """
        self.observe(
            "critic",
            value_loss > DIVERGED * max(mean_squared_return, UNTRAINED_SQUARED_ERROR),
            f"the critic diverges (its squared error exceeds {DIVERGED:g} times that of no critic at all): lower "
            "learning_rate or n_critic_updates, set max_grad_norm, or normalise rewards (VecNormalize).",
        )

    def has_observed(self, symptom: str) -> bool:
        """
        Say whether a symptom was looked for before, with or without a finding.

        :param symptom: the symptom's name
        :return: whether it was
        """
        return symptom in self.counts

    def on_held_parameters(self, names: Sequence[str]) -> None:
        """
        Look at what the critic was not allowed to train.

        :param names: the names of these parameters
        """
        self.observe(
            "held parameters",
            bool(names),
            f"the critic does not train {', '.join(names)}: the policy depends on them, but gets no gradient for them, "
            "and the critic's steps would take it out of its trust region. Let the gradient through, or give the "
            "critic parameters of its own (share_features_extractor=False).",
            patience=1,
        )

    def on_statistics(self, modules: Sequence[str]) -> None:
        """
        Look at normalisers and the like that learn in training mode only.

        :param modules: the names of the actor's modules of this kind, as a user finds them in the policy
        """
        self.observe(
            "statistics",
            bool(modules),
            f"what {', '.join(modules)} would learn in training mode stays as it is: the actor is always in evaluation "
            "mode, for new statistics would change the policy outside of its trust region. Normalise observations "
            "outside of the policy (VecNormalize), or by a layer without statistics (LayerNorm).",
            patience=1,
        )

    def on_policy(self, policy: ActorCriticPolicy) -> None:
        """
        Look at a new policy, which acts around 0 and can't reach bounds far from there.

        :param policy: the policy before its first update
        """
        space = policy.action_space
        if (
            not isinstance(space, spaces.Box)
            or policy.squash_output
            or policy.use_sde
            or not hasattr(policy, "log_std")
        ):
            return
        reach = REACH * policy.log_std.detach().exp().cpu().numpy()
        is_out = (space.low.flatten() > reach) | (space.high.flatten() < -reach)
        self.observe(
            "action bounds",
            bool(is_out.any()),
            f"the action space goes from {space.low.min():g} to {space.high.max():g}, but a new policy acts around 0, "
            "so that its actions are all clipped to the nearest bound and nothing can be learned: rescale the actions "
            "to [-1, 1] (gymnasium.wrappers.RescaleAction).",
            patience=1,
        )

    def on_setup(self, n_samples: int, action_space: spaces.Space[Any]) -> None:
        """
        Look at the size of a rollout.

        :param n_samples: the number of steps in a rollout, over all environments
        :param action_space: the environments' action space
        """
        dimensions = action_dimensions(action_space)
        needed = MIN_SAMPLES_PER_ACTION_DIMENSION * dimensions
        self.observe(
            "batch size",
            n_samples < needed,
            f"n_steps * n_envs = {n_samples} is a very small batch for an action space of {dimensions} dimensions, "
            f"too small to estimate KL and its curvature: collect at least {needed} steps per update.",
            patience=1,
        )


def action_dimensions(action_space: spaces.Space[Any]) -> int:
    """
    Count the action dimensions.

    :param action_space: a Box, Discrete, MultiDiscrete or MultiBinary
    :return: the number of independent sub-actions
    """
    return 1 if isinstance(action_space, spaces.Discrete) else math.prod(action_space.shape or ())
