"""
The line search on functions with known answers.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import KL_AIM, LineSearchResult, backtracking_line_search

DELTA = 0.01


class Search:
    """
    From θ = (0.1, 0.2, 0.3) along (1, 1, 1): the share t of the step that a try takes is θ₀ - 0.1.

    :param kl: of t
    :param improvement: of t
    """

    def __init__(self, kl: Callable[[float], float], improvement: Callable[[float], float]) -> None:
        weights = [nn.Parameter(th.tensor([0.1, 0.2], dtype=th.float64)), nn.Parameter(th.tensor([[0.3]]).double())]
        self.parameters = FlatParameters(weights)
        self.old = self.parameters.vector()
        self.tries: list[float] = []
        self._kl = kl
        self._improvement = improvement

    def evaluate(self) -> tuple[float, float]:
        t = float(self.parameters.vector()[0]) - 0.1
        self.tries.append(t)
        return self._kl(t), self._improvement(t)

    def run(
        self, shrinking_factor: float = 0.8, max_iter: int = 10, max_kl: float = DELTA, **kwargs: Any
    ) -> LineSearchResult:
        return backtracking_line_search(
            self.evaluate,
            self.parameters,
            th.ones_like(self.old),
            max_kl=max_kl,
            shrinking_factor=shrinking_factor,
            max_iter=max_iter,
            **kwargs,
        )

    def assert_untouched(self) -> None:
        assert th.equal(self.parameters.vector(), self.old)


def quadratic(at_one: float) -> Callable[[float], float]:
    return lambda t: at_one * t * t


def test_what_is_judged_and_kept_has_been_projected() -> None:
    search = Search(quadratic(0.5 * DELTA), lambda t: t)
    weight = search.parameters.tensors[0]
    search.run(project=lambda: weight.data.clamp_(max=0.5))
    assert search.tries == [pytest.approx(0.4)]
    th.testing.assert_close(search.parameters.vector(), th.tensor([0.5, 0.5, 1.3], dtype=th.float64))


@pytest.mark.parametrize(("slope", "success"), [(0.5, True), (-0.5, False), (math.nan, False)])
def test_from_outside_of_the_set_a_step_is_to_improve_on_the_way_into_it(slope: float, success: bool) -> None:
    search = Search(quadratic(0.5 * DELTA), lambda t: 0.0)
    edge, other = -0.4, search.parameters.tensors[1]

    def evaluate() -> tuple[float, float]:
        assert search.parameters.vector()[0] == edge
        # The way into the set costs 1.
        return 0.5 * DELTA, -1.0 + slope * (other.item() - 0.3)

    search.evaluate = evaluate  # type: ignore[method-assign]
    result = search.run(project=lambda: search.parameters.tensors[0].data[:1].fill_(edge))
    if success:
        assert result == LineSearchResult(True, 1.0, 1, 0.5 * DELTA, pytest.approx(-0.5))
    else:
        assert not result.success
        search.assert_untouched()


def test_takes_the_full_step_if_it_may() -> None:
    search = Search(quadratic(0.99 * DELTA), lambda t: t)
    result = search.run()
    assert result == LineSearchResult(True, 1.0, 1, pytest.approx(0.99 * DELTA), pytest.approx(1.0))
    th.testing.assert_close(search.parameters.vector(), search.old + 1.0)


@settings(deadline=None, max_examples=50)
@given(
    excess=st.floats(0.1, 1e3),
    optimum=st.floats(0.02, 2.0),
    factor=st.floats(0.1, 0.9),
    max_iter=st.integers(1, 30),
)
def test_an_accepted_step_respects_both_conditions(excess, optimum, factor, max_iter) -> None:
    search = Search(quadratic(excess * DELTA), lambda t: t * (2.0 * optimum - t))
    result = search.run(factor, max_iter)
    assert result.n_evaluations == len(search.tries) <= max_iter
    if result.success:
        assert result.kl <= DELTA
        assert result.improvement > 0.0
        assert result.kl == search._kl(search.tries[-1])
        assert result.improvement == search._improvement(search.tries[-1])
        th.testing.assert_close(search.parameters.vector(), search.old + result.fraction)
    else:
        n_beyond_kl = sum(search._kl(t) > DELTA for t in search.tries)
        assert result == LineSearchResult(False, 0.0, max_iter, 0.0, 0.0, n_beyond_kl, max_iter - n_beyond_kl)
        search.assert_untouched()
    assert result.n_beyond_kl == sum(search._kl(t) > DELTA for t in search.tries)
    assert result.n_beyond_kl + result.n_without_gain + result.success == result.n_evaluations
    # A failed try could not have been accepted, and no try shrinks by more than the factor.
    for t in search.tries[: -1 if result.success else None]:
        assert search._kl(t) > DELTA or search._improvement(t) <= 0.0
    for t, shorter in zip(search.tries, search.tries[1:], strict=False):
        assert factor * t * (1.0 - 1e-9) <= shorter < t


@pytest.mark.parametrize("factor", [0.5, 0.8])
def test_without_improvement_it_shrinks_by_the_factor(factor) -> None:
    search = Search(lambda t: 0.0, lambda t: -1.0)
    assert not search.run(factor, 5).success
    assert search.tries == pytest.approx([factor**i for i in range(5)])
    search.assert_untouched()


def test_a_step_a_little_too_long_is_brought_back_to_the_trust_region_at_once() -> None:
    search = Search(quadratic(1.2 * DELTA), lambda t: t)
    result = search.run()
    assert result.n_evaluations == 2
    assert result.fraction == pytest.approx(math.sqrt(KL_AIM / 1.2))
    assert result.kl == pytest.approx(KL_AIM * DELTA)


def test_a_step_far_too_long_shrinks_by_the_factor() -> None:
    search = Search(quadratic(100.0 * DELTA), lambda t: t)
    search.run(0.8, 3)
    assert search.tries == pytest.approx([1.0, 0.8, 0.64])
    search.assert_untouched()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_kl_that_is_not_finite_is_backed_away_from(value) -> None:
    search = Search(lambda t: value if t > 0.5 else 0.5 * DELTA, lambda t: t)
    result = search.run()
    assert result.success
    assert result.fraction == pytest.approx(0.8**4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_an_improvement_that_is_none_is_refused(value) -> None:
    search = Search(quadratic(0.5 * DELTA), lambda t: value)
    assert not search.run().success
    search.assert_untouched()


def test_a_trust_region_of_zero_admits_no_step() -> None:
    search = Search(quadratic(1e-9), lambda t: t)
    assert not search.run(max_kl=0.0).success
    search.assert_untouched()


def test_a_step_that_is_not_finite_leaves_nothing_behind() -> None:
    search = Search(quadratic(0.5 * DELTA), lambda t: t)
    step = th.tensor([1.0, math.nan, math.inf], dtype=th.float64)
    evaluate = lambda: (float(search.parameters.vector().sum()), 1.0)  # noqa: E731
    result = backtracking_line_search(evaluate, search.parameters, step, max_kl=DELTA, shrinking_factor=0.8, max_iter=3)
    assert not result.success
    search.assert_untouched()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_exception_leaves_the_parameters_as_they_were(error, fails_at) -> None:
    def improvement(t: float) -> float:
        if len(search.tries) == fails_at:
            raise error
        return -1.0

    search = Search(lambda t: 0.0, improvement)
    with pytest.raises(error):
        search.run()
    assert len(search.tries) == fails_at
    search.assert_untouched()


@pytest.mark.parametrize("improvement", [1.0, -1.0])
def test_parameters_are_written_in_place(improvement) -> None:
    search = Search(lambda t: 0.0, lambda t: improvement)
    storage = [parameter.data_ptr() for parameter in search.parameters]
    search.run()
    assert [parameter.data_ptr() for parameter in search.parameters] == storage


def test_a_failed_search_restores_bits_that_arithmetic_would_not() -> None:
    """0.1 + 1e10 - 1e10 is 0, -0.0 + 0 is +0.0."""
    weights = nn.Parameter(th.tensor([0.1, -0.0, 1e-40]))
    parameters = FlatParameters([weights])
    before = weights.detach().clone().view(th.int32)
    backtracking_line_search(
        lambda: (1.0, 1.0), parameters, th.full((3,), 1e10), max_kl=DELTA, shrinking_factor=0.5, max_iter=4
    )
    assert th.equal(weights.detach().view(th.int32), before)
