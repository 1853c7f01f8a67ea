"""
How little a policy may explore.
"""

import math
from collections.abc import Callable

from stable_baselines3.common.policies import ActorCriticPolicy


def std_bound(policy: ActorCriticPolicy, min_std: float) -> Callable[[], object]:
    """
    :param policy: at θ_old
    :param min_std: the least σ of its actions
    :return: lifts σ to ``min_std``, or to σ_old where that is less. So it only shrinks KL(old ‖ new), which falls as a
        new σ below the old one goes up to it. Does nothing for a policy without a σ of its own (gSDE has a matrix)
    """
    log_std = getattr(policy, "log_std", None)
    if min_std == 0.0 or log_std is None or policy.use_sde:
        return lambda: None
    bound = log_std.detach().clamp(max=math.log(min_std))
    return lambda: log_std.data.clamp_(min=bound)
