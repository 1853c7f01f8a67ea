"""
Draw the pictures of docs/hyperparameters.md, and that of KL in the main README, from the raw files under
benchmarks/results, and from nothing else.

    python benchmarks/docs_pictures.py
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from campaign.records import Cell, Records, load
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
OURS = "sb3_trpo"
AVERAGE_ONLY = "sb3_trpo@callback=sb3_trpo.PolicyAverage"

# For each picture the variants in it, with their names.
CURVES = {
    "min_std": {OURS: "as shipped", "sb3_trpo@min_std=0.0": "min_std=0"},
    "max_std": {OURS: "as shipped", "sb3_trpo@max_std=null": "max_std=None"},
    "noise_correlation": {OURS: "as shipped (0)", "sb3_trpo@noise_correlation=0.5": "noise_correlation=0.5"},
    "growing_horizon": {OURS: "as shipped", AVERAGE_ONLY: "γ stays as it is"},
}
# The shipped values of what the sensitivity campaign has changed, by task.
SHIPPED = {
    "target_kl": dict.fromkeys(TASKS, 0.03),
    "gae_lambda": {"HalfCheetah-v5": 0.8, "Hopper-v5": 0.97, "Walker2d-v5": 0.97},
}


def draw_curves(learning: Records, ablations: Records, variants: dict[str, str]) -> Figure:
    """
    Draw the mean return against steps, with and without one thing.

    :param learning: the learning campaign, with what ships
    :param ablations: what was changed
    :param variants: their names in the picture
    :return: a picture with a curve for each variant, for each task
    """
    figure, places = _figure("return of evaluations")
    for axes, task in zip(places, TASKS, strict=True):
        for colour, (variant, label) in enumerate(variants.items()):
            steps, curves = _cell(learning, ablations, task, variant).curves()
            axes.plot(steps, curves.mean(axis=0), color=f"C{colour}", label=label)
            axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=f"C{colour}", alpha=0.15)
        axes.set(title=task, xlabel="environment steps")
    places[0].legend()
    return figure


def draw_final(learning: Records, ablations: Records) -> Figure:
    """
    Draw the returns of the final policies, with and without an average.

    :param learning: unused, for what ships has more than an average
    :param ablations: what was changed
    :return: a picture of the final returns with and without the average of policies, both without a growing horizon
    """
    figure, places = _figure("return of the final policy")
    for axes, task in zip(places, TASKS, strict=True):
        for place, variant in enumerate(("sb3_trpo@callback=null", AVERAGE_ONLY)):
            scores = _cell(learning, ablations, task, variant).scores
            axes.plot(np.full(len(scores), place), scores, "o", color=f"C{place}")
            axes.plot([place - 0.2, place + 0.2], [scores.mean()] * 2, color=f"C{place}")
        axes.set(title=task, xticks=(0, 1), xticklabels=("last policy", "average"), xlim=(-0.5, 1.5))
    return figure


def draw_sensitivity(learning: Records, sensitivity: Records) -> Figure:
    """
    Draw the final return against a hyperparameter's value.

    :param learning: the learning campaign, with what ships
    :param sensitivity: the runs with other values
    :return: a picture of the final return against each changed hyperparameter
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    places = figure.subplots(len(SHIPPED), len(TASKS), sharey="col")
    for row, (name, shipped) in zip(places, SHIPPED.items(), strict=True):
        for axes, task in zip(row, TASKS, strict=True):
            values = {shipped[task]: OURS}
            for cell in sensitivity.of_task(task):
                changed, _, value = cell.variant.removeprefix("sb3_trpo@").partition("=")
                if changed == name:
                    values[float(value)] = cell.variant
            cells = [_cell(learning, sensitivity, task, values[value]).scores for value in sorted(values)]
            axes.errorbar(sorted(values), [s.mean() for s in cells], [s.std(ddof=1) for s in cells], marker="o")
            axes.plot(shipped[task], cells[sorted(values).index(shipped[task])].mean(), "o", color="C1", zorder=3)
            axes.set(title=task, xlabel=name, xscale="log" if name == "target_kl" else "linear")
            axes.grid(alpha=0.3)
    for row in places:
        row[0].set_ylabel("return, mean ± std")
    return figure


def draw_kl(values: dict[str, Any]) -> Figure:
    """
    Draw the KL divergence of each update beside its bound.

    :param values: what kl_table.py has measured
    :return: a picture with a point for each update
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot(ylabel="KL of an update")
    for colour, (implementation, offset) in enumerate((("sb3_trpo", -0.12), ("sb3-contrib", 0.12))):
        for place, task in enumerate(values["kl"]):
            measured = values["kl"][task][implementation]
            label = implementation if place == 0 else None
            axes.plot(np.full(len(measured), place + offset), measured, "o", alpha=0.4, color=f"C{colour}", label=label)
    dimensions = values["action_dimensions"]
    labels = [f"{task}\n{dimensions[task]} action dimension{'s'[: dimensions[task] > 1]}" for task in values["kl"]]
    axes.set_xticks(range(len(labels)), labels, fontsize="small")
    axes.axhline(values["target_kl"], color="grey", linestyle="--", label="target_kl")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _figure(label: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9, 3), layout="constrained")
    places = figure.subplots(1, len(TASKS))
    places[0].set_ylabel(label)
    for axes in places:
        axes.grid(alpha=0.3)
    return figure, places


def _cell(learning: Records, changed: Records, task: str, variant: str) -> Cell:
    """
    Select a variant's runs.

    :return: the variant's runs, on the seeds that the changed runs have
    """
    if variant != OURS:
        return changed.cells[task, variant]
    seeds = {seed for cell in changed.of_task(task) for seed in cell.runs}
    return learning.cells[task, OURS].restricted_to(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of all campaigns")
    parser.add_argument("--pictures", type=Path, default=IMAGES, help="folder to write the pictures to")
    options = parser.parse_args()
    learning, ablations, sensitivity = (
        load(options.results / name) for name in ("learning", "ablations", "sensitivity")
    )
    figures = {name: draw_curves(learning, ablations, variants) for name, variants in CURVES.items()}
    figures["policy_average"] = draw_final(learning, ablations)
    figures["sensitivity"] = draw_sensitivity(learning, sensitivity)
    figures["kl"] = draw_kl(json.loads((options.results / "kl_table.json").read_text()))
    for name, figure in figures.items():
        path = options.pictures / f"{name}.png"
        # Without the version of Matplotlib, so that the same results give the same file.
        figure.savefig(path, dpi=100, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    main()
