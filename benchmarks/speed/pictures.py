"""
How the time of an update grows, and where that of a training goes, as pictures.
"""

from pathlib import Path
from typing import Any

import numpy as np
from campaign.pictures import COLOURS
from matplotlib import colormaps
from matplotlib.figure import Figure

from speed.measure import spread

LABELS = {"samples": "samples of an update", "parameters": "parameters of the actor"}


def draw_growth(measured: dict[str, Any], path: Path) -> None:
    """
    Draw how time grows with size.

    :param measured: by the row ``growth``
    :param path: of the picture
    """
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    for panel, (what, label) in zip(figure.subplots(1, 2), LABELS.items(), strict=True):
        for name, colour in zip(("sb3_trpo", "sb3-contrib"), COLOURS, strict=False):
            points = [point for point in measured[what]["points"] if name in point["seconds"]]
            sizes = np.array([point["size"] for point in points], dtype=float)
            times = np.array([spread(point["seconds"][name]).median for point in points])
            slope = measured[what]["slopes"].get(name)
            text = name if slope is None else f"{name}, slope {slope:.2f}"
            panel.loglog(sizes, times, "o-", color=colour, label=text)
            if name == "sb3_trpo":
                panel.loglog(sizes, times[0] * sizes / sizes[0], "--", color="0.5", linewidth=1, label="linear")
        panel.set(xlabel=label, ylabel="seconds of `train()`")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    _save(figure, path)


def draw_budget(measured: dict[str, Any], path: Path) -> None:
    """
    Draw where the time of a training goes, as one bar of its parts.

    :param measured: by the row ``budget``
    :param path: of the picture
    """
    figure = Figure(figsize=(9.2, 2.4), layout="constrained")
    panel = figure.subplots()
    whole, left = sum(measured["seconds"].values()), 0.0
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for (part, seconds), colour in zip(measured["seconds"].items(), colours, strict=False):
        panel.barh([0], [seconds], left=left, color=colour, label=f"{part}: {seconds:.1f} s, {seconds / whole:.0%}")
        left += seconds
    panel.set(xlabel="seconds", xlim=(0, whole), yticks=[])
    panel.set_title(f"{measured['timesteps']:,} steps of {measured['task']}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the creation date and version the same data make the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
