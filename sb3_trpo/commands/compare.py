"""
``sb3-trpo compare``: set runs of RL Zoo's ``train`` side by side, and say what differs between them.

Only runs with the same settings share a row; they differ in their seed alone. A run is read as data, for it may come
from strangers: YAML without objects, arrays without pickles, each within a bound on its size.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sb3_trpo.commands.runs import Run, find_runs, read_run
from sb3_trpo.saved_models.refused import RefusedModelError, printable
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError

CONFIDENCE = 0.95


def main() -> None:
    """
    Run the command with the arguments in ``sys.argv``.

    :raises UserError: if there is nothing to compare
    """
    parser = argparse.ArgumentParser(description="Compare runs: mean and 95% interval for each set of settings.")
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="folders of runs, or folders that hold such folders")
    parser.add_argument("-o", "--output", type=pathlib.Path, help="draw the learning curves to this file (.png, .svg)")
    args = parser.parse_args()
    runs = _read_all(args.runs)
    for task in sorted({run.task for run in runs}):
        rows = group([run for run in runs if run.task == task])
        print(f"\n{printable(task)}: return of the last evaluation in training, mean over seeds with its 95% interval")
        print("\n".join(describe(rows)))
    if args.output is not None:
        draw(runs, args.output)
        print(f"\nLearning curves: {args.output}")


def _read_all(folders: Sequence[pathlib.Path]) -> list[Run]:
    runs = []
    for folder in dict.fromkeys(run.resolve() for given in folders for run in find_runs(given)):
        try:
            runs.append(read_run(folder))
        except (OSError, RefusedModelError) as error:
            print(f"{printable(str(folder))} is passed over: {printable(str(error))}.", file=sys.stderr)
    if not runs:
        raise UserError("There is no run to compare: name folders such as logs/trpo/CartPole-v1_1.")
    return runs


def group(runs: Iterable[Run]) -> list[list[Run]]:
    """
    Put runs with the same settings together.

    :param runs: the runs
    :return: the groups, the best mean first; in each one the runs by seed
    """
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    rows = [sorted(members, key=lambda run: run.seed) for members in groups.values()]
    return sorted(rows, key=lambda row: float(np.mean([run.score for run in row])), reverse=True)


def describe(rows: Sequence[Sequence[Run]]) -> list[str]:
    """
    Describe groups of runs of a task.

    :param rows: the groups
    :return: the lines: one for each group, and what belongs to it
    """
    names = differing([row[0].settings for row in rows])
    lines = []
    for row in rows:
        scores = np.array([run.score for run in row])
        settings = (
            ", ".join(f"{name}={row[0].settings.get(name, 'not given')}" for name in names) or "the same settings"
        )
        seeds = ", ".join(run.seed for run in row)
        lines.append(f"  {_mean_and_interval(scores):32} {_count(row):>8}   {printable(settings)}")
        lines.append(f"  {'':32} seeds {printable(seeds)}")
        if len({run.seed for run in row}) < len(row):
            lines.append(f"  {'':32} a seed comes twice: these runs are no independent samples")
    lines += [_compare(rows[0], row, index) for index, row in enumerate(rows[1:], start=2)]
    return lines


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """
    Tell in which settings groups differ.

    :param settings: the settings of each group
    :return: the names, in order
    """
    names = sorted({name for group_settings in settings for name in group_settings})
    return [name for name in names if len({group_settings.get(name) for group_settings in settings}) > 1]


def describe_settings(row: Sequence[Run], names: Sequence[str]) -> str:
    """
    Describe what sets a group apart.

    :param row: the runs of the group
    :param names: the settings in which groups differ
    :return: names and values
    """
    return ", ".join(f"{name}={row[0].settings.get(name, 'not given')}" for name in names)


def _count(row: Sequence[Run]) -> str:
    return f"{len(row)} run{'s' if len(row) > 1 else ''}"


def _mean_and_interval(scores: np.ndarray) -> str:
    if len(scores) < 2:
        return f"{scores.mean():.1f}"
    low, high = interval(scores)
    return f"{scores.mean():.1f} [{low:.1f}, {high:.1f}]"


def interval(scores: np.ndarray) -> tuple[float, float]:
    """
    Compute the interval of a mean by Student's t.

    :param scores: at least two numbers
    :return: the ends of the 95% interval
    """
    stats = _import_scipy()
    # All the same: the test would divide by 0.
    if np.ptp(scores) == 0:
        return float(scores[0]), float(scores[0])
    ends = stats.ttest_1samp(scores, 0.0).confidence_interval(CONFIDENCE)
    return float(ends.low), float(ends.high)


def _compare(first: Sequence[Run], other: Sequence[Run], index: int) -> str:
    a, b = np.array([run.score for run in first]), np.array([run.score for run in other])
    if min(len(a), len(b)) < 2 or np.ptp(a) == np.ptp(b) == 0:
        return f"  Row 1 less row {index}: {a.mean() - b.mean():.1f}; two runs of each would give an interval."
    test = _import_scipy().ttest_ind(a, b, equal_var=False)
    ends = test.confidence_interval(CONFIDENCE)
    return (
        f"  Row 1 less row {index}: {a.mean() - b.mean():.1f} [{ends.low:.1f}, {ends.high:.1f}], p = {test.pvalue:.2g} "
        "(Welch's t-test)."
    )


def _import_scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError(f"compare needs SciPy: install it with {how_to_install('zoo')}.") from error
    return stats


def draw(runs: Sequence[Run], picture: pathlib.Path) -> None:
    """
    Draw mean and interval of the evaluations over environment steps, for each task and each set of settings.

    :param runs: the runs
    :param picture: the file to write
    :raises UserError: if Matplotlib is not installed, or does not know the ending
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"--output needs Matplotlib: install it with {how_to_install('zoo')}.") from error
    tasks = sorted({run.task for run in runs})
    figure = Figure(figsize=(7, 4.5 * len(tasks)), layout="constrained")
    for place, task in enumerate(tasks, start=1):
        title = _plain(task)
        axes = figure.add_subplot(len(tasks), 1, place, title=title, xlabel="environment steps", ylabel="return")
        rows = group([run for run in runs if run.task == task])
        names = differing([row[0].settings for row in rows])
        for row in rows:
            label = describe_settings(row, names) or "return"
            steps, curves = _common_curve(row)
            ends = np.array([interval(column) for column in curves.T]) if len(row) > 1 else None
            (line,) = axes.plot(steps, curves.mean(axis=0), marker=".", label=f"{_plain(label)} ({_count(row)})")
            if ends is not None:
                axes.fill_between(steps, ends[:, 0], ends[:, 1], color=line.get_color(), alpha=0.2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(picture, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--output is {str(picture)!r}, which can't be written: {error}") from error


def _common_curve(row: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the evaluations that all runs of a group have.

    :param row: the runs
    :return: their steps, (E,), and the mean returns, (runs, E)
    """
    steps = row[0].steps
    for run in row[1:]:
        steps = np.intersect1d(steps, run.steps)
    return steps, np.array([run.returns[np.searchsorted(run.steps, steps)] for run in row])


def _plain(text: str) -> str:
    # Matplotlib reads what stands between two dollars as a formula.
    return printable(text).replace("$", r"\$")
