"""
How good conjugate gradient's direction is with an LSTM, whose weights have no Kronecker factors, and what it takes.

    python benchmarks/memory_direction.py

At some updates of a training, the direction of the default tolerances is set beside plain conjugate gradient of 5 to 40
iterations on the same g and F, and judged as in the speed benchmarks: (g·x)/√(xᵀFx), over that of 40 iterations. The
shares of the processor time say what fewer iterations could save.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch as th
from campaign.tables import table
from memory import LSTM, TASKS, TRPOS
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import RecurrentTRPO
from sb3_trpo.trust_region.conjugate_gradient import Solution, conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher

OUT = Path(__file__).parent / "results" / "memory-direction" / "TABLE.md"
TASKS_JUDGED = ("TMaze",)
JUDGED = (3, 8)
ITERATIONS = (5, 15, 40)


class JudgedTRPO(RecurrentTRPO):
    """Says at some updates how good its search direction is, and how long the search takes in all."""

    lines: list[list[str]]
    search_seconds = 0.0

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        start = time.process_time()
        solution = super()._search_direction(fisher, g)
        self.search_seconds += time.process_time() - start
        if self._n_updates + 1 in JUDGED:
            qualities = [self._quality(fisher, g, self._plain(fisher, g, n).x) for n in ITERATIONS]
            all_of_them = [self._quality(fisher, g, solution.x), *qualities[:-1]]
            shares = [f"{quality / qualities[-1]:.3f}" for quality in all_of_them]
            self.lines.append([str(self._n_updates + 1), str(solution.iterations), *shares])
        return solution

    def _plain(self, fisher: Fisher, g: th.Tensor, n: int) -> Solution:
        def damped(v: th.Tensor) -> th.Tensor:
            return (fisher @ v).add_(v, alpha=self.cg_damping)

        return conjugate_gradient(damped, g, max_steps=n, residual_tol=0.0, progress_tol=0.0)

    @staticmethod
    def _quality(fisher: Fisher, g: th.Tensor, x: th.Tensor) -> float:
        return float(g.dot(x)) / math.sqrt(float(x.dot(fisher @ x)))


def main() -> None:
    th.set_num_threads(1)
    lines, shares = [], []
    for name in TASKS_JUDGED:
        task = TASKS[name]
        env: Any = make_vec_env(task.make, task.n_envs, seed=100)
        model = JudgedTRPO(
            "MlpLstmPolicy", VecNormalize(env) if task.normalize else env, policy_kwargs=LSTM, seed=100, **TRPOS
        )
        model.lines = []
        # 1. What it takes, in the updates that are not judged.
        start = time.process_time()
        model.learn((JUDGED[0] - 1) * model.n_steps * model.n_envs)
        share = model.search_seconds / (time.process_time() - start)
        shares.append(f"{share:.0%} on {name}")
        # 2. How good it is.
        model.learn((JUDGED[-1] - JUDGED[0] + 1) * model.n_steps * model.n_envs, reset_num_timesteps=False)
        lines += [[name, *line] for line in model.lines]
    header = ["task", "update", "iterations", "direction", *(f"of {n} plain iterations" for n in ITERATIONS[:-1])]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        "## Search directions through time\n\nMade by `python benchmarks/memory_direction.py`: (g·x)/√(xᵀFx) over that "
        f"of {ITERATIONS[-1]} plain iterations of\nconjugate gradient. The search takes {' and '.join(shares)} of the "
        f"processor time of `learn()`.\n\n{table(header, lines)}\n"
    )
    print(OUT.read_text())


if __name__ == "__main__":
    main()
