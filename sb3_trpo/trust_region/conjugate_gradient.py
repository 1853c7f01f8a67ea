"""
Preconditioned conjugate gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch as th

Operator = Callable[[th.Tensor], th.Tensor]


class Stop(Enum):
    """Why the iteration ended."""

    TOLERANCE = "the residual is below the tolerance, or an iteration added too little"
    MAX_ITERATIONS = "the maximum number of iterations was reached"
    CURVATURE = "a direction with non-positive curvature was met"
    NOT_FINITE = "a value was not finite"


@dataclass(frozen=True)
class Solution:
    """
    What conjugate gradient found, and how.

    :param x: the solution, (P,)
    :param product: A x, by recursion rather than by one more product, (P,)
    :param iterations: the number of products with A, not counting the one that a non-zero start takes
    :param residual: ‖b − A x‖ / ‖b‖, in the norm of the tolerance
    :param stop: why the iteration ended
    """

    x: th.Tensor
    product: th.Tensor
    iterations: int
    residual: float
    stop: Stop


def conjugate_gradient(
    operator: Operator,
    b: th.Tensor,
    *,
    max_steps: int,
    residual_tol: float,
    progress_tol: float = 0.0,
    preconditioner: Operator | None = None,
    x0: th.Tensor | None = None,
) -> Solution:
    """
    Solve A x = b for symmetric positive definite A (Nocedal & Wright, Algorithm 5.3).

    The stopping rule is relative: ‖r‖ ≤ ``residual_tol`` ‖b‖, so that the result does not depend on the scale of b.
    With a preconditioner P the norm is that of P⁻¹, √(rᵀP⁻¹r). The iteration computes it anyway, and for P ≈ A it is
    close to the error that matters, √(eᵀAe). (SciPy's ``cg`` measures ‖r‖₂ in both cases.)

    It also stops when what it maximises, bᵀx − ½ xᵀAx, hardly grows any more (Martens 2010, section 4.4): an iteration
    adds ½ α rᵀP⁻¹r to it.

    Non-positive curvature, pᵀAp ≤ 0, and any value that is not finite end the iteration at the last good x. For a start
    at zero each iterate is an ascent direction for b, so that stopping early never hurts. No random numbers are used.

    :param operator: v -> A v
    :param b: the right-hand side, (P,)
    :param max_steps: the maximum number of iterations
    :param residual_tol: the relative tolerance
    :param progress_tol: the share of bᵀx − ½ xᵀAx; an iteration that adds less is the last
    :param preconditioner: r -> P⁻¹ r, symmetric positive definite; None is the identity
    :param x0: the start; None is zero
    :return: the solution with its statistics
    """
    # 1. Dividing b by its largest element keeps the squares of very large or very small gradients in range.
    scale = float(b.abs().max())
    if scale == 0 or not math.isfinite(scale):
        stop = Stop.TOLERANCE if scale == 0 else Stop.NOT_FINITE
        zero = th.zeros_like(b)
        return Solution(zero, zero, 0, 0.0 if scale == 0 else math.nan, stop)
    precondition = preconditioner or (lambda residual: residual)

    r = b / scale
    x, product = th.zeros_like(r), th.zeros_like(r)
    y = precondition(r)
    norm_b = rho = float(r.dot(y))
    if x0 is not None:
        start = _best_multiple(operator, x0, r)
        if start is not None:
            x, product = start
            r = r - product
            y = precondition(r)
            rho = float(r.dot(y))
    p = y.clone()
    # 2. This counts 2 bᵀx − xᵀAx; the best multiple of a start has bᵀx = xᵀAx.
    gain, progress = float(b.dot(x)) / scale, math.inf

    iterations, stop, largest = 0, Stop.MAX_ITERATIONS, th.finfo(b.dtype).max
    while True:
        if not (math.isfinite(rho) and rho >= 0 and norm_b > 0):
            stop = Stop.NOT_FINITE if not math.isfinite(rho) else Stop.CURVATURE
            break
        if rho <= residual_tol**2 * norm_b or progress < progress_tol * gain:
            stop = Stop.TOLERANCE
            break
        if iterations == max_steps:
            break
        a_p = operator(p)
        iterations += 1
        curvature = float(p.dot(a_p))
        # 3. Curvature so small that the step along p would overflow is none.
        if not math.isfinite(curvature) or curvature <= rho / largest:
            stop = Stop.CURVATURE if math.isfinite(curvature) else Stop.NOT_FINITE
            break
        alpha = rho / curvature
        r_next = r.sub(a_p, alpha=alpha)
        y = precondition(r_next)
        rho_next = float(r_next.dot(y))
        if not math.isfinite(rho_next):
            stop = Stop.NOT_FINITE
            break
        # 4. Only now, when nothing can go wrong any more, x moves: an iteration that fails leaves the last good one.
        # 5. A x is carried along by the same recursion, so that xᵀAx costs no further product.
        x.add_(p, alpha=alpha)
        product.add_(a_p, alpha=alpha)
        p.mul_(rho_next / rho).add_(y)
        progress = alpha * rho
        gain += progress
        r, rho = r_next, rho_next

    residual = math.sqrt(max(rho, 0.0) / norm_b) if norm_b > 0 and math.isfinite(rho) else math.nan
    return Solution(x * scale, product * scale, iterations, residual, stop)


def _best_multiple(operator: Operator, x0: th.Tensor, b: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
    """
    Scale a start to lie as near to the solution as it can, so that a wrong length or sign does no harm.

    :param operator: v -> A v
    :param x0: the start, (P,)
    :param b: the right-hand side, (P,)
    :return: c x₀ and A (c x₀) with c = bᵀx₀ / x₀ᵀAx₀; None if there is no curvature along x₀, or it is not finite
    """
    product = operator(x0)
    curvature, overlap = float(x0.dot(product)), float(b.dot(x0))
    if not (0.0 < curvature < math.inf and math.isfinite(overlap)):
        return None
    c = overlap / curvature
    return x0 * c, product * c
