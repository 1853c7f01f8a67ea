"""
How the time of an update grows, as a picture.
"""

from pathlib import Path
from typing import Any

import numpy as np
from campaign.pictures import COLOURS
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the creation date and version the same data make the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
