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
        zero = th.zeros_like(b)
        residual, why = (0.0, Stop.TOLERANCE) if scale == 0 else (math.nan, Stop.NOT_FINITE)
        return Solution(zero, zero, 0, residual, why)
    precondition = preconditioner or (lambda residual: residual)
    iterate = _start(operator, precondition, b / scale, x0)
    iterations = 0
    stop = iterate.judge(residual_tol, progress_tol)
    while stop is None:
        if iterations == max_steps:
            stop = Stop.MAX_ITERATIONS
        else:
            iterations += 1
            stop = iterate.advance(operator, precondition) or iterate.judge(residual_tol, progress_tol)
    return Solution(iterate.x * scale, iterate.product * scale, iterations, iterate.residual, stop)


@dataclass
class _Iterate:
    """
    Where the iteration is.

    :param x: the approximation of the solution, (P,)
    :param product: A x, (P,)
    :param r: b − A x, (P,)
    :param p: the direction of the next step, (P,)
    :param rho: rᵀP⁻¹r
    :param norm_b: bᵀP⁻¹b
    :param gain: 2 bᵀx − xᵀAx
    :param progress: what the last step has added to the gain
    """

    x: th.Tensor
    product: th.Tensor
    r: th.Tensor
    p: th.Tensor
    rho: float
    norm_b: float
    gain: float
    progress: float = math.inf

    @property
    def residual(self) -> float:
        """‖b − A x‖ / ‖b‖; NaN where it is not known."""
        known = self.norm_b > 0 and math.isfinite(self.rho)
        return math.sqrt(max(self.rho, 0.0) / self.norm_b) if known else math.nan

    def judge(self, residual_tol: float, progress_tol: float) -> Stop | None:
        """
        Decide whether to stop before the next step.

        :param residual_tol: the relative tolerance
        :param progress_tol: the smallest share of the gain that a step should add
        :return: why to stop; None to go on
        """
        if not math.isfinite(self.rho):
            return Stop.NOT_FINITE
        if self.rho < 0 or not self.norm_b > 0:
            return Stop.CURVATURE
        if self.rho <= residual_tol**2 * self.norm_b or self.progress < progress_tol * self.gain:
            return Stop.TOLERANCE
        return None

    def advance(self, operator: Operator, precondition: Operator) -> Stop | None:
        """
        Take a step along p, and choose the next direction.

        :param operator: v -> A v
        :param precondition: r -> P⁻¹ r
        :return: why there was no step; None if there was one
        """
        a_p = operator(self.p)
        curvature = float(self.p.dot(a_p))
        # 2. Curvature so small that the step along p would overflow is none.
        if not math.isfinite(curvature) or curvature <= self.rho / th.finfo(self.r.dtype).max:
            return Stop.CURVATURE if math.isfinite(curvature) else Stop.NOT_FINITE
        alpha = self.rho / curvature
        r = self.r.sub(a_p, alpha=alpha)
        y = precondition(r)
        rho = float(r.dot(y))
        if not math.isfinite(rho):
            return Stop.NOT_FINITE
        # 3. Only now, when nothing can go wrong any more, x moves: a step that fails leaves the last good one.
        # 4. A x is carried along by the same recursion, so that xᵀAx costs no further product.
        self.x.add_(self.p, alpha=alpha)
        self.product.add_(a_p, alpha=alpha)
        self.p.mul_(rho / self.rho).add_(y)
        self.progress = alpha * self.rho
        self.gain += self.progress
        self.r, self.rho = r, rho
        return None


def _start(operator: Operator, precondition: Operator, b: th.Tensor, x0: th.Tensor | None) -> _Iterate:
    """
    Start at the best multiple of x₀.

    :param operator: v -> A v
    :param precondition: r -> P⁻¹ r
    :param b: the right-hand side, (P,)
    :param x0: the start; None is zero
    :return: the first iterate
    """
    x, product, r = th.zeros_like(b), th.zeros_like(b), b
    y = precondition(r)
    norm_b = rho = float(r.dot(y))
    start = None if x0 is None else _best_multiple(operator, x0, b)
    if start is not None:
        x, product = start
        r = b - product
        y = precondition(r)
        rho = float(r.dot(y))
    # 5. The gain is 2 bᵀx − xᵀAx; the best multiple of a start has bᵀx = xᵀAx.
    return _Iterate(x, product, r, y.clone(), rho, norm_b, gain=float(b.dot(x)))


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
