"""
The figures of the tables, against textbook answers.
"""

import math

import numpy as np
import pytest
from campaign.statistics import differ_from_control, difference, interval, judge_updates, steps_to, summarize
from hypothesis import given
from hypothesis import strategies as st


def test_known_sample():
    summary = summarize([0, 1, 2, 3, 4, 5, 6, 7, 8, 1000])
    assert summary.mean == pytest.approx(103.6)
    # Two of ten fall off at either end.
    assert summary.iqm == pytest.approx(np.mean([2, 3, 4, 5, 6, 7]))
    assert summary.std == pytest.approx(np.std([*range(9), 1000], ddof=1))


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=10))
def test_the_interval_holds_the_mean_and_lies_within_the_sample(sample):
    low, high = interval(np.array(sample))
    slack = 1e-9 * max(map(abs, sample))
    assert min(sample) - slack <= low <= np.mean(sample) + slack
    assert np.mean(sample) - slack <= high <= max(sample) + slack


def test_dunnetts_own_example():
    # Blood counts of animals, in millions per mm³ (Dunnett, 1955): the second drug changes them.
    control = np.array([7.40, 8.50, 7.20, 8.24, 9.84, 8.32])
    drugs = [np.array([9.76, 8.80, 7.68, 9.36]), np.array([12.80, 9.68, 12.16, 9.20, 10.55])]
    assert differ_from_control(drugs, control).tolist() == [False, True]


def test_nothing_differs_where_no_variance_can_be_estimated():
    assert differ_from_control([], np.array([1.0, 2.0])).tolist() == []
    assert differ_from_control([np.array([5.0])], np.array([1.0])).tolist() == [False]


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (interval(rng.normal(size=10)) for _ in range(200))]
    # Percentile intervals of ten values are known to be somewhat too narrow.
    assert 0.85 <= np.mean(covered) <= 0.97


def test_one_value_has_no_spread():
    summary = summarize([5.0])
    assert summary.mean == summary.iqm == 5.0
    assert math.isnan(summary.std)
    assert math.isnan(summary.low)


def test_a_difference_by_hand():
    """Variances 2.5 and 10 over 5 values each, t = −3 / √2.5, 5.88 degrees of freedom."""
    found = difference([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert found.mean == -3
    assert found.p == pytest.approx(0.1075, abs=1e-3)
    half = 2.459 * math.sqrt(2.5)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half), abs=1e-2)


def test_a_difference_to_a_single_value_has_no_interval():
    found = difference([1.0, 2.0], [4.0])
    assert found.mean == -2.5
    assert math.isnan(found.low)
    assert math.isnan(found.p)


def test_a_difference_where_there_is_none_is_called_one_in_one_test_of_twenty():
    rng = np.random.default_rng(0)
    found = [difference(rng.normal(0, 3, size=10), rng.normal(size=5)) for _ in range(400)]
    assert 0.03 <= np.mean([one.p < 0.05 for one in found]) <= 0.08
    assert all((one.p < 0.05) == (not one.low <= 0 <= one.high) for one in found)


def test_steps_to_a_threshold_are_those_of_the_first_evaluation_that_reached_it():
    steps, returns = np.array([50, 100, 150]), np.array([1.0, 7.0, 5.0])
    assert steps_to(6.0, steps, returns) == 100
    assert steps_to(8.0, steps, returns) == math.inf


class TestJudgeUpdates:
    N_UPDATES, N_EPISODES = 400, 50

    def judge(self, change: float):
        rng = np.random.default_rng(0)
        before = rng.normal(100, 30, size=(self.N_UPDATES, self.N_EPISODES))
        return judge_updates(before, before + change + rng.normal(0, 10, size=before.shape))

    def test_no_change_is_called_worse_in_one_test_of_twenty(self):
        found = self.judge(0.0)
        low, high = found.worse_interval
        assert low < 0.05 < high
        assert found.worse_corrected == 0

    def test_a_clear_fall_is_seen_in_every_update(self):
        # 10 in units of 10 / sqrt(50) = 1.4.
        found = self.judge(-10.0)
        assert found.worse == found.worse_corrected == found.lower == self.N_UPDATES
        assert found.better == 0

    def test_a_clear_rise_is_never_called_a_fall(self):
        found = self.judge(10.0)
        assert found.worse == found.lower == 0
        assert found.better == self.N_UPDATES
        assert found.change == pytest.approx(10.0, abs=1.0)

    def test_common_random_numbers_find_what_independent_episodes_do_not(self):
        rng = np.random.default_rng(0)
        before = rng.normal(100, 30, size=(self.N_UPDATES, self.N_EPISODES))
        paired = judge_updates(before, before - 5 + rng.normal(0, 10, size=before.shape))
        independent = judge_updates(before, rng.normal(95, 30, size=before.shape))
        assert paired.worse > 3 * independent.worse

    def test_an_update_that_was_rejected_is_not_worse(self):
        returns = np.random.default_rng(0).normal(size=(3, 10))
        found = judge_updates(returns, returns)
        assert (found.worse, found.lower, found.change) == (0, 0, 0.0)
