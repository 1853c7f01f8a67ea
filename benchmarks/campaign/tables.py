"""
The tables of the report, from records of results.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from campaign.algorithms import COMPARED, title
from campaign.plan import SEEDS_OF_OTHERS, SEEDS_OF_OURS, SEEDS_OF_STUDIES
from campaign.records import Cell, Records
from campaign.statistics import Improvement, differ_from_control, difference, judge_updates, steps_to, summarize


@dataclass(frozen=True)
class Target:
    """
    What is to be reached on a task.

    :param claimed: the highest return published for TRPO anywhere, -v2 to -v4; NaN if none
    :param reach: mean return to reach at 1M steps
    :param spread: std/mean over seeds to stay under
    :param thresholds: returns whose steps are counted
    """

    claimed: float
    reach: float
    spread: float
    thresholds: tuple[int, ...]


TARGETS = {
    "HalfCheetah-v5": Target(8234, 8300, 0.08, (3000, 5000, 7000)),
    "Walker2d-v5": Target(4933, 5000, 0.12, (2000, 3500, 5000)),
    "Ant-v5": Target(4982, 5000, 0.09, (2000, 3500, 5000)),
    "Hopper-v5": Target(3618, 3650, 0.13, (2000, 3000, 3600)),
    "Humanoid-v5": Target(4123, 4200, 0.15, (1000, 2500, 4000)),
    "Swimmer-v5": Target(366, 366, 0.02, (100, 200, 350)),
}
# Steps in which a threshold should be reached.
STEP_TARGETS = {("HalfCheetah-v5", 7000): 450_000}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown, with numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def share(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def seeds(cell: Cell, expected: int) -> str:
    """Return how many seeds there are; marked if some are missing."""
    return str(len(cell.runs)) if len(cell.runs) >= expected else f"**{len(cell.runs)} of {expected}**"


def learning_seeds(cell: Cell) -> str:
    return seeds(cell, len(SEEDS_OF_OURS if cell.variant == "sb3_trpo" else SEEDS_OF_OTHERS))


def study_seeds(cell: Cell) -> str:
    return seeds(cell, len(SEEDS_OF_STUDIES))


def ordered(records: Records) -> list[Cell]:
    """Return the compared algorithms' cells, tasks in the order of the targets."""
    tasks = [*TARGETS, *(task for task in records.tasks if task not in TARGETS)]
    return [records.cells[task, algo] for task in tasks for algo in COMPARED if (task, algo) in records.cells]


def targets(records: Records) -> str:
    """
    Ours against what was to be reached.
    """
    rows = []
    for task, target in TARGETS.items():
        row = [task, number(target.claimed), number(target.reach)]
        cell = records.cells.get((task, "sb3_trpo"))
        if cell is None:
            rows.append([*row, "**not run**", "", "", share(target.spread), ""])
            continue
        found = summarize(cell.scores)
        row += [f"{number(found.mean)} ({learning_seeds(cell)})", _verdict(found.mean, target.reach)]
        spread = "reached" if found.spread <= target.spread else "too high" if found.n > 1 else ""
        rows.append([*row, share(found.spread), share(target.spread), spread])
    return table(["task", "highest claimed", "to reach", "mean (seeds)", "", "std/mean", "at most", ""], rows)


def _verdict(value: float, goal: float) -> str:
    return "reached" if value >= goal else f"{(goal - value) / goal:.0%} short"


def returns(records: Records) -> str:
    rows = []
    for cell in ordered(records):
        found = summarize(cell.scores)
        low_high = f"[{number(found.low)}, {number(found.high)}]"
        training = [run.values["training_score"] for run in cell.runs.values()]
        numbers = [number(value) for value in (found.mean, found.std, found.iqm)]
        last = number(float(np.mean([value for value in training if value is not None] or [math.nan])))
        rows.append(
            [cell.task, title(cell.variant), learning_seeds(cell), *numbers, low_high, share(found.spread), last]
        )
    header = ["task", "algorithm", "seeds", "mean", "std", "IQM", "95% interval", "std/mean", "training episodes"]
    return table(header, rows)


def differences(records: Records) -> str:
    """
    Ours less each of the others.
    """
    rows = []
    for cell in ordered(records):
        ours = records.cells.get((cell.task, "sb3_trpo"))
        if ours is None or cell is ours:
            continue
        found = difference(ours.scores, cell.scores)
        low_high = f"[{number(found.low)}, {number(found.high)}]"
        seeds_of_both = f"{learning_seeds(ours)}, {learning_seeds(cell)}"
        p = f"{found.p:.2g}" if math.isfinite(found.p) else "–"
        rows.append([cell.task, title(cell.variant), seeds_of_both, number(found.mean), low_high, p])
    return table(["task", "ours less", "seeds", "difference", "95% interval", "p"], rows)


def stability(records: Records) -> str:
    """
    std/mean: one row a task, one column an algorithm.
    """
    return _beside_each_other(records, lambda cell: f"{share(summarize(cell.scores).spread)} ({learning_seeds(cell)})")


def overview(records: Records) -> str:
    """
    mean ± std over seeds: one row a task, one column an algorithm.
    """
    return _beside_each_other(records, lambda cell: _mean_and_std(cell, learning_seeds(cell)))


def other_tasks(records: Records) -> str:
    """
    Ours beside sb3-contrib's on tasks that nothing was tuned on.
    """
    expected, rows = len(SEEDS_OF_OTHERS), []
    for task in dict.fromkeys(cell.task for cell in ordered(records)):
        pair = [records.cells.get((task, algo)) for algo in ("sb3_trpo", "sb3_contrib")]
        means = [_mean_and_std(cell, seeds(cell, expected)) if cell else "–" for cell in pair]
        ours, theirs = pair
        p = difference(ours.scores, theirs.scores).p if ours and theirs else math.nan
        rows.append([task, *means, f"{p:.2g}" if math.isfinite(p) else "–"])
    return table(["task", title("sb3_trpo"), title("sb3_contrib"), "p"], rows)


def _beside_each_other(records: Records, show: Callable[[Cell], str]) -> str:
    cells = ordered(records)
    columns = [algo for algo in COMPARED if any(cell.variant == algo for cell in cells)]
    rows = []
    for task in dict.fromkeys(cell.task for cell in cells):
        found = (records.cells.get((task, algo)) for algo in columns)
        rows.append([task, *(show(cell) if cell else "–" for cell in found)])
    return table(["task", *(title(algo) for algo in columns)], rows)


def sample_efficiency(records: Records) -> str:
    """
    Median over seeds of the steps to each threshold; a seed that never gets there counts as infinity.
    """
    rows = []
    for cell in ordered(records):
        if cell.task in TARGETS:
            reached = [_steps(cell, threshold) for threshold in TARGETS[cell.task].thresholds]
            rows.append([cell.task, title(cell.variant), *reached])
    return table(["task", "algorithm", "first return", "second return", "third return"], rows)


def _steps(cell: Cell, threshold: int) -> str:
    timesteps, curves = cell.curves()
    steps = np.array([steps_to(threshold, timesteps, curve) for curve in curves])
    median = float(np.median(steps))
    within = f"{median / 1000:.0f}k" if math.isfinite(median) else "–"
    goal = STEP_TARGETS.get((cell.task, threshold)) if cell.variant == "sb3_trpo" else None
    aim = f", to reach: {goal / 1000:.0f}k" if goal else ""
    return f"{threshold}: {within} ({np.isfinite(steps).sum()} of {len(steps)}{aim})"


def times(records: Records) -> str:
    rows = []
    for cell in ordered(records):
        per_second = np.median([run.values["training_steps_per_second"] for run in cell.runs.values()])
        minutes = np.median([run.values["seconds"]["total"] for run in cell.runs.values()]) / 60
        rows.append([cell.task, title(cell.variant), f"{per_second:.0f}", f"{minutes:.1f}"])
    return table(["task", "algorithm", "training steps/s", "minutes per run, evaluations included"], rows)


def listing(records: Records) -> str:
    """
    Every cell, whatever its label, with the end of its training log: for tuning.
    """
    logged = ("train/std", "train/explained_variance", "train/kl_divergence_loss", "rollout/ep_len_mean")
    rows = []
    for cell in sorted(records.cells.values(), key=lambda cell: (cell.task, -cell.scores.mean())):
        found = summarize(cell.scores)
        last = [[run.values["diagnostics"].get(key, [None])[-1] for run in cell.runs.values()] for key in logged]
        means = [np.mean([value for value in values if value is not None] or [math.nan]) for values in last]
        training = [run.values["training_score"] or math.nan for run in cell.runs.values()]
        rows.append(
            [
                cell.task,
                cell.variant,
                ",".join(str(seed) for seed in cell.runs),
                f"{number(found.mean)} ± {number(found.std)}",
                number(float(np.mean(training))),
                *(f"{mean:.3g}" for mean in means),
                f"{np.median([run.values['training_steps_per_second'] for run in cell.runs.values()]):.0f}",
            ]
        )
    return table(["task", "variant", "seeds", "score", "training", *logged, "steps/s"], rows)


def monotonic(records: Records) -> str:
    rows = []
    for cell in records.cells.values():
        before, after = cell.stacked("returns_before"), cell.stacked("returns_after")
        rows.append([cell.task, title(cell.variant), "all", study_seeds(cell), *_judged(judge_updates(before, after))])
        protocol = next(iter(cell.runs.values())).run.protocol
        stage_of_run = np.repeat(protocol["stages"], protocol["n_updates"])
        stage = np.tile(stage_of_run, len(cell.runs))
        for start in protocol["stages"]:
            judged = judge_updates(before[stage == start], after[stage == start])
            rows.append(["", "", f"from {start // 1000}k", "", *_judged(judged)])
    header = ["task", "algorithm", "stage", "seeds", "updates", "J estimated lower", "J lower, p < .05"]
    return table([*header, "of these, 5% FDR", "J higher, p < .05", "mean change of J"], rows)


def _judged(found: Improvement) -> list[str]:
    low, high = found.worse_interval
    return [
        str(found.n),
        f"{found.lower / found.n:.1%}",
        f"{found.worse / found.n:.1%} [{low:.1%}, {high:.1%}]",
        f"{found.worse_corrected / found.n:.1%}",
        f"{found.better / found.n:.1%}",
        f"{found.change:+.1f}",
    ]


def against_reference(records: Records, reference: Records, name: str) -> str:
    """
    One row a variant, one column a task; above them what they are compared with, on all of their seeds. Variants may
    have different seeds, so that each cell also has its mean difference from the reference on its own. An asterisk
    marks cells that differ from the reference on all seeds there are of it.

    :param records: the variants
    :param reference: the learning campaign
    :param name: of the reference's row
    """
    tasks = records.tasks
    ours = {task: reference.cells.get((task, "sb3_trpo")) for task in tasks}
    rows = []
    if reference.cells:
        full = []
        for task, cell in ours.items():
            used = {seed for variant in records.of_task(task) for seed in variant.runs}
            full.append(_compared(cell and cell.restricted_to(used)))
        rows.append([name, *full])
    different = {task: _different(records.of_task(task), ours[task]) for task in tasks}
    for variant in records.variants:
        rows.append([title(variant)])
        for task in tasks:
            mark = "*" if variant in different[task] else ""
            rows[-1].append(_compared(records.cells.get((task, variant)), ours[task]) + mark)
    return table(["variant", *tasks], rows)


def _different(cells: Iterable[Cell], reference: Cell | None) -> set[str]:
    """
    Find the variants that differ from a reference.

    :param cells: a task's variants
    :param reference: what they are compared with
    :return: those whose mean score is another
    """
    if reference is None:
        return set()
    scores = {cell.variant: cell.scores for cell in cells}
    return set(compress(scores, differ_from_control(list(scores.values()), reference.scores)))


def _compared(cell: Cell | None, reference: Cell | None = None) -> str:
    if cell is None or not cell.runs:
        return "–"
    shared = cell.runs.keys() & reference.runs.keys() if reference else set()
    if not reference or not shared:
        return _mean_and_std(cell, study_seeds(cell))
    change = cell.restricted_to(shared).scores - reference.restricted_to(shared).scores
    return f"{_mean_and_std(cell, study_seeds(cell))}; {change.mean():+.0f}"


def _mean_and_std(cell: Cell, n_seeds: str) -> str:
    found = summarize(cell.scores)
    std = f" ± {number(found.std)}" if found.n > 1 else ""
    return f"{number(found.mean)}{std} ({n_seeds})"
