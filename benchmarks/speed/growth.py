"""
Measure how the time of ``train()`` grows with samples and parameters.
"""

from typing import Any

import sb3_contrib

import sb3_trpo
from speed.measure import alternate, slope, spread
from speed.run import Run
from speed.updates import DEFAULTS, N_UPDATES
from speed.workload import Setting, Update, Workload, make_workload, resized

SAMPLES = (2048, 8192, 32_768, 131_072, 1_048_576)
WIDTHS = (64, 128, 256, 512, 1024, 2240)
REPETITIONS = 2
# sb3-contrib is shown for comparison, as far as it does not take minutes.
MAX_SAMPLES_OF_PEER, MAX_PARAMETERS_OF_PEER = 40_000, 300_000
NOISE = 0.01


def growth(run: Run) -> dict[str, Any]:
    return {"samples": _with_samples(run), "parameters": _with_parameters(run)}


def _with_samples(run: Run) -> dict[str, Any]:
    n_steps = run.pick(DEFAULTS["n_steps"], 64)
    workload = make_workload(Setting({**DEFAULTS, "n_steps": n_steps}, device=run.device), run.pick(N_UPDATES, 0))
    points = []
    for n in run.pick(SAMPLES, (64, 128)):
        points.append(_point(n, resized(workload, n, NOISE), n <= MAX_SAMPLES_OF_PEER, run))
    return _with_slopes(points)


def _with_parameters(run: Run) -> dict[str, Any]:
    points = []
    for width in run.pick(WIDTHS, (8, 16)):
        hyperparameters = {**DEFAULTS, "policy_kwargs": {"net_arch": [width, width]}}
        if run.quick:
            hyperparameters["n_steps"] = 64
        workload = make_workload(Setting(hyperparameters, device=run.device), n_updates=1)
        n_parameters = _n_actor_parameters(workload)
        points.append(_point(n_parameters, workload, n_parameters <= MAX_PARAMETERS_OF_PEER, run))
    return _with_slopes(points)


def _point(size: int, workload: Workload, with_peer: bool, run: Run) -> dict[str, Any]:
    updates: dict[str, Update] = {"sb3_trpo": workload.update(sb3_trpo.TRPO)}
    if with_peer:
        updates["sb3-contrib"] = workload.update(sb3_contrib.TRPO)
    contenders = {name: update.contender for name, update in updates.items()}
    # Where one update takes seconds, there is nothing to warm up.
    seconds = alternate(contenders, run.pick(REPETITIONS, 1), warm_up=int(size <= MAX_PARAMETERS_OF_PEER))
    logged = updates["sb3_trpo"].model.logger.name_to_value
    return {"size": size, "seconds": seconds, "cg_iterations": float(logged["train/cg_iterations"])}


def _n_actor_parameters(workload: Workload) -> int:
    return sum(tensor.numel() for name, tensor in workload.policy_state.items() if "value" not in name)


def _with_slopes(points: list[dict[str, Any]]) -> dict[str, Any]:
    slopes = {}
    for name in ("sb3_trpo", "sb3-contrib"):
        shown = [point for point in points if name in point["seconds"]]
        if len(shown) > 1:
            sizes = [point["size"] for point in shown]
            slopes[name] = slope(sizes, [spread(point["seconds"][name]).median for point in shown])
    return {"points": points, "slopes": slopes}
