"""
The section "Speed" of the report, from the rows' files and from nothing else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from campaign.tables import table

from speed import run as results
from speed.cells import (
    OURS,
    THEIRS,
    Results,
    amount,
    equal_quality,
    judge,
    judge_at_most,
    milliseconds,
    of_row,
    with_quartiles,
)
from speed.large_tables import budget, many, variants
from speed.measure import ratio, spread
from speed.profiling import PARTS
from speed.rows import ROWS
from speed.twins import WITHOUT

# Name and title, by the row.
PICTURES = {
    "growth": ("growth.png", "Time of an update by samples and by parameters"),
    "budget": ("budget.png", "Time of a training by its parts"),
}


@dataclass(frozen=True)
class Comparison:
    """
    A ratio that the report judges.

    :param row: name of the row
    :param peer: name of the contender beside ours
    :param at_least: the ratio to reach
    """

    row: str
    peer: str
    at_least: float


COMPARISONS = (
    Comparison("defaults", THEIRS, 4.0),
    Comparison("zoo", THEIRS, 5.0),
    Comparison("wide", THEIRS, 4.0),
    *(Comparison(row, THEIRS, 5.0) for row in ("wide-relu", "wide-elu", "wider-relu", "wider-elu")),
    Comparison("images", THEIRS, 5.0),
    Comparison("defaults", "PPO", 8.0),
    Comparison("learn-1", THEIRS, 3.0),
    Comparison("learn-8", THEIRS, 2.5),
    Comparison("learn-subproc-8", THEIRS, 1.5),
    Comparison("learn-subproc-64", THEIRS, 1.5),
    Comparison("lstm", "RecurrentPPO", 1.0),
    Comparison("envpool", THEIRS, 4.0),
)
FISHER_AT_MOST = 1.3
MASKS_AT_MOST = 1.15
MEMORY_AT_MOST = 0.25

HEAD = """Made by `{command}` (how: [README.md](README.md#speed)). Ours and the peers in turns in one process:
the median of the repetitions; of ratios also the quartiles of the repetitions' own ratios, in brackets. Above 1 we are
faster. *Direction*: (g·x)/√(xᵀFx) of our search direction over that of plain conjugate gradient with sb3-contrib's
number of iterations on the same F and damping; after the semicolon over that of the direction that sb3-contrib really
takes; both the lowest of several updates. *Critic loss*: mean squared error over the rollout after the update, ours
over the mean of theirs, mean ± standard deviation of the repetitions.
"""


def load(out: Path) -> Results:
    """
    Load what was measured.

    :param out: folder of the results
    :return: the contents of the files there are, by row and threads
    """
    found = {}
    for name, row in ROWS.items():
        for threads in row.threads:
            values = results.read(out, name, threads)
            if values is not None:
                found[name, threads] = values
    return found


def is_on_gpu(found: Results) -> bool:
    return any(values.get("device", "cpu") != "cpu" for values in found.values())


def comparisons(found: Results) -> str:
    """
    Ours against each peer, and what was to be reached.
    """
    lines = []
    for comparison in COMPARISONS:
        for threads, measured in of_row(found, comparison.row):
            seconds = measured["seconds"]
            factor = ratio(seconds[comparison.peer], seconds[OURS])
            verdict = judge(factor.median, comparison.at_least)
            lines.append(
                [
                    f"{ROWS[comparison.row].title}; {comparison.peer}",
                    str(threads),
                    amount(measured, OURS),
                    amount(measured, comparison.peer),
                    with_quartiles(factor),
                    "" if is_on_gpu(found) else f"≥ {comparison.at_least:g}: {verdict}",
                    *equal_quality(measured, comparison.peer),
                ]
            )
    header = ["what; peer", "threads", "ours", "peer", "ratio", "to reach", "direction", "critic loss"]
    return table(header, lines)


def policy_steps(found: Results) -> str:
    """
    All peers at the same number of conjugate gradient iterations.
    """
    lines = []
    for row in ("policy-step", "wide-policy-step"):
        for threads, measured in of_row(found, row):
            for name, seconds in measured["seconds"].items():
                factor = ratio(measured["seconds"][THEIRS], seconds)
                lines.append([ROWS[row].title, str(threads), name, milliseconds(seconds), with_quartiles(factor, 2)])
    return table(["what", "threads", "", "time", "sb3-contrib's time over it"], lines)


def fisher_products(found: Results) -> str:
    """
    One product against its matrix products alone.
    """
    lines = []
    for threads, measured in of_row(found, "fisher"):
        for name, case in measured["cases"].items():
            seconds = case["seconds"]
            factor = ratio(seconds[OURS], seconds["matrix products"])
            rate = case["flop"] / spread(seconds["matrix products"]).median / 1e9
            verdict = judge_at_most(factor.median, FISHER_AT_MOST)
            lines.append(
                [
                    f"{name}, N={case['samples']}",
                    str(threads),
                    *(milliseconds(seconds[key]) for key in (OURS, "matrix products")),
                    f"{rate:.0f} GFLOP/s",
                    with_quartiles(factor, 2),
                    f"≤ {FISHER_AT_MOST}: {verdict}",
                    milliseconds(seconds[THEIRS]),
                ]
            )
    header = ["network", "threads", "ours", "matrix products alone", "their rate", "ratio", "to reach", "sb3-contrib"]
    return table(header, lines)


def directions(found: Results) -> str:
    """
    Write the table of the search direction, by task and tolerance.
    """
    for _, measured in of_row(found, "direction"):
        verdicts = measured["tasks"]
        tolerances = list(next(iter(verdicts.values()))[0])
        lines = [[task, *(_direction(of_task, tol) for tol in tolerances)] for task, of_task in verdicts.items()]
        every = [verdict for of_task in verdicts.values() for verdict in of_task]
        lines.append(["all", *(_direction(every, tol) for tol in tolerances)])
        judged = ", ".join(map(str, measured["judged"]))
        caption = (
            "By `cg_progress_tol`, at its defaults otherwise, in updates "
            f"{judged}: the lowest quality over that of 15 and over that of 25 plain iterations; Fisher products, mean."
        )
        return caption + "\n\n" + table(["task", *tolerances], lines)
    return ""


def _direction(verdicts: list[dict[str, dict[str, float]]], tolerance: str) -> str:
    of_tolerance = [verdict[tolerance] for verdict in verdicts]
    worst = [min(values[n] for values in of_tolerance) for n in of_tolerance[0] if n != "products"]
    products = np.mean([values["products"] for values in of_tolerance])
    return f"{', '.join(f'{value:.3f}' for value in worst)}; {products:.1f}"


def memory(found: Results) -> str:
    """
    Memory of an update with images.
    """
    lines = []
    for _, measured in of_row(found, "images"):
        if "memory" not in measured:
            continue
        theirs = measured["memory"][THEIRS]["extra"]
        for name, values in measured["memory"].items():
            share = values["extra"] / theirs
            verdict = ""
            if name == OURS:
                verdict = f"≤ {MEMORY_AT_MOST:g}: {'reached' if share <= MEMORY_AT_MOST else '**missed**'}"
            lines.append([name, str(measured["samples"]), *_memory(values), f"{share:.2f}", verdict])
        for n_images, values in measured["growing"].items():
            lines.append([f"{OURS}, with fisher_chunk_size", n_images, *_memory(values), "", ""])
    header = ["", "images", "rollout", "extra", "extra beyond one copy of the rollout", "extra over sb3-contrib's", ""]
    return table(header, lines)


def _memory(values: dict[str, float]) -> list[str]:
    beyond = values["extra"] - values["rollout"]
    return [f"{value:.0f} MiB" for value in (values["rollout"], values["extra"], beyond)]


def growth(found: Results) -> str:
    """
    Write the table of times by size, and of the slopes of the fits.
    """
    parts = []
    for _, measured in of_row(found, "growth"):
        for what in ("samples", "parameters"):
            points = measured[what]["points"]
            lines = [
                [
                    f"{point['size']:,}",
                    *(
                        milliseconds(point["seconds"][name]) if name in point["seconds"] else ""
                        for name in (OURS, THEIRS)
                    ),
                    f"{point['cg_iterations']:.0f}",
                ]
                for point in points
            ]
            slopes = measured[what]["slopes"]
            lines.append(
                [
                    "slope of log time in log size",
                    *(f"{slopes[n]:.2f}" if n in slopes else "" for n in (OURS, THEIRS)),
                    "",
                ]
            )
            parts.append(table([what, "ours", "sb3-contrib", "our CG iterations"], lines))
    return "\n\n".join(parts)


def profiles(found: Results) -> str:
    """
    Where an iteration of ``learn()`` goes: sb3-contrib's (before), ours (after).
    """
    lines = []
    for _, measured in of_row(found, "profile"):
        columns = [(n_envs, name) for n_envs in measured["milliseconds"] for name in (THEIRS, OURS)]
        header = ["part, in ms", *(f"{name}, {n_envs} env." for n_envs, name in columns)]
        values = [measured["milliseconds"][n_envs][name] for n_envs, name in columns]
        for part in PARTS:
            lines.append([part, *(f"{column[part]:.1f}" if part in column else "–" for column in values)])
        lines.append(["sum", *(f"{sum(column.values()):.1f}" for column in values)])
        return table(header, lines)
    return ""


def masks(found: Results) -> str:
    """Compare updates with masks to updates without."""
    lines = []
    for threads, measured in of_row(found, "masks"):
        for actions, seconds in measured["seconds"].items():
            (with_masks,) = (name for name in seconds if name != WITHOUT)
            factor = ratio(seconds[with_masks], seconds[WITHOUT])
            goal = f"≤ {MASKS_AT_MOST:g}: {judge_at_most(factor.median, MASKS_AT_MOST)}"
            times = [milliseconds(seconds[name]) for name in (with_masks, WITHOUT)]
            lines.append([actions, str(threads), *times, with_quartiles(factor, 2), goal])
    return table(["actions", "threads", "with masks", WITHOUT, "ratio", "to reach"], lines)


def settings_tried(found: Results) -> str:
    """
    Write the table of the search for the best settings of each side.
    """
    lines = []
    for threads, measured in of_row(found, "envpool"):
        for name, tried in measured["tried"].items():
            for setting, seconds in sorted(tried.items(), key=lambda pair: pair[1]):
                lines.append([f"{name}: {setting}", str(threads), f"{measured['steps'] / seconds:.0f}"])
    return table(["setting", "threads of torch", "steps/s, tried once"], lines)


def _machine(machine: dict[str, Any]) -> str:
    return ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine.get("gpus", [])])


def remarks(found: Results) -> str:
    """
    Say under what conditions the rows were measured.

    :return: on what machine, with what software, and what is missing
    """
    values = list(found.values())
    machines = {_machine(v["machine"]) for v in values}
    versions = {", ".join(" ".join(pair) for pair in v["versions"].items()) for v in values}
    sources = {v["sources"]["sb3_trpo_sha256"] for v in values}
    busiest = max(v["load_before"] for v in values)
    lines = [
        f"- Machine: {'; '.join(sorted(machines))}. Load average before the rows: at most {busiest:.1f}.",
        f"- Versions: {'; '.join(sorted(versions))}.",
    ]
    if len(sources) > 1:
        lines.append(f"- The rows come from {len(sources)} states of the package's sources.")
    if any(v["quick"] for v in values):
        lines.append("- **Some rows were made with `--quick`, on tiny sizes: their figures mean nothing.**")
    lines += [
        f"- {row}: {peer} is not installed ({reason})."
        for (row, threads), v in found.items()
        for peer, reason in v["measured"].get("missing", {}).items()
        if threads == 1
    ]
    wanted = [name for name, row in ROWS.items() if row.on_gpu or not is_on_gpu(found)]
    absent = [name for name in wanted if not any((name, threads) in found for threads in ROWS[name].threads)]
    if absent:
        lines.append(f"- Not measured: {', '.join(absent)}.")
    return "\n".join(lines)


SECTIONS = (
    ("", comparisons, tuple({comparison.row for comparison in COMPARISONS})),
    ("### Thousands of environments in one array", many, ("many",)),
    ("### Fisher-vector product", fisher_products, ("fisher",)),
    (
        "### Policy step, at equal numbers of conjugate gradient iterations",
        policy_steps,
        ("policy-step", "wide-policy-step"),
    ),
    ("### Search direction", directions, ("direction",)),
    ("### Memory with images", memory, ("images",)),
    ("### Growth", growth, ("growth",)),
    ("### Where an iteration of `learn()` goes", profiles, ("profile",)),
    ("### Where the time of `make train` goes", budget, ("budget",)),
    ("### `learn()` of other kinds", variants, ("variants",)),
    ("### Updates with action masks", masks, ("masks",)),
    ("### Settings tried with EnvPool and without", settings_tried, ("envpool",)),
)


def section(found: Results, folder: str = "speed") -> str:
    """
    Write the report's section on speed.

    :param found: from ``load``
    :param folder: of the files, in that of all results
    :return: the report's section, in Markdown
    """
    on_gpu = is_on_gpu(found)
    parts = ["## Speed on a GPU" if on_gpu else "## Speed"]
    parts.append(HEAD.format(command="python benchmarks/speed.py" + " --device cuda" * on_gpu))
    for heading, make, rows in SECTIONS:
        if any(row in rows for row, _ in found):
            parts += [heading, make(found)] if heading else [make(found)]
            if rows[0] in PICTURES:
                name, title = PICTURES[rows[0]]
                parts.append(f"![{title}](results/{folder}/{name})")
    if found:
        parts.append(remarks(found))
    return "\n\n".join(parts) + "\n"
