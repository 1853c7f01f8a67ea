"""
Bounds on the standard deviation of Gaussian actions.
"""

import math
from collections.abc import Callable

from stable_baselines3.common.policies import ActorCriticPolicy

# The share of δ that the way down to an upper bound may take in one update, and the largest fall of ln σ in one
# update, up to which that share is about right.
DESCENT_SHARE = 1 / 16
MAX_DESCENT = 0.25


def std_bounds(policy: ActorCriticPolicy, min_std: float, max_std: float, max_kl: float) -> Callable[[], object] | None:
    """
    Bound σ in a way that leaves room in the trust region, whatever σ is when the bounds come.

    From above ``max_std``, σ comes down in steps for which KL(old ‖ new) is about ``DESCENT_SHARE`` δ: with σ = q σ_old
    in all d dimensions it is d (ln q + (q⁻² − 1) / 2) ≈ d (ln q)². Below ``min_std``, σ is not lifted over σ_old, so
    that KL only shrinks.

    :param policy: the policy, at θ_old
    :param min_std: the least σ of its actions; 0 for none
    :param max_std: the largest σ, which counts where it is less than ``min_std``; infinite for none
    :param max_kl: δ
    :return: a function that brings σ between the bounds; None if there are none
    """
    is_bounded = min_std > 0.0 or max_std < math.inf
    if not is_bounded or not policy.log_std.requires_grad:
        return None
    log_std = policy.log_std
    old = log_std.detach()
    descent = min(math.sqrt(DESCENT_SHARE * max_kl / old.numel()), MAX_DESCENT)
    upper = (old - descent).clamp(min=_log(max_std))
    lower = old.clamp(max=_log(min_std)).minimum(upper)
    return lambda: log_std.data.clamp_(lower, upper)


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf
