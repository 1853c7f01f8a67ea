"""
Rules on the policy step: direction, search, step, noise.
"""

import numpy as np

from sb3_trpo.diagnosis.finding import Finding, Severity
from sb3_trpo.diagnosis.record import FEWEST, WINDOW, Record

# The share of the last updates whose line search may fail.
FAILURES = 0.3
# A relative residual above which CG has hardly begun to solve for the natural gradient.
FAR_FROM_SOLVED = 0.5
# Σ √(2 KL) over a run: the length of the policy's way, in standard deviations of its actions. Runs that learn have 40
# to 114 over a million steps.
SHORTEST_WAY = 1.0
# The share of training after which the whole way can be told.
EARLY = 0.1
# The share of δ that a step should use, and that it uses if KL is measured at all.
SHARE_OF_KL = 0.5
NO_KL = 0.01
# Normalised advantages have gradients of size 1.
NO_GRADIENT = 1e-6
MIN_STD = 0.02
CLIPPED = 0.6
MIN_SAMPLES_PER_ACTION_DIMENSION = 32
# Advantages whose mean is so large a share of their deviation push all actions in one direction.
OFF_CENTRE = 0.5


def small_batch(record: Record) -> Finding | None:
    """
    Find rollouts that are too short to estimate KL and its curvature.

    :param record: the run
    :return: the finding, if any
    """
    n_samples, dimensions = record.settings.n_samples, record.settings.action_dimensions
    if n_samples is None or dimensions is None:
        return None
    needed = MIN_SAMPLES_PER_ACTION_DIMENSION * dimensions
    if n_samples >= needed:
        return None
    return Finding(
        "small-batch",
        Severity.WARNING,
        "the batch is too small to estimate KL and its curvature",
        f"n_steps * n_envs = {n_samples} for an action space of {dimensions} dimension{'s' if dimensions > 1 else ''}",
        f"collect at least {needed} steps per update (n_steps or n_envs)",
        "kl",
    )


def cg_far_from_solved(record: Record) -> Finding | None:
    """
    Find conjugate gradient that hardly begins.

    :param record: the run
    :return: the finding, if any
    """
    (residuals,) = record.window("train/cg_residual")
    n_far = int((residuals > FAR_FROM_SOLVED).sum())
    if n_far < FEWEST or n_far < len(residuals) / 2:
        return None
    return Finding(
        "cg-far-from-solved",
        Severity.WARNING,
        "conjugate gradient stops far from the solution, so that the step is hardly a natural gradient step",
        f"the relative residual is above {FAR_FROM_SOLVED} in {n_far} of the last {len(residuals)} updates, "
        f"{np.median(residuals):.2f} in the median",
        "raise cg_max_steps or cg_damping",
        "cg",
    )


def line_search_fails(record: Record) -> Finding | None:
    """
    Find line searches that accept no step.

    :param record: the run
    :return: the finding, if any
    """
    rows = record.column("train/is_line_search_success")
    is_row = np.isfinite(rows)
    success = rows[is_row][-WINDOW:]
    n_failed = float((1.0 - success).sum())
    if n_failed < FEWEST or n_failed <= FAILURES * len(success):
        return None
    failed = success < 0.5

    def total(key: str) -> float:
        column = record.column(key)
        return float(np.nansum(column[is_row][-WINDOW:][failed])) if len(column) == len(rows) else 0.0

    by_kl, by_gain = total("train/rejected_by_kl"), total("train/rejected_by_gain")
    if total("train/line_search_steps") == 0.0:
        problem = "updates are undone, so that the policy does not change"
        cause, change = "", "look at the warning that names the reason of the first one, and mend that"
    elif by_kl > by_gain:
        problem = "the line search fails for KL, so that the policy does not change"
        cause = f", with {by_kl:.0f} tries beyond target_kl and {by_gain:.0f} without a gain"
        change = "lower target_kl, or raise line_search_max_iter or cg_damping"
    else:
        problem = "the line search finds no gain, so that the policy does not change"
        cause = f", with {by_gain:.0f} tries without a gain and {by_kl:.0f} beyond target_kl" if by_gain else ""
        change = "collect more steps per update (n_steps or n_envs), raise cg_damping, or lower target_kl"
    evidence = f"it failed in {n_failed:.0f} of the last {len(success)} updates{cause}"
    return Finding("line-search-fails", Severity.ERROR, problem, evidence, change, "step")


def policy_hardly_moves(record: Record) -> Finding | None:
    """
    Find steps so small that the policy stays where it began.

    :param record: the run
    :return: the finding, if any
    """
    kl, success = record.complete("train/kl_divergence_loss", "train/is_line_search_success")
    if len(kl) < WINDOW or record.progress < EARLY or success.mean() < 0.5:
        return None
    ratio = _share_of_kl(record)
    if len(ratio) and np.median(ratio) < NO_KL:
        # A divergence that does not see the step tells no distance.
        return None
    way = float(np.sqrt(2.0 * np.maximum(kl, 0.0)).sum()) * record.updates_per_row() / record.progress
    if way >= SHORTEST_WAY:
        return None
    (target,) = record.window("train/target_kl", n=1)
    return Finding(
        "policy-hardly-moves",
        Severity.ERROR,
        "the policy can hardly have moved",
        f"the sum of √(2 KL) over the whole run is {way:.2g}, and 40 or more where a task is learned"
        + (f"; target_kl is {target[0]:g}" if len(target) else ""),
        "raise target_kl (0.01 to 0.05), or train for more updates",
        "kl",
    )


def step_not_seen(record: Record) -> Finding | None:
    """
    Find steps that KL or the surrogate do not notice.

    :param record: the run
    :return: the finding, if any
    """
    ratio = _share_of_kl(record)
    if len(ratio) >= FEWEST and np.median(ratio) < NO_KL:
        return Finding(
            "step-not-seen",
            Severity.ERROR,
            "steps are accepted, but KL does not see them: it seems to compare the new policy with itself",
            f"KL is {100 * np.median(ratio):.2g}% of target_kl in the median of {len(ratio)} accepted steps",
            "keep a copy of the old policy's outputs (detached and cloned), and compare with that",
            "kl",
        )
    gradient, deviation = record.window("train/grad_norm", "train/advantage_std")
    # Not "==": what should cancel leaves its rounding.
    n_none = int((gradient < NO_GRADIENT * np.minimum(deviation, 1.0)).sum())
    (clipped,) = record.window("rollout/clipped_actions")
    if len(clipped) and np.median(clipped) > CLIPPED:
        # Actions that are clipped to the same number have no gradient, whatever the old policy does.
        return None
    if n_none < FEWEST or n_none < len(gradient) / 2:
        return None
    return Finding(
        "step-not-seen",
        Severity.ERROR,
        "the surrogate has no gradient although advantages differ: the old policy seems to change with the new one",
        f"the gradient is 0 in {n_none} of the last {len(gradient)} updates, advantages deviate by "
        f"{np.median(deviation):.2g}",
        "detach the old policy's log-probabilities, and let the new one's depend on the actor's parameters",
        "step",
    )


def steps_far_inside(record: Record) -> Finding | None:
    """
    Find steps that use little of the trust region.

    :param record: the run
    :return: the finding, if any
    """
    ratio = _share_of_kl(record)
    if len(ratio) < WINDOW or not NO_KL <= np.median(ratio) < SHARE_OF_KL:
        return None
    (fraction,) = record.window("train/step_fraction")
    return Finding(
        "steps-far-inside",
        Severity.WARNING,
        "steps end far inside of the trust region",
        f"KL is {100 * np.median(ratio):.0f}% of target_kl in the median of the last {len(ratio)} accepted steps, "
        "where 92 to 95% are ordinary" + (f"; the step fraction is {np.median(fraction):.2f}" if len(fraction) else ""),
        "lower target_kl to what the steps reach, or collect more steps per update",
        "kl",
    )


def _share_of_kl(record: Record) -> np.ndarray:
    kl, target, success = record.window(
        "train/kl_divergence_loss", "train/target_kl", "train/is_line_search_success", n=WINDOW
    )
    is_step = (success > 0.5) & (target > 0.0)
    share: np.ndarray = kl[is_step] / target[is_step]
    return share


def std_collapsed(record: Record) -> Finding | None:
    """
    Find noise that is gone although nobody has asked for that.

    :param record: the run
    :return: the finding, if any
    """
    (std,) = record.window("train/std_min", n=FEWEST)
    if len(std) < FEWEST or np.median(std) >= MIN_STD:
        return None
    bound = record.settings.least_max_std
    if bound is not None and bound < MIN_STD:
        return None
    return Finding(
        "std-collapsed",
        Severity.WARNING,
        "the policy hardly explores any more",
        f"the smallest σ of its actions is {np.median(std):.2g}",
        "begin with more noise (policy_kwargs=dict(log_std_init=-0.5)), and keep it up with min_std",
        "std",
    )


def actions_clipped(record: Record) -> Finding | None:
    """
    Find actions that are mostly clipped to their bounds.

    :param record: the run
    :return: the finding, if any
    """
    (share,) = record.window("rollout/clipped_actions")
    # gSDE explores by actions that stay far out for many steps.
    if record.settings.use_sde:
        return None
    if len(share) < FEWEST or np.median(share) <= CLIPPED:
        return None
    return Finding(
        "actions-clipped",
        Severity.WARNING,
        "most actions lie beyond their bounds and are clipped",
        f"{100 * np.median(share):.0f}% of all action components in the last {len(share)} rollouts",
        "begin with less noise (log_std_init) and bound it with max_std, or rescale the actions to [-1, 1] "
        "(gymnasium.wrappers.RescaleAction)",
        "std",
    )


def advantages_not_normalised(record: Record) -> Finding | None:
    """
    Find advantages that are used off their centre.

    :param record: the run
    :return: the finding, if any
    """
    objective, gain, entropy, mean, std = record.window(
        "train/policy_objective",
        "train/surrogate_improvement",
        "train/entropy",
        "train/advantage_mean",
        "train/advantage_std",
    )
    # At the old policy the surrogate is the mean of the advantages as they are used: 0 if they were normalised.
    used = objective - gain - (record.settings.ent_coef or 0.0) * entropy
    is_off = (np.abs(mean) > OFF_CENTRE * std) & (np.abs(used - mean) < 0.01 * np.abs(mean))
    n_off = int(is_off.sum())
    if n_off < FEWEST or n_off < len(mean) / 2:
        return None
    return Finding(
        "advantages-not-normalised",
        Severity.WARNING,
        "advantages are used as they come, and far from their centre, so that their mean drowns their differences",
        f"the mean is {np.median(mean[is_off]):.2g} and the deviation {np.median(std[is_off]):.2g} in {n_off} of the "
        f"last {len(mean)} updates",
        "set normalize_advantage=True",
        "step",
    )
