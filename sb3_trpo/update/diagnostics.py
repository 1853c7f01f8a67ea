"""
What an update did, for the log.
"""

from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance

from sb3_trpo.trust_region.conjugate_gradient import Solution, Stop
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult
from sb3_trpo.trust_region.surrogate import Surrogate

# Numbers, for loggers and what reads them take no text.
STOP_CODES = {Stop.TOLERANCE: 0, Stop.MAX_ITERATIONS: 1, Stop.CURVATURE: 2}


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


def describe_update(
    policy: ActorCriticPolicy, buffer: RolloutBuffer, step: PolicyStep, value_loss: float, max_kl: float
) -> dict[str, float]:
    """
    Describe an update in numbers: first sb3-contrib's keys, then our own.

    :param policy: the policy after the update
    :param buffer: the rollout
    :param step: the policy step
    :param value_loss: the mean squared error of the critic
    :param max_kl: δ
    :return: the numbers, by their keys in the log
    """
    search, advantages = step.line_search, buffer.advantages
    numbers: dict[str, float] = {
        "train/policy_objective": step.surrogate.objective + search.improvement,
        "train/value_loss": value_loss,
        "train/kl_divergence_loss": search.kl,
        # The share of the returns' variance that the values in the rollout explained.
        "train/explained_variance": float(explained_variance(buffer.values.flatten(), buffer.returns.flatten())),
        "train/is_line_search_success": float(search.success),
    }
    if hasattr(policy, "log_std"):
        std = th.exp(policy.log_std.detach())
        numbers |= {"train/std": std.mean().item(), "train/std_min": std.min().item()}
    return numbers | {
        "train/entropy": step.surrogate.entropy,
        "train/cg_iterations": step.solution.iterations,
        "train/cg_residual": step.solution.residual,
        "train/cg_stop": STOP_CODES[step.solution.stop],
        "train/line_search_steps": search.n_evaluations,
        "train/rejected_by_kl": search.n_beyond_kl,
        "train/rejected_by_gain": search.n_without_gain,
        "train/step_fraction": search.fraction,
        "train/grad_norm": step.grad_norm,
        "train/expected_improvement": step.expected_improvement,
        "train/surrogate_improvement": search.improvement,
        "train/target_kl": max_kl,
        "train/advantage_mean": float(np.mean(advantages)),
        "train/advantage_std": float(np.std(advantages)),
    }
