"""
Backtracking line search inside the trust region.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch as th

from sb3_trpo.trust_region.flat import FlatParameters

# The share of δ that a step which came out too long is shortened to. It is below 1, for KL is not exactly quadratic in
# the step's length.
KL_AIM = 0.92


@dataclass(frozen=True)
class LineSearchResult:
    """
    What the line search did.

    :param success: whether a step was accepted
    :param fraction: the accepted share of the full step; 0 if none was
    :param n_evaluations: the number of steps that were tried
    :param kl: KL(old ‖ new) of the accepted step, in nats; 0 if none was
    :param improvement: the surrogate's improvement by it; 0 if none was
    :param n_beyond_kl: the number of tries that KL > δ has rejected, or that have no finite KL
    :param n_without_gain: the number of tries within the trust region that did not improve the surrogate
    """

    success: bool
    fraction: float
    n_evaluations: int
    kl: float
    improvement: float
    n_beyond_kl: int = 0
    n_without_gain: int = 0


def backtracking_line_search(
    evaluate: Callable[[], tuple[float, float]],
    parameters: FlatParameters,
    full_step: th.Tensor,
    *,
    project: Callable[[], object] | None = None,
    max_kl: float,
    shrinking_factor: float,
    max_iter: int,
) -> LineSearchResult:
    """
    Shorten the step until KL ≤ δ and the surrogate has improved (TRPO paper, appendix C).

    A step that is too long only for KL is shortened to where a parabola through the measured KL meets ``KL_AIM`` δ, if
    that is less of a reduction than ``shrinking_factor``: a search that always multiplies by 0.8 gives away up to 36%
    of the trust region after missing it by a hair.

    Where θ_old lies outside of the set that θ is to lie in, a step has to improve the surrogate over the projection of
    θ_old: what the way there costs is not the step's fault.

    The search is a transaction: if no step is accepted, or anything is raised, the parameters are bit for bit what they
    were.

    :param evaluate: a function that measures, at the parameters as they are, KL(old ‖ θ) and the surrogate's
        improvement over θ_old
    :param parameters: θ, at θ_old
    :param full_step: the longest step to try, (P,)
    :param project: a function that brings θ into the set that it may lie in, in place, and θ_old by less than δ; None
        where θ may lie anywhere
    :param max_kl: δ
    :param shrinking_factor: the largest reduction of the step from one try to the next
    :param max_iter: the maximum number of tries
    :return: the accepted step, or that there is none
    """
    old = parameters.vector()
    success = False
    least_improvement = 0.0
    fraction, kl, improvement, n_evaluations, n_beyond_kl = 1.0, 0.0, 0.0, 0, 0
    try:
        if project is not None:
            project()
            if not th.equal(parameters.vector(), old):
                least_improvement = evaluate()[1]
        while n_evaluations < max_iter:
            parameters.write_(th.add(old, full_step, alpha=fraction))
            if project is not None:
                project()
            kl, improvement = evaluate()
            n_evaluations += 1
            success = kl <= max_kl and least_improvement < improvement < math.inf
            if success:
                break
            n_beyond_kl += not kl <= max_kl
            fraction *= _reduction(kl, max_kl, shrinking_factor)
    finally:
        if not success:
            parameters.write_(old)
    n_without_gain = n_evaluations - n_beyond_kl - success
    if not success:
        return LineSearchResult(False, 0.0, n_evaluations, 0.0, 0.0, n_beyond_kl, n_without_gain)
    return LineSearchResult(True, fraction, n_evaluations, kl, improvement, n_beyond_kl, n_without_gain)


def _reduction(kl: float, max_kl: float, shrinking_factor: float) -> float:
    """
    Choose how much shorter the next step is.

    :param kl: KL of the step that was too long, or did not improve the surrogate
    :param max_kl: δ
    :param shrinking_factor: the largest reduction
    :return: the factor for the step
    """
    # KL grows with the square of the step. Where it is not to blame, or not finite, the parabola says nothing.
    if max_kl < kl < math.inf:
        return max(shrinking_factor, math.sqrt(KL_AIM * max_kl / kl))
    return shrinking_factor
