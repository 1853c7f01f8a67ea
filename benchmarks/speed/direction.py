"""
Row on the tolerance of conjugate gradient: what the search direction is worth, and what it costs, in the course of
training on each task.
"""

import functools
from typing import Any

import gymnasium as gym
import torch as th

import sb3_trpo
from sb3_trpo.trust_region.conjugate_gradient import Solution, conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher
from speed.quality import quality
from speed.run import Run
from speed.updates import DEFAULTS
from speed.workload import Setting

TASKS = ("HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Hopper-v5", "Humanoid-v5", "Swimmer-v5")
# Values of cg_progress_tol; the others keep their defaults.
TOLERANCES = (0.0075, 0.01, 0.0125, 0.015, 0.02)
# Numbers of plain iterations that the direction is set against: sb3-contrib's default, and RL Zoo's.
PLAIN = (15, 25)
# The updates whose direction is judged, counted from 0.
JUDGED = (3, 10, 20, 30, 40, 60, 80)


def direction(run: Run) -> dict[str, Any]:
    judged = run.pick(JUDGED, (0, 1))
    return {
        "judged": list(judged),
        "tasks": {task: _judge(task, judged, run) for task in run.pick(TASKS, TASKS[-1:])},
    }


def _judge(task: str, judged: tuple[int, ...], run: Run) -> list[dict[str, dict[str, float]]]:
    """
    Judge directions along one training.

    :param task: id of the environment
    :param judged: updates
    :return: of each of them, and by tolerance: the number of products, and the direction's quality over that of each
        number of plain iterations
    """
    hyperparameters = {**DEFAULTS, "n_steps": run.pick(DEFAULTS["n_steps"], 64)}
    setting = Setting(hyperparameters, make_env=functools.partial(gym.make, task))
    model: Any = setting.make_model(_Judged, setting.make_envs())
    model.judged, model.verdicts = judged, []
    model.learn((max(judged) + 1) * hyperparameters["n_steps"])
    return model.verdicts


class _Judged(sb3_trpo.TRPO):
    """Tries other tolerances on the way, at some of its updates."""

    judged: tuple[int, ...]
    verdicts: list[dict[str, dict[str, float]]]

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        if self._n_updates in self.judged:
            self.verdicts.append(self._verdict(fisher, g))
        return super()._search_direction(fisher, g)

    def _verdict(self, fisher: Fisher, g: th.Tensor) -> dict[str, dict[str, float]]:
        def damped(v: th.Tensor) -> th.Tensor:
            return (fisher @ v).add_(v, alpha=self.cg_damping)

        solve = functools.partial(conjugate_gradient, damped, g)
        plain = {n: quality(g, fisher, solve(max_steps=n, residual_tol=0.0).x) for n in PLAIN}
        preconditioner = self._make_preconditioner(fisher)
        verdict = {}
        for tolerance in TOLERANCES:
            solution = solve(
                max_steps=self.cg_max_steps,
                residual_tol=self.cg_residual_tol,
                progress_tol=tolerance,
                preconditioner=preconditioner,
            )
            own = quality(g, fisher, solution.x)
            ratios = {str(n): own / other for n, other in plain.items()}
            verdict[str(tolerance)] = {"products": float(solution.iterations), **ratios}
        return verdict
