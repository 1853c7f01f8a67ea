"""
Rules on the critic and on what environments give: values, episodes, observations, rewards, memory.
"""

import numpy as np

from sb3_trpo.diagnosis.finding import Finding, Severity
from sb3_trpo.diagnosis.record import FEWEST, WINDOW, Record

# A critic has diverged if its squared error is this many times that of a critic that says 0 of every state ...
DIVERGED = 2.0
# ... and that of an untrained network, which counts where returns are nearly 0.
UNTRAINED_SQUARED_ERROR = 1.0
# So many times need not last: two updates are enough.
EXPLODED = 10.0
# Or if it explains nothing any more and its error is this many times the lowest that it had.
RISEN = 10.0
# But not below this share of the error of a critic that says 0: in a task that is solved, the lowest is nearly 0.
HARMLESS = 0.1
# An error so small that a multiple of it is still no error.
NO_ERROR = 1e-8
# λ above which a critic hardly enters the advantages, and the share of updates in which it may explain nothing.
LONG_LAMBDA = 0.98
UNEXPLAINED = 0.4
# A critic that has learned nothing has this share of the squared error of one that says 0, or explains less than this
# of the returns and is off by this share of their deviation.
UNLEARNED = 0.5
UNEXPLAINED_VARIANCE = 0.1
# It learns, however, if its error falls to this share within the window.
FALLING = 0.5
# Returns of these sizes are within an ordinary critic's reach.
RETURNS = (0.01, 100.0)
OBS_STD = 5.0
# Growth of memory over the second half of a run, as a share of what is in use and in MiB.
GROWTH = 0.1
GROWTH_MIB = 50.0


def critic_diverges(record: Record) -> Finding | None:
    """
    Find a critic that has left the returns behind.

    Rewards alone make the reference: the returns that the critic is fitted to contain its own values.

    :param record: the run
    :return: the finding, if any
    """
    evidence = _error_beyond_returns(record) or _error_above_lowest(record)
    if not evidence:
        return None
    return Finding(
        "critic-diverges",
        Severity.ERROR,
        "the critic diverges",
        evidence,
        "lower learning_rate or n_critic_updates, set max_grad_norm, or normalise rewards (VecNormalize)",
        "critic",
    )


def _error_beyond_returns(record: Record) -> str:
    """
    Compare the critic's error with that of a critic that says 0.

    :param record: the run
    :return: the evidence that it is beyond; empty if it is not, or returns are not known
    """
    reference = max(_largest_square(record), UNTRAINED_SQUARED_ERROR)
    loss, _, _ = record.complete("train/value_loss", "train/return_mean", "train/return_std")
    last = loss[-WINDOW:]
    n_diverged, n_exploded = int((last > DIVERGED * reference).sum()), int((loss > EXPLODED * reference).sum())
    if n_exploded >= 2:
        return (
            f"its squared error is more than {EXPLODED:g} times that of no critic at all in {n_exploded} of "
            f"{len(loss)} updates, {loss.max() / reference:.2g} times at most"
        )
    if n_diverged >= FEWEST and n_diverged >= len(last) / 2:
        return (
            f"its squared error is more than {DIVERGED:g} times that of no critic at all in {n_diverged} of the last "
            f"{len(last)} updates"
        )
    return ""


def _error_above_lowest(record: Record) -> str:
    """
    Compare the critic's error with the lowest that it has had, each by the size of returns where it is known.

    :param record: the run
    :return: the evidence that it has risen and explains nothing; empty if not
    """
    error, explained, mean, std = record.complete(
        "train/value_loss", "train/explained_variance", "train/return_mean", "train/return_std"
    )
    are_returns_known = len(error) > 0
    if are_returns_known:
        error = error / np.maximum(mean**2 + std**2, NO_ERROR)
    else:
        error, explained = record.complete("train/value_loss", "train/explained_variance")
    last = slice(-(len(error) // 3), None)
    lowest = float(error.min()) if len(error) else 0.0
    if len(error) < WINDOW or lowest <= NO_ERROR:
        return ""
    share, now = float(np.mean(explained[last] < 0.0)), float(np.median(error[last]))
    if share < 0.5 or now <= RISEN * lowest or (are_returns_known and now < HARMLESS):
        return ""
    return (
        f"explained variance is below 0 in {100 * share:.0f}% of the last third, and the squared error is "
        f"{now / lowest:.0f} times its lowest"
    )


def critic_explains_nothing(record: Record) -> Finding | None:
    """
    Find a critic that can't keep up with nearly undiscounted returns.

    :param record: the run
    :return: the finding, if any
    """
    gae_lambda = record.settings.gae_lambda
    (explained,) = record.complete("train/explained_variance")
    share = float(np.mean(explained < 0.0)) if len(explained) >= WINDOW else 0.0
    if gae_lambda is None or gae_lambda <= LONG_LAMBDA or share < UNEXPLAINED:
        return None
    return Finding(
        "critic-explains-nothing",
        Severity.WARNING,
        "the critic explains nothing of the returns, so that advantages are mostly noise",
        f"explained variance is below 0 in {100 * share:.0f}% of the run, with gae_lambda = {gae_lambda:g}",
        "lower gae_lambda (0.95)",
        "critic",
    )


def reward_scale(record: Record) -> Finding | None:
    """
    Find rewards of a size that the critic can't follow.

    :param record: the run
    :return: the finding, if any
    """
    loss, explained, mean, std = record.window(
        "train/value_loss", "train/explained_variance", "train/advantage_mean", "train/advantage_std"
    )
    largest = _largest_square(record)
    size = float(np.sqrt(largest))
    if len(loss) < WINDOW or size == 0.0 or RETURNS[0] <= size <= RETURNS[1]:
        return None
    # Explained variance alone would not tell: it is low where returns hardly differ, as in a task that is solved.
    is_off = (explained < UNEXPLAINED_VARIANCE) & (np.abs(mean) > UNLEARNED * std)
    n_unlearned = int((is_off | (loss > UNLEARNED * largest)).sum())
    is_learning = np.median(loss[-FEWEST:]) < FALLING * np.median(loss[:FEWEST])
    if n_unlearned < len(loss) / 2 or is_learning:
        return None
    return Finding(
        "reward-scale",
        Severity.WARNING,
        f"rewards are too {'large' if size > 1 else 'small'} for the critic to follow",
        f"discounted sums of rewards are of size {size:.2g}; the critic explains nothing of them in {n_unlearned} of "
        f"the last {len(loss)} updates",
        "normalise rewards (VecNormalize with the gamma of the algorithm)",
        "critic",
    )


def _largest_square(record: Record) -> float:
    """
    Compute the squared error of a critic that says 0, at its largest.

    :param record: the run
    :return: the largest mean square of the returns in a rollout, of rewards alone; 0 if it is not known
    """
    mean, std = record.complete("train/return_mean", "train/return_std")
    return float((mean**2 + std**2).max()) if len(mean) else 0.0


def rewards_all_equal(record: Record) -> Finding | None:
    """
    Find rewards that say nothing about actions.

    :param record: the run
    :return: the finding, if any
    """
    mean, std = record.complete("train/return_mean", "train/return_std")
    if len(mean) >= WINDOW and not mean.any() and not std.any():
        evidence = f"every reward of {len(mean)} rollouts is 0"
    else:
        returns, lengths, terminated, truncated = record.complete(
            "rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/terminated", "rollout/truncated"
        )
        n_episodes = float((terminated + truncated).sum())
        is_same = len(returns) >= WINDOW and n_episodes >= WINDOW and np.ptp(returns) == 0.0 == np.ptp(lengths)
        if not is_same:
            return None
        evidence = f"every episode has the return {returns[0]:g} and {lengths[0]:g} steps"
    return Finding(
        "rewards-all-equal",
        Severity.ERROR,
        "no reward depends on what the policy does, so that there is nothing to learn from",
        evidence,
        "look at the rewards of random actions (`sb3-trpo diagnose --env`), and reward steps towards the goal",
        "return",
    )


def episodes_never_end(record: Record) -> Finding | None:
    """
    Find episodes that end inside of a wrapper that keeps it to itself.

    :param record: the run
    :return: the finding, if any
    """
    returns, terminated, truncated = record.complete("rollout/ep_rew_mean", "rollout/terminated", "rollout/truncated")
    n_changes = int(np.count_nonzero(np.diff(returns)))
    # All rows, for a row without finished episodes has no mean.
    n_ends = float(np.nansum(record.column("rollout/terminated")) + np.nansum(record.column("rollout/truncated")))
    if n_changes < 2 or n_ends > 0.0 or not len(terminated) + len(truncated):
        return None
    return Finding(
        "episodes-never-end",
        Severity.ERROR,
        "episodes end, but the algorithm is not told: values flow from each episode into the next",
        f"Monitor has reported new episodes in {n_changes} of {len(returns)} rollouts, and no step was terminated or "
        "truncated",
        "look for a wrapper above Monitor that resets by itself, and let it return terminated or truncated",
        "return",
    )


def observations_not_normalised(record: Record) -> Finding | None:
    """
    Find observations that are too large for a network.

    :param record: the run
    :return: the finding, if any
    """
    (std,) = record.window("rollout/obs_std_max")
    if len(std) < FEWEST or np.median(std) <= OBS_STD:
        return None
    return Finding(
        "observations-not-normalised",
        Severity.WARNING,
        "observations are too large for the network",
        f"the component that varies most has a standard deviation of {np.median(std):.3g}, and about 1 is good",
        "normalise observations (VecNormalize; `normalize: true` in a hyperparameter file)",
        "return",
    )


def memory_grows(record: Record) -> Finding | None:
    """
    Find memory that grows as long as training goes on.

    :param record: the run
    :return: the finding, if any
    """
    for key, what in (("time/memory_mib", "the process"), ("time/gpu_memory_mib", "the GPU")):
        (memory,) = record.complete(key)
        if len(memory) < 2 * WINDOW:
            continue
        parts = [float(np.median(part)) for part in np.array_split(memory[len(memory) // 2 :], 4)]
        growth = parts[-1] - parts[0]
        if np.diff(parts).min() > 0.0 and growth > max(GROWTH_MIB, GROWTH * parts[0]):
            return Finding(
                "memory-grows",
                Severity.WARNING,
                f"the memory of {what} grows all the time",
                f"from {memory[0]:.0f} to {memory[-1]:.0f} MiB, {growth:.0f} of these in the second half",
                "look for what keeps the past: lists in environments and callbacks, tensors with their graph",
                "return",
            )
    return None
