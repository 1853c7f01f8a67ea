"""
What an update is worth, so that speed is compared at equal quality.

A search direction x is judged by (g·x) / √(xᵀFx): the improvement, to first order, that the surrogate gains per step of
a given KL divergence, whatever the direction's length. g and F are those of the whole rollout, F without damping.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import sb3_contrib
import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver
from sb3_contrib.trpo import trpo as sb3_contrib_trpo

import sb3_trpo
from sb3_trpo.trust_region.conjugate_gradient import Solution, conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.surrogate import LogProb, log_prob_of_sampled
from speed.workload import Update, Workload


def quality(g: th.Tensor, fisher: Fisher, x: th.Tensor) -> float:
    """
    Judge a direction: its improvement for a step of given length.

    :param g: ∇L, (P,)
    :param fisher: F
    :param x: a direction, (P,)
    :return: (g·x) / √(xᵀFx)
    """
    return float(g.dot(x) / x.dot(fisher @ x).sqrt())


class Judged(sb3_trpo.TRPO):
    """
    Our update, which compares its search direction with others in passing: F is at hand only there. The gradient is the
    one that sb3-contrib has, of actions as they were sampled.
    """

    # sb3-contrib's direction by parameter, and its number of iterations.
    rival: dict[str, th.Tensor]
    n_iterations: int
    verdict: dict[str, float]

    def _log_prob(self) -> LogProb:
        return log_prob_of_sampled

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        solution = super()._search_direction(fisher, g)
        plain = conjugate_gradient(
            lambda v: (fisher @ v).add_(v, alpha=self.cg_damping), g, max_steps=self.n_iterations, residual_tol=0.0
        )
        name_of = {id(parameter): name for name, parameter in self.policy.named_parameters()}
        rival = th.cat([self.rival[name_of[id(parameter)]] for parameter in fisher.parameters])
        own = quality(g, fisher, solution.x)
        self.verdict = {
            "to_plain": own / quality(g, fisher, plain.x),
            "to_sb3_contrib": own / quality(g, fisher, rival),
            "iterations": float(solution.iterations),
        }
        return solution


def direction_quality(workload: Workload, n_iterations: int, repetitions: int) -> dict[str, list[float]]:
    """
    Compare our direction with others of the same gradient.

    :param workload: policy and rollout
    :param n_iterations: of sb3-contrib's conjugate gradient
    :param repetitions: of our update, whose preconditioner depends a little on the order of the samples
    :return: for each of them the quality of our direction over that of plain conjugate gradient with so many
        iterations, the same F and the same damping (``to_plain``); over that of the direction that sb3-contrib itself
        takes (``to_sb3_contrib``), whose F is smaller by the number of actions and so more damped; and the iterations
        that ours took
    """
    theirs = workload.update(sb3_contrib.TRPO, n_critic_updates=1)
    ours = workload.update(Judged, n_critic_updates=1)
    model: Any = ours.model
    model.rival, model.n_iterations = sb3_contrib_direction(theirs), n_iterations
    verdicts = []
    for _ in range(repetitions):
        ours.prepare()
        model.train()
        verdicts.append(model.verdict)
    return {key: [verdict[key] for verdict in verdicts] for key in verdicts[0]}


def sb3_contrib_direction(update: Update) -> dict[str, th.Tensor]:
    """
    Take the direction of sb3-contrib's update.

    :param update: sb3-contrib's
    :return: the search direction that it takes, by the parameters' names
    """
    update.prepare()
    with _recorded_direction() as directions:
        update.model.train()
    actor = [(name, p) for name, p in update.model.policy.named_parameters() if "value" not in name]
    pieces = directions[0].split([parameter.numel() for _, parameter in actor])
    return dict(zip([name for name, _ in actor], pieces, strict=True))


@contextlib.contextmanager
def _recorded_direction() -> Iterator[list[th.Tensor]]:
    solve, found = conjugate_gradient_solver, []

    def recording(*args: Any, **kwargs: Any) -> th.Tensor:
        found.append(solve(*args, **kwargs).detach().clone())
        return found[-1]

    with mock.patch.object(sb3_contrib_trpo, "conjugate_gradient_solver", recording):
        yield found
