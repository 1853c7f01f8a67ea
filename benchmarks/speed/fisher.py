"""
Measure one Fisher-vector product of a multilayer perceptron, beside its matrix products alone.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import sb3_contrib
import torch as th
from stable_baselines3.common.distributions import kl_divergence

import sb3_trpo
from sb3_trpo.trust_region.conjugate_gradient import Solution
from sb3_trpo.trust_region.fisher import Fisher
from speed.measure import Contender, alternate
from speed.run import Run
from speed.workload import Setting, Workload, make_workload

# Hidden widths and samples.
CASES = {"64-64": ([64, 64], 2048), "256-256": ([256, 256], 5000)}
REPETITIONS = 21
# A repetition lasts at least so long, in seconds.
DURATION = 0.02


def fisher_product(run: Run) -> dict[str, Any]:
    cases = {}
    for name, (widths, n_samples) in CASES.items():
        n_samples = run.pick(n_samples, 64)
        sizes = {"n_steps": n_samples, "batch_size": n_samples, "policy_kwargs": {"net_arch": widths}}
        workload = make_workload(Setting(sizes), run.pick(2, 0))
        layers = _layers(workload, widths)
        functions = {
            "sb3_trpo": our_product(workload),
            "matrix products": matrix_products(n_samples, layers),
            "sb3-contrib": sb3_contrib_product(workload),
        }
        counts = {key: _count(function, run.pick(DURATION, 0.0)) for key, function in functions.items()}
        contenders = {key: Contender(_repeated(functions[key], counts[key])) for key in functions}
        seconds = alternate(contenders, run.pick(REPETITIONS, 2))
        each = {key: [total / counts[key] for total in totals] for key, totals in seconds.items()}
        cases[name] = {"seconds": each, "flop": flop(n_samples, layers), "samples": n_samples, "layers": layers}
    return {"cases": cases}


def shapes(n_samples: int, layers: Sequence[int]) -> list[tuple[int, int, int]]:
    """
    List the matrix products of one Fisher product.

    :param n_samples: N
    :param layers: widths from inputs to outputs
    :return: (n, k, m) of each product (n, k) x (k, m) in J v and Jᵀ u of the network
    """
    pairs = list(itertools.pairwise(layers))
    with_inputs = [(n_samples, n_in, n_out) for n_in, n_out in pairs]
    # The first layer's inputs do not depend on the parameters.
    forward = [(n_samples, n_in, n_out) for n_in, n_out in pairs[1:]]
    backward = [(n_samples, n_out, n_in) for n_in, n_out in pairs[1:]]
    weights = [(n_out, n_samples, n_in) for n_in, n_out in pairs]
    return [*with_inputs, *forward, *backward, *weights]


def flop(n_samples: int, layers: Sequence[int]) -> int:
    """Return the floating-point operations of the products, two for each multiply-add."""
    return sum(2 * n * k * m for n, k, m in shapes(n_samples, layers))


def matrix_products(n_samples: int, layers: Sequence[int]) -> Callable[[], None]:
    """
    Make a function that does the bare matrix products.

    :return: does all of the products, into memory that is there already; each of them as it is or transposed, whatever
        is faster
    """
    products = [_faster_product(shape) for shape in shapes(n_samples, layers)]

    def multiply() -> None:
        for product in products:
            product()

    return multiply


def _faster_product(shape: tuple[int, int, int]) -> Callable[[], object]:
    n, k, m = shape
    candidates = []
    for left, right in (((n, k), (k, m)), ((m, k), (k, n))):
        a, b, out = th.randn(left), th.randn(right), th.empty(left[0], right[1])
        # Either factor may be at hand transposed, as weights and activations are.
        for x, y in itertools.product((a, a.t().contiguous().t()), (b, b.t().contiguous().t())):
            candidates.append(lambda x=x, y=y, out=out: th.mm(x, y, out=out))
    return min(candidates, key=_quick_time)


def _quick_time(function: Callable[[], object], repetitions: int = 20) -> float:
    function()
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


class _Keeping(sb3_trpo.TRPO):
    """Keeps F of its last update."""

    fisher: Fisher

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        self.fisher = fisher
        return super()._search_direction(fisher, g)


def our_product(workload: Workload) -> Callable[[], th.Tensor]:
    """Return F v, undamped, for the workload's policy and states."""
    update = workload.update(_Keeping)
    model: Any = update.model
    update.prepare()
    model.train()
    v = th.randn(len(model.fisher.parameters))
    return lambda: model.fisher @ v


def sb3_contrib_product(workload: Workload) -> Callable[[], th.Tensor]:
    """Return sb3-contrib's product, which adds the damping."""
    update = workload.update(sb3_contrib.TRPO)
    model: Any = update.model
    update.prepare()
    samples = next(iter(model.rollout_buffer.get(batch_size=None)))
    distribution = model.policy.get_distribution(samples.observations)
    with th.no_grad():
        old = workload.update(sb3_contrib.TRPO)
        old.prepare()
        old_distribution = old.model.policy.get_distribution(samples.observations)
    kl = kl_divergence(distribution, old_distribution).mean()
    objective = distribution.log_prob(samples.actions).mean()
    parameters, _, grad_kl, _ = model._compute_actor_grad(kl, objective)
    v = th.randn(len(grad_kl))
    return lambda: model.hessian_vector_product(parameters, grad_kl, v)


def _layers(workload: Workload, widths: Sequence[int]) -> list[int]:
    n_obs, n_actions = (len(workload.rollout[name][0, 0]) for name in ("observations", "actions"))
    return [n_obs, *widths, n_actions]


def _count(function: Callable[[], object], duration: float) -> int:
    return max(1, round(duration / _quick_time(function, repetitions=3)))


def _repeated(function: Callable[[], object], count: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(count):
            function()

    return repeat
