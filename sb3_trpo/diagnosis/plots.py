"""
The plots of a diagnosis, as SVG that takes its colours from the page around it.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_trpo.diagnosis.record import Record
from sb3_trpo.diagnosis.run_files import STEPS
from sb3_trpo.validation.values import UserError

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise UserError(f"The report needs matplotlib ({error}): install it with `pip install 'sb3-trpo[zoo]'`.") from error

# Points of a line; more would not show.
MAX_POINTS = 1000
# Colours that stand for variables of the page's style sheet.
INK, MUTED, FIRST, SECOND, LIMIT = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
VARIABLES = {INK: "--ink", MUTED: "--muted", FIRST: "--first", SECOND: "--second", LIMIT: "--limit"}
# Not dict[str, ...]: new versions of matplotlib have a type of their own for the keys.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
}


@dataclass(frozen=True)
class Line:
    """
    A line of a plot.

    :param key: the key in the log
    :param label: the name in the legend
    :param color: the colour
    :param has_own_axis: whether it has the axis on the right
    :param is_dashed: whether it is a limit
    """

    key: str
    label: str
    color: str = FIRST
    has_own_axis: bool = False
    is_dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """
    A plot of the report.

    :param name: the name that findings know it by
    :param title: the heading
    :param lines: what is drawn, as far as the log has it
    """

    name: str
    title: str
    lines: tuple[Line, ...]


PANELS = (
    Panel(
        "return",
        "Return of training episodes",
        (
            Line("rollout/ep_rew_mean", "training, mean of recent episodes"),
            Line("eval/mean_reward", "evaluation", SECOND),
        ),
    ),
    Panel(
        "kl",
        "KL(old ‖ new) of each update against its bound δ",
        (Line("train/kl_divergence_loss", "KL"), Line("train/target_kl", "δ", LIMIT, is_dashed=True)),
    ),
    Panel(
        "cg",
        "Conjugate gradient",
        (
            Line("train/cg_iterations", "iterations"),
            Line("train/cg_residual", "relative residual (right)", SECOND, has_own_axis=True),
        ),
    ),
    Panel(
        "step",
        "Line search",
        (
            Line("train/step_fraction", "accepted share of the full step"),
            Line("train/line_search_steps", "tries (right)", SECOND, has_own_axis=True),
        ),
    ),
    Panel(
        "critic",
        "Critic",
        (
            Line("train/explained_variance", "explained variance"),
            Line("train/value_loss", "squared error (right)", SECOND, has_own_axis=True),
        ),
    ),
    Panel(
        "std",
        "Noise in actions",
        (
            Line("train/std", "σ, mean over actions"),
            Line("train/std_min", "σ, smallest", SECOND),
            Line("rollout/clipped_actions", "share of clipped actions", LIMIT),
        ),
    ),
)


def draw(panel: Panel, record: Record) -> str:
    """
    Draw a panel.

    :param panel: the panel
    :param record: the run
    :return: an ``svg`` element; empty if the log has nothing to draw
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": panel.name}):
        figure = Figure(figsize=(6.4, 2.6), layout="constrained")
        axes = figure.add_subplot(xlabel="environment steps")
        right: Axes | None = None
        drawn = []
        for line in panel.lines:
            x, y = _points(record, line.key)
            if not len(x):
                continue
            if line.has_own_axis and right is None:
                right = axes.twinx()
                right.grid(visible=False)
                right.spines["right"].set_visible(True)
            target = right if line.has_own_axis and right is not None else axes
            marker = "." if len(x) < 3 else None
            dashes = (0, (4, 2)) if line.is_dashed else "-"
            drawn += target.plot(x, y, color=line.color, label=line.label, linestyle=dashes, marker=marker)
        if not drawn:
            return ""
        _limit(axes, panel)
        axes.legend(handles=drawn, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(drawn))
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type")))
    return _inline(file.getvalue().decode(), panel)


def _points(record: Record, key: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose the points of a line.

    :param record: the run
    :param key: the key in the log
    :return: steps, or rows where the log has no steps, and values; both empty if there are none
    """
    x, y = record.complete(STEPS, key)
    if not len(x):
        (y,) = record.complete(key)
        x = np.arange(1.0, len(y) + 1.0)
    stride = -(-len(x) // MAX_POINTS) or 1
    return x[::stride], y[::stride]


def _limit(axes: Axes, panel: Panel) -> None:
    if panel.name == "critic":
        # Below that it explains nothing, and how much less than nothing does not matter.
        axes.set_ylim(max(axes.get_ylim()[0], -1.1), 1.05)
    elif panel.name in ("kl", "step", "std"):
        axes.set_ylim(bottom=0.0)


def _inline(svg: str, panel: Panel) -> str:
    """
    Make an element of a page out of a file.

    :param svg: the file
    :param panel: the panel, by whose name its identifiers are told from those of others
    :return: the ``svg`` element, with colours from the page's style sheet
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{panel.name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{panel.title}"', 1)
