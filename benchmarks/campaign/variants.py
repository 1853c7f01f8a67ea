"""
What TRPO is compared with: plain policy gradient, and TRPO with one of its parts taken out.

Each class changes one step of ``TRPO._improve_policy``; rollouts, advantages, critic and log are the same.
"""

import math
from typing import Any, ClassVar

import torch as th

from sb3_trpo import TRPO
from sb3_trpo.trust_region.conjugate_gradient import Solution, Stop
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult
from sb3_trpo.trust_region.surrogate import LogProb, Surrogate, log_prob_of_sampled


class GradientDirection(TRPO):
    """
    No natural gradient: the step goes along the gradient, to the same KL.
    """

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        return Solution(g, (fisher @ g).add_(g, alpha=self.cg_damping), 0, math.nan, Stop.MAX_ITERATIONS)


class FullStep(TRPO):
    """
    No line search: the full step is taken, whatever KL and surrogate come to. The noise keeps to its bounds.
    """

    def _line_search(self, surrogate: Surrogate, parameters: FlatParameters, full_step: th.Tensor) -> LineSearchResult:
        project = self._std_bounds()
        parameters.write_(parameters.vector() + full_step)
        if project is not None:
            project()
        kl, improvement = surrogate.evaluate()
        return LineSearchResult(True, 1.0, 1, kl, improvement)


class FixedStep(FullStep):
    """
    A fixed step size in place of the trust region: θ + α F⁻¹g, without a line search.
    """

    # About what the trust region comes to on average over a run (TUNING.md).
    step_size: ClassVar[float] = 0.6

    def _scale_to_trust_region(self, fisher: Fisher, solution: Solution) -> th.Tensor:
        return solution.x * self.step_size


class SampledActions(TRPO):
    """
    The policy gradient of actions as they were sampled, as if they were not clipped on their way to the environment.
    """

    def _log_prob(self) -> LogProb:
        return log_prob_of_sampled


class PolicyGradient(FullStep):
    """
    Plain policy gradient: one Adam step along the gradient.
    """

    # Of .0003, .001, .003 and .01 the best on HalfCheetah, and good on Hopper (TUNING.md).
    step_size: ClassVar[float] = 1e-3

    def _setup_model(self) -> None:
        super()._setup_model()
        self._actor_adam: Any = None

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        return Solution(g, th.zeros_like(g), 0, math.nan, Stop.MAX_ITERATIONS)

    def _scale_to_trust_region(self, fisher: Fisher, solution: Solution) -> th.Tensor:
        if self._actor_adam is None:
            self._adam_point = th.zeros_like(solution.x).requires_grad_()
            self._actor_adam = th.optim.Adam([self._adam_point], lr=self.step_size)
        before = self._adam_point.detach().clone()
        self._adam_point.grad = -solution.x
        self._actor_adam.step()
        return self._adam_point.detach() - before
