"""
What the tables say of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
N_RESAMPLES = 9999
# The share that the interquartile mean cuts off at either end.
QUARTER = 0.25
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Summary:
    """
    A sample in numbers.

    :param n: size of the sample
    :param mean: its mean
    :param std: its standard deviation, with n - 1 in the denominator; NaN for n = 1
    :param iqm: its interquartile mean: of n = 10 values the inner six
    :param low: lower end of the bootstrap interval of the mean; NaN for n = 1
    :param high: its upper end
    """

    n: int
    mean: float
    std: float
    iqm: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Return the standard deviation as a share of the mean; NaN where the mean is not positive."""
        return self.std / self.mean if self.mean > 0 else float("nan")


def summarize(sample: Sequence[float] | np.ndarray) -> Summary:
    """
    Summarise a sample.

    :param sample: at least one value
    """
    values = np.asarray(sample, dtype=float)
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    low, high = interval(values)
    return Summary(len(values), float(values.mean()), std, float(stats.trim_mean(values, QUARTER)), low, high)


def interval(values: np.ndarray) -> tuple[float, float]:
    """
    Estimate an interval of the mean by the bootstrap.

    :param values: (n,)
    :return: the 95% percentile bootstrap interval of their mean, the same in every call
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Difference:
    """
    The difference of two samples' means.

    :param mean: of one sample, less that of another
    :param low: lower end of its 95% interval by Welch's t; NaN where one of the samples has a single value
    :param high: its upper end
    :param p: of Welch's t-test, two-sided
    """

    mean: float
    low: float
    high: float
    p: float


def difference(sample: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> Difference:
    """
    Compare the means of two samples.

    :param sample: at least one value
    :param other: independent of it, at least one value
    """
    mean = float(np.mean(sample) - np.mean(other))
    if min(len(sample), len(other)) < 2:
        return Difference(mean, float("nan"), float("nan"), float("nan"))
    found = stats.ttest_ind(sample, other, equal_var=False)
    low, high = found.confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), float(found.pvalue))


def differ_from_control(samples: Sequence[np.ndarray], control: np.ndarray) -> np.ndarray:
    """
    Dunnett's test at 5% for all samples together. All have one variance, estimated from all of them, for that of three
    values by themselves says little.

    :param samples: each of at least one value
    :param control: what they are compared with, at least one value
    :return: which have another mean than the control (len(samples),); none where no variance can be estimated
    """
    if not len(samples) or max(map(len, [control, *samples])) < 2:
        return np.zeros(len(samples), dtype=bool)
    # The test integrates numerically, from random points.
    found = stats.dunnett(*samples, control=control, rng=np.random.default_rng(0))
    return np.asarray(found.pvalue < SIGNIFICANCE)


def steps_to(threshold: float, timesteps: np.ndarray, returns: np.ndarray) -> float:
    """
    Count the steps to a return.

    :param threshold: a return
    :param timesteps: of the evaluations (n,)
    :param returns: mean of each evaluation (n,)
    :return: steps at the first evaluation that reached it; infinity if none did
    """
    reached = np.flatnonzero(returns >= threshold)
    return float(timesteps[reached[0]]) if len(reached) else float("inf")


@dataclass(frozen=True)
class Improvement:
    """
    Single updates, judged by paired differences of returns.

    :param n: number of updates
    :param lower: after how many the estimate of J was lower
    :param worse: after how many J was lower by a one-sided paired t-test at 5%, each update by itself
    :param worse_corrected: as ``worse``, with 5% of false discoveries among all updates (Benjamini and Hochberg)
    :param better: after how many J was higher by the same test
    :param change: mean change of J per update
    """

    n: int
    lower: int
    worse: int
    worse_corrected: int
    better: int
    change: float

    @property
    def worse_interval(self) -> tuple[float, float]:
        """Return the 95% interval (Clopper and Pearson) of the share that ``worse`` estimates."""
        found = stats.binomtest(self.worse, self.n).proportion_ci(CONFIDENCE)
        return float(found.low), float(found.high)


def judge_updates(before: np.ndarray, after: np.ndarray) -> Improvement:
    """
    Judge which updates made the policy worse.

    :param before: returns before each update (updates, episodes)
    :param after: returns of the same episodes after it (updates, episodes)
    """
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    changed = differences.std(axis=1) > 0
    p_worse, p_better = np.ones(len(differences)), np.ones(len(differences))
    # Where nothing changed there is nothing to test: a rejected step.
    if changed.any():
        p_worse[changed] = stats.ttest_1samp(differences[changed], 0.0, axis=1, alternative="less").pvalue
        p_better[changed] = stats.ttest_1samp(differences[changed], 0.0, axis=1, alternative="greater").pvalue
    corrected = stats.false_discovery_control(p_worse)
    return Improvement(
        n=len(differences),
        lower=int((differences.mean(axis=1) < 0).sum()),
        worse=int((p_worse < SIGNIFICANCE).sum()),
        worse_corrected=int((corrected < SIGNIFICANCE).sum()),
        better=int((p_better < SIGNIFICANCE).sum()),
        change=float(differences.mean()),
    )
