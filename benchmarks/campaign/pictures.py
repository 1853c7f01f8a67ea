"""
Learning curves as pictures: mean over seeds, and its 95% bootstrap interval as a band.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from campaign.algorithms import COMPARED, title
from campaign.records import Cell, Records
from campaign.statistics import interval

COLUMNS = 3
# Okabe and Ito's palette, which people with colour blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_all(records: Records, tasks: Sequence[str], targets: dict[str, float], path: Path) -> bool:
    """
    Draw the learning curves of all tasks.

    :param records: of the learning campaign
    :param tasks: one panel each; those without results are left out
    :param targets: returns to reach, as dashed lines
    :param path: of the picture
    :return: whether there was anything to draw
    """
    shown = [task for task in tasks if any(cell.variant in COMPARED for cell in records.of_task(task))]
    if not shown:
        return False
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, task in zip(panels, shown, strict=False):
        _draw_task(panel, records, task, targets.get(task))
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    handles = {label: handle for panel in panels for handle, label in _legend(panel)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the creation date and version the same data make the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _legend(axes: Axes) -> Iterator[tuple[Any, str]]:
    return zip(*axes.get_legend_handles_labels(), strict=True)


def _draw_task(axes: Axes, records: Records, task: str, target: float | None) -> None:
    axes.set(title=task, xlabel="environment steps", ylabel="return")
    for algo, colour in zip(COMPARED, COLOURS, strict=False):
        cell = records.cells.get((task, algo))
        if cell is not None:
            _draw_cell(axes, cell, colour)
    if target is not None:
        axes.axhline(target, color="0.4", linestyle="--", linewidth=1, label="to reach")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
    axes.grid(alpha=0.3)


def _draw_cell(axes: Axes, cell: Cell, colour: str) -> None:
    timesteps, returns = cell.curves()
    axes.plot(timesteps, returns.mean(axis=0), color=colour, label=title(cell.variant))
    if len(returns) > 1:
        low, high = np.array([interval(point) for point in returns.T]).T
        axes.fill_between(timesteps, low, high, color=colour, alpha=0.2, linewidth=0)
