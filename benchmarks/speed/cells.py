"""
What tables are made of: what was measured of a row, and the texts of times, ratios and verdicts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from speed.measure import Spread, spread

Results = dict[tuple[str, int], dict[str, Any]]

OURS, THEIRS = "sb3_trpo", "sb3-contrib"
QUALITY_AT_LEAST = 0.99
# A critic that is worse by more than this, and by more than the noise, is not as good.
MAX_EXCESS = 0.01


def of_row(found: Results, row: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the threads, and what was measured."""
    return ((threads, values["measured"]) for (name, threads), values in found.items() if name == row)


def with_quartiles(value: Spread, digits: int = 1) -> str:
    return f"{value.median:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def milliseconds(seconds: list[float]) -> str:
    median = 1000 * spread(seconds).median
    return f"{median:.0f} ms" if median >= 100 else f"{median:.3g} ms"


def amount(measured: dict[str, Any], name: str) -> str:
    """Return the time of a repetition, or steps per second where these are counted."""
    seconds = measured["seconds"][name]
    return f"{measured['steps'] / spread(seconds).median:.0f}/s" if "steps" in measured else milliseconds(seconds)


def judge(value: float, at_least: float) -> str:
    return "reached" if value >= at_least else f"**{1 - value / at_least:.0%} short**"


def judge_at_most(value: float, at_most: float) -> str:
    return "reached" if value <= at_most else f"**{value / at_most - 1:.0%} over**"


def equal_quality(measured: dict[str, Any], peer: str) -> tuple[str, str]:
    """
    Say how equal the contenders' results are.

    :return: of the direction and of the critic; empty where they aren't compared, as with another algorithm
    """
    if peer != THEIRS or "quality" not in measured:
        return "", ""
    quality = measured["quality"]
    worst, against_theirs = min(quality["to_plain"]), min(quality["to_sb3_contrib"])
    low = "" if worst >= QUALITY_AT_LEAST else " **too low**"
    direction = f"{worst:.3f}{low}; {against_theirs:.3f}"
    if "critic_loss" not in measured:
        return direction, ""
    losses = {name: np.array(measured["critic_loss"][name]) for name in (OURS, peer)}
    scale = losses[peer].mean()
    ours, theirs = losses[OURS] / scale, losses[peer] / scale
    noise = ours.std() + theirs.std()
    high = " **too high**" if ours.mean() - 1 > max(MAX_EXCESS, 2 * noise) else ""
    return direction, f"{ours.mean():.3f} ± {ours.std():.3f} (theirs ± {theirs.std():.3f}){high}"
