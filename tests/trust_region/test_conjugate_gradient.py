"""
Conjugate gradient against direct solutions.
"""

import itertools
import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_trpo.trust_region.conjugate_gradient import Operator, Stop, conjugate_gradient


def random_system(seed: int, size: int, condition: float = 100.0) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw a random symmetric positive definite system.

    :param seed: of the system
    :param size: P
    :param condition: ratio of A's largest eigenvalue to its smallest
    :return: symmetric positive definite A, (P, P), and b, (P,)
    """
    generator = th.Generator().manual_seed(seed)
    basis = th.linalg.qr(th.randn(size, size, generator=generator, dtype=th.float64))[0]
    values = th.logspace(0.0, math.log10(condition), size, dtype=th.float64)
    return basis * values @ basis.t(), th.randn(size, generator=generator, dtype=th.float64)


def solve(matrix: th.Tensor, b: th.Tensor, tol: float = 1e-10, max_steps: int = 1000, **kwargs: object):
    return conjugate_gradient(matrix.mv, b, max_steps=max_steps, residual_tol=tol, **kwargs)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 30),
    condition=st.floats(1.0, 1e6),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
)
def test_equals_the_direct_solution(seed, size, condition, scale) -> None:
    matrix, b = random_system(seed, size, condition)
    solution = solve(matrix, scale * b)
    expected = th.linalg.solve(matrix, scale * b)
    assert solution.stop is Stop.TOLERANCE
    assert (solution.x - expected).norm() < 1e-7 * expected.norm()
    th.testing.assert_close(solution.product, matrix @ solution.x, rtol=1e-6, atol=1e-8 * scale)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), tol=st.sampled_from([0.5, 0.1, 1e-3]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_tolerance_is_relative(seed, tol, scale) -> None:
    matrix, b = random_system(seed, 20)
    solution = solve(matrix, scale * b, tol)
    residual = float((scale * b - matrix @ solution.x).norm() / (scale * b).norm())
    assert solution.residual == pytest.approx(residual, rel=1e-6)
    assert residual <= tol
    # One iteration fewer would not have done.
    before = solve(matrix, scale * b, 1e-12, max_steps=solution.iterations - 1)
    assert before.stop is Stop.MAX_ITERATIONS
    assert before.residual > tol


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    tol=st.sampled_from([0.3, 0.03, 1e-3]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    is_started=st.booleans(),
)
def test_ends_after_the_first_iteration_that_adds_less_than_a_share(seed, tol, scale, is_started) -> None:
    matrix, b = random_system(seed, 20)
    b = scale * b
    x0 = b + scale * random_system(seed + 1, 20)[1] if is_started else None
    solution = solve(matrix, b, 1e-12, progress_tol=tol, x0=x0)
    iterates = [solve(matrix, b, 0.0, max_steps=n, x0=x0).x for n in range(solution.iterations + 1)]
    gains = [float(b @ x - x @ matrix @ x / 2) for x in iterates]
    added = [(after - before) / after for before, after in itertools.pairwise(gains)]
    assert solution.stop is Stop.TOLERANCE
    assert added[-1] < tol
    assert all(share >= tol for share in added[:-1])


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_direction_does_not_depend_on_the_scale_of_b(dtype, scale) -> None:
    matrix, b = (tensor.to(dtype) for tensor in random_system(0, 20))
    plain, scaled = solve(matrix, b, 0.1), solve(matrix, scale * b, 0.1)
    assert scaled.iterations == plain.iterations
    unscaled = scaled.x.double() / scale
    assert (unscaled - plain.x).norm() < 1e4 * th.finfo(dtype).eps * plain.x.norm()
    assert scaled.residual == pytest.approx(plain.residual, rel=1e-2 if dtype is th.float32 else 1e-9)


def test_at_most_as_many_iterations_as_distinct_eigenvalues() -> None:
    _, b = random_system(0, 20)
    solution = solve(th.diag(th.tensor([1.0, 10.0, 100.0, 1000.0], dtype=th.float64).repeat(5)), b)
    assert solution.iterations == 4


def test_every_iterate_is_an_ascent_direction_and_better_than_the_last() -> None:
    matrix, b = random_system(3, 20, 1e4)
    best = 0.0
    for max_steps in range(1, 15):
        x = solve(matrix, b, max_steps=max_steps).x
        assert b.dot(x) > 0
        quality = float(b.dot(x) / x.dot(matrix @ x).sqrt())
        assert quality >= best * (1.0 - 1e-12)
        best = quality


@pytest.mark.parametrize("max_steps", [0, 1, 3])
def test_maximum_number_of_iterations(max_steps) -> None:
    matrix, b = random_system(0, 20)
    solution = solve(matrix, b, max_steps=max_steps)
    assert solution.stop is Stop.MAX_ITERATIONS
    assert solution.iterations == max_steps
    residual = float((b - matrix @ solution.x).norm() / b.norm())
    assert solution.residual == pytest.approx(residual, rel=1e-10)


def test_counts_products() -> None:
    matrix, b = random_system(0, 20)
    vectors = []

    def operator(v: th.Tensor) -> th.Tensor:
        vectors.append(v.clone())
        return matrix @ v

    solution = conjugate_gradient(operator, b, max_steps=100, residual_tol=0.01)
    assert len(vectors) == solution.iterations
    # A-conjugate, which is what gives the method its name.
    directions = th.stack(vectors)
    products = directions @ matrix @ directions.t()
    assert (products - products.diag().diag()).abs().max() < 1e-8 * products.diag().max()


def test_inputs_are_left_alone() -> None:
    matrix, b = random_system(0, 20)
    x0 = th.linalg.solve(matrix, b) + 0.1
    copies = b.clone(), x0.clone()
    solve(matrix, b, x0=x0)
    assert th.equal(b, copies[0])
    assert th.equal(x0, copies[1])


def test_zero_right_hand_side() -> None:
    solution = solve(th.eye(3), th.zeros(3))
    assert solution.stop is Stop.TOLERANCE
    assert solution.iterations == 0
    assert solution.residual == 0.0
    assert th.equal(solution.x, th.zeros(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_right_hand_side_that_is_not_finite(bad) -> None:
    solution = solve(th.eye(3), th.tensor([1.0, bad, 2.0]))
    assert solution.stop is Stop.NOT_FINITE
    assert solution.iterations == 0
    assert math.isnan(solution.residual)
    assert th.equal(solution.x, th.zeros(3))


def test_stops_at_curvature_that_is_not_positive() -> None:
    """The iterate that was found before the bad direction is kept."""
    matrix = th.diag(th.tensor([4.0, 2.0, -1.0], dtype=th.float64))
    b = th.tensor([1.0, 1.0, 1e-3], dtype=th.float64)
    solution = solve(matrix, b)
    assert solution.stop is Stop.CURVATURE
    assert 2 <= solution.iterations <= 3
    before = solve(matrix, b, max_steps=solution.iterations - 1)
    assert th.equal(solution.x, before.x)
    th.testing.assert_close(solution.product, matrix @ solution.x)
    assert b.dot(solution.x) > 0


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_without_positive_curvature_anywhere_the_result_is_zero(curvature) -> None:
    solution = solve(curvature * th.eye(3), th.ones(3))
    assert solution.stop is Stop.CURVATURE
    assert th.equal(solution.x, th.zeros(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_stops_at_products_that_are_not_finite(bad, fails_at) -> None:
    matrix, b = random_system(0, 20)
    calls = []

    def operator(v: th.Tensor) -> th.Tensor:
        calls.append(1)
        return matrix @ v * (bad if len(calls) == fails_at else 1.0)

    solution = conjugate_gradient(operator, b, max_steps=20, residual_tol=1e-10)
    assert solution.stop is Stop.NOT_FINITE
    assert th.equal(solution.x, solve(matrix, b, max_steps=fails_at - 1).x)


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_stops_at_a_preconditioner_that_is_not_finite(fails_at) -> None:
    matrix, b = random_system(0, 20)
    calls = []

    def preconditioner(residual: th.Tensor) -> th.Tensor:
        calls.append(1)
        return residual * (math.nan if len(calls) == fails_at else 1.0)

    solution = solve(matrix, b, preconditioner=preconditioner)
    assert solution.stop is Stop.NOT_FINITE
    # A step whose residual can't be told is not taken.
    assert th.equal(solution.x, solve(matrix, b, max_steps=max(0, fails_at - 2)).x)


def test_a_step_that_overflows_is_not_taken() -> None:
    """Without damping a direction of hardly any curvature may ask for a step beyond float32."""
    for tiny in (1e-30, 1e-39):
        solution = solve(th.diag(th.tensor([tiny, tiny])), th.tensor([1.0, 1.0]), max_steps=10)
        assert solution.x.isfinite().all()
        assert solution.product.isfinite().all()
    assert solution.stop is Stop.CURVATURE


def test_a_system_without_a_solution_ends_in_finite_numbers() -> None:
    """Where b has a share outside of a singular matrix's range, the iterates grow without bound."""
    matrix = th.diag(th.tensor([4.0, 2.0, 0.0]))
    solution = solve(matrix, th.tensor([1.0, 1.0, 1e-3]), tol=0.0)
    assert solution.stop is not Stop.TOLERANCE
    assert solution.x.isfinite().all()
    assert solution.product.isfinite().all()


def test_from_the_solution_nothing_is_left_to_do() -> None:
    matrix, b = random_system(0, 20)
    x0 = th.linalg.solve(matrix, b)
    for factor in (1.0, 1e-6, 1e6, -1.0):
        solution = solve(matrix, b, 1e-8, x0=factor * x0)
        assert solution.iterations == 0
        assert solution.stop is Stop.TOLERANCE
        th.testing.assert_close(solution.x, x0)
        th.testing.assert_close(solution.product, b)


def test_a_near_start_saves_iterations() -> None:
    matrix, b = random_system(0, 20)
    x0 = th.linalg.solve(matrix, b) * (1.0 + 0.01 * th.linspace(-1.0, 1.0, 20, dtype=th.float64))
    cold, warm = solve(matrix, b, 0.01), solve(matrix, b, 0.01, x0=x0)
    assert warm.iterations < cold.iterations
    assert float((b - matrix @ warm.x).norm() / b.norm()) == pytest.approx(warm.residual, rel=1e-6)


@pytest.mark.parametrize("start", ["orthogonal", "zero", "NaN", "inf", "tiny", "huge"])
def test_a_useless_start_does_no_harm(start) -> None:
    matrix, b = random_system(0, 20)
    x0 = {
        "orthogonal": th.eye(20, dtype=th.float64)[0] - b[0] / b.dot(b) * b,
        "zero": th.zeros_like(b),
        "NaN": th.full_like(b, math.nan),
        "inf": th.full_like(b, math.inf),
        "tiny": th.full_like(b, 1e-300),
        "huge": th.full_like(b, 1e300),
    }[start]
    solution = solve(matrix, b, x0=x0)
    assert solution.stop is Stop.TOLERANCE
    th.testing.assert_close(solution.x, th.linalg.solve(matrix, b), rtol=1e-7, atol=1e-9)


def test_any_start_leaves_a_residual_no_larger_than_none_in_the_norm_of_the_solution() -> None:
    matrix, b = random_system(0, 20, 1e4)
    x0 = th.randn(20, dtype=th.float64, generator=th.Generator().manual_seed(7))
    exact = th.linalg.solve(matrix, b)

    def error(x: th.Tensor) -> float:
        return float((x - exact).dot(matrix @ (x - exact)))

    for sign in (1.0, -1.0):
        assert error(solve(matrix, b, max_steps=0, x0=sign * x0).x) <= error(th.zeros(20, dtype=th.float64))


def test_uses_no_random_numbers() -> None:
    matrix, b = random_system(0, 20)
    state = th.get_rng_state()
    first, second = solve(matrix, b, x0=b), solve(matrix, b, x0=b)
    assert th.equal(th.get_rng_state(), state)
    assert th.equal(first.x, second.x)


def inverse_of(matrix: th.Tensor) -> Operator:
    return th.linalg.inv(matrix).mv


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), condition=st.floats(1.0, 1e4))
def test_a_preconditioner_does_not_change_the_solution(seed, condition) -> None:
    matrix, b = random_system(seed, 20, condition)
    preconditioner = inverse_of(random_system(seed + 1, 20, 10.0)[0])
    solution = solve(matrix, b, 1e-12, preconditioner=preconditioner)
    th.testing.assert_close(solution.x, th.linalg.solve(matrix, b), rtol=1e-6, atol=1e-8)
    th.testing.assert_close(solution.product, b, rtol=1e-6, atol=1e-8)


def test_an_exact_preconditioner_needs_one_iteration() -> None:
    matrix, b = random_system(0, 20, 1e6)
    solution = solve(matrix, b, preconditioner=inverse_of(matrix))
    assert solution.iterations == 1
    assert solve(matrix, b).iterations > 10


def test_residual_is_in_the_norm_of_the_preconditioner() -> None:
    matrix, b = random_system(0, 20)
    inverse = th.linalg.inv(random_system(1, 20, 10.0)[0])
    solution = solve(matrix, b, 0.1, preconditioner=inverse.mv)
    r = b - matrix @ solution.x
    expected = float((r.dot(inverse @ r) / b.dot(inverse @ b)).sqrt())
    assert solution.residual == pytest.approx(expected, rel=1e-6)
    assert expected <= 0.1


def test_a_preconditioner_that_is_not_positive_definite_is_noticed() -> None:
    matrix, b = random_system(0, 20)
    solution = solve(matrix, b, preconditioner=lambda residual: -residual)
    assert solution.stop is Stop.CURVATURE
    assert th.equal(solution.x, th.zeros_like(b))
