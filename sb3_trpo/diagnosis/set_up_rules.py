"""
Rules on single events that a log does not show: a new policy, parameters that are held, updates that are undone.
"""

from collections.abc import Sequence

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.diagnosis.finding import Finding, Severity

# A new policy's actions hardly ever lie further from 0 than this many standard deviations.
REACH = 3.0


def actions_out_of_reach(policy: ActorCriticPolicy) -> Finding | None:
    """
    Find action bounds that lie far from 0, around which a new policy acts.

    :param policy: the policy before its first update
    :return: the finding, if any
    """
    space = policy.action_space
    if not isinstance(space, spaces.Box) or policy.squash_output or policy.use_sde or not hasattr(policy, "log_std"):
        return None
    reach = REACH * policy.log_std.detach().exp().cpu().numpy()
    is_out = (space.low.flatten() > reach) | (space.high.flatten() < -reach)
    if not is_out.any():
        return None
    return Finding(
        "actions-out-of-reach",
        Severity.ERROR,
        "a new policy acts around 0, far from the action space, so that its actions are all clipped to the nearest "
        "bound and nothing can be learned",
        f"the action space goes from {space.low.min():g} to {space.high.max():g}",
        "rescale the actions to [-1, 1] (gymnasium.wrappers.RescaleAction)",
    )


def held_parameters(names: Sequence[str]) -> Finding | None:
    """
    Find parameters that the critic was not allowed to train.

    :param names: their names
    :return: the finding, if any
    """
    if not names:
        return None
    return Finding(
        "held-parameters",
        Severity.WARNING,
        f"the critic does not train {', '.join(names)}: the policy depends on them, but gets no gradient for them, and "
        "the critic's steps would take it out of its trust region",
        "",
        "let the gradient through, or give the critic parameters of its own (share_features_extractor=False)",
    )


def fixed_statistics(modules: Sequence[str]) -> Finding | None:
    """
    Find normalisers and the like that learn in training mode only.

    :param modules: the names of the actor's modules of this kind, as a user finds them in the policy
    :return: the finding, if any
    """
    if not modules:
        return None
    return Finding(
        "fixed-statistics",
        Severity.WARNING,
        f"what {', '.join(modules)} would learn in training mode stays as it is: the actor is always in evaluation "
        "mode, for new statistics would change the policy outside of its trust region",
        "",
        "normalise observations outside of the policy (VecNormalize), or by a layer without statistics (LayerNorm)",
    )


def no_preconditioner(reason: str) -> Finding:
    """
    Report an update without preconditioner.

    :param reason: the reason, without a full stop
    :return: the finding
    """
    return Finding(
        "no-preconditioner",
        Severity.WARNING,
        "conjugate gradient goes without its preconditioner in this update",
        reason,
        "nothing has to be done; preconditioner=None says that none is wanted",
    )


def undone_update(number: int, reason: str) -> Finding:
    """
    Report an update that was undone.

    :param number: its number, from 1 on
    :param reason: the error, without a full stop
    :return: the finding
    """
    return Finding(
        "undone-update",
        Severity.ERROR,
        f"Update {number} was undone, the policy is as it was before",
        reason,
        "look at the numbers of that rollout: observations, rewards, and the sizes of both",
    )
