"""
Make the report from the raw files under benchmarks/results, and from nothing else.

It is benchmarks/RESULTS.md, docs/images/learning_curves.png and the table of results in the main README:

    python benchmarks/report.py

With `--list FOLDER` it prints one line for each variant in a campaign's folder instead, best first: for tuning.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from campaign import tables
from campaign.algorithms import ALGORITHMS, read_hyperparameters, title
from campaign.pictures import draw_all
from campaign.readme import README, RESULTS
from campaign.records import Records, load
from twin_runs import twin_table

HERE = Path(__file__).parent

HEAD = """# Results

Made by `python benchmarks/report.py` from the files under [results/](results); not to be edited by hand. Each run's
file names its hyperparameters, versions and the command that repeats it. How the runs are made: [README.md](README.md);
what was tried on the way to our hyperparameters: [TUNING.md](TUNING.md).

A score is the mean deterministic return of the *final* policy over 100 episodes, on environments of its own with frozen
normalisation statistics. Intervals are 95% bootstrap intervals of the mean over seeds (percentile, 9999 resamples), std
has n − 1 in its denominator, IQM is the interquartile mean. A **number of seeds in bold** marks an incomplete cell.
"""

TARGETS = """
Ours, one set of hyperparameters for all tasks (Swimmer has a γ, λ and δ of its own), against what was to be reached
at 1M steps.
"""
RETURNS = """
Peers have RL Zoo's hyperparameters, plain policy gradient has ours. The last column is the mean of the last 100
training episodes, with exploration.
"""
DIFFERENCES = """
The mean of our scores less the mean of another's; interval and p of Welch's t-test (two-sided), each by itself.
"""
SAMPLE_EFFICIENCY = """
Steps at the first evaluation (20 episodes) whose mean reaches a return: the median over seeds, where a seed that never
gets there counts as infinity (how many seeds got there).
"""
STABILITY = """
std/mean of the scores over seeds (number of seeds).
"""
TIME = """
Median over the runs above: two side by side on two cores, one thread each.
"""
MONOTONIC = """
The true return J of the stochastic policy before and after single updates, on the same episodes (common random
numbers); one-sided paired t-tests, each update by itself, and corrected for their number (false discovery rate of 5%).
If no update changed J, 5% of the tests at p < .05 would still say that it fell. To reach: under 1% worse.
"""
SENSITIVITY = """
Score, mean ± std over seeds, with one hyperparameter changed; after the semicolon less ours on the same seeds. An
asterisk: another mean than that of our ten seeds, by Dunnett's test for all of a task's variants together at 5%.
"""
ABLATIONS = """
Score, mean ± std over seeds, with one part taken out, replaced or added; after the semicolon less the full one on the
same seeds. `callback=null` has neither an average at the end nor a horizon that grows, the other `callback` only the
average, as the full one has on HalfCheetah. An asterisk: another mean than that of the full one's ten seeds, by
Dunnett's test for all of a task's variants together at 5%.
"""

OTHER_TASKS = """
Tasks that nothing was tuned on, ours as they come: MuJoCo's by the rule of [TUNING.md](TUNING.md), the others by their
entry. sb3-contrib's TRPO has RL Zoo's entry, and without one RL Zoo's set for MuJoCo. Mean ± std of the scores (seeds);
p of Welch's t-test.
"""

MASKS = """
Where hundreds of actions exist and a few are allowed, and in PettingZoo's Connect Four against an opponent that plays
at random: `python benchmarks/masks.py`. Here, as under "Memory", the return is that of training episodes, with
exploration: the mean of those in the last tenth of the steps, ± the standard deviation over seeds. "Steps to" is the
median over seeds of when the mean of 20 episodes first reached a return (how many did);
where a game pays 1 or -1, luck can bring 20 of them there. What was not run is not listed.
"""
MEMORY = """
Where observations hide the state: `python benchmarks/memory.py`. RecurrentPPO has RL Zoo's tuned hyperparameters on
CartPole and Pendulum, on the T-maze its own defaults. Memory and the stack share one set, with changes for CartPole
([TUNING.md](TUNING.md)) and RecurrentPPO's γ on Pendulum.
"""
MEMORY_VARIANTS = """
RecurrentTRPO with one thing changed: `python benchmarks/memory_variants.py`.
"""

LEARNING = (
    ("Targets", TARGETS, tables.targets),
    ("Returns at 1M steps", RETURNS, tables.returns),
    ("Ours against the others", DIFFERENCES, tables.differences),
    ("Sample efficiency", SAMPLE_EFFICIENCY, tables.sample_efficiency),
    ("Stability", STABILITY, tables.stability),
    ("Time", TIME, tables.times),
)

# What may differ between runs of the same settings, and each one's name in a run's values.
ORIGINS: dict[str, Callable[[dict[str, Any]], str]] = {
    "states of the package's sources": lambda values: values["sources"]["sb3_trpo_sha256"],
    "sets of versions": lambda values: ", ".join(map(" ".join, values["versions"].items())),
    "kinds of processor": lambda values: values["machine"]["cpu"],
}


def learning_sections(records: Records) -> list[str]:
    """
    Write the sections of the learning campaign.

    :param records: of the learning campaign
    :return: a section for each question
    """
    sections = []
    for heading, text, make in LEARNING:
        sections.append(_section(heading, text, make, records))
        if heading == "Returns at 1M steps":
            sections.append("![Learning curves](../docs/images/learning_curves.png)\n")
    return sections


def comparison_sections(results: Path, reference: Records) -> tuple[list[str], list[Records]]:
    """
    Write the sections of the campaigns that compare with it.

    :param results: folder of all campaigns
    :param reference: the learning campaign
    :return: a section for each campaign, and what they were made from
    """
    monotonic = load(results / "monotonic")
    sensitivity = load(results / "sensitivity")
    ablations = load(results / "ablations")

    def against(name: str) -> Callable[[Records], str]:
        return lambda records: tables.against_reference(records, reference, name)

    others = load(results / "other-tasks")
    sections = [
        _section("Other tasks", OTHER_TASKS, tables.other_tasks, others),
        _section("Monotonic improvement", MONOTONIC, tables.monotonic, monotonic),
        _section("Sensitivity", SENSITIVITY, against("our hyperparameters"), sensitivity),
        _section("Ablations", ABLATIONS, against("full"), ablations),
    ]
    return sections, [others, monotonic, sensitivity, ablations]


# Of the comparisons with the PPO twins: the folder, the heading and the text.
TWINS = (
    ("masks", "Masks", MASKS),
    ("memory", "Memory", MEMORY),
    ("memory-variants", "What memory needs", MEMORY_VARIANTS),
)


def twin_sections(results: Path) -> list[str]:
    """
    Write the sections on masks and memory.

    :param results: folder of all campaigns
    :return: a section for each comparison with the PPO twins
    """
    tables_of = ((heading, text, twin_table(results / folder)) for folder, heading, text in TWINS)
    return [f"## {heading}\n{text}\n{table or 'No runs yet.'}\n" for heading, text, table in tables_of]


def other_sections(results: Path) -> list[str]:
    """
    Collect the tables of other benchmarks.

    :param results: folder of all campaigns
    :return: the tables that other benchmarks keep beside their raw files, as ``TABLE.md``
    """
    return [path.read_text().strip() + "\n" for path in sorted(results.glob("*/TABLE.md"))]


def remarks(all_records: list[Records]) -> list[str]:
    """
    Say what cannot be seen from the tables.

    :return: what cannot be seen from the tables: files left out, and results from more than one state of the software
        or kind of processor
    """
    lines = [f"- {problem}" for records in all_records for problem in records.problems]
    for subject, name in ORIGINS.items():
        counts = Counter(name(run.values) for records in all_records for run in records.runs())
        if len(counts) > 1:
            listed = "; ".join(f"{origin} ({count} runs)" for origin, count in counts.items())
            lines.append(f"- The runs come from {len(counts)} {subject}: {listed}.")
    lines += [f"- {line}" for records in all_records for line in _outdated(records)]
    return ["## Remarks\n\n" + "\n".join(lines) + "\n"] if lines else []


def _outdated(records: Records) -> Iterator[str]:
    """
    Find results with hyperparameters that are no longer the present ones.

    :param records: of one campaign
    :return: for each cell that was made with other hyperparameters than the algorithm's present ones, which differ
    """
    for cell in records.cells.values():
        run = next(iter(cell.runs.values())).run
        if run.label or run.algo not in ALGORITHMS:
            continue
        hyperparams, _ = read_hyperparameters(run.algo, run.task)
        differences = replace(run, hyperparams=hyperparams).differences(run)
        if differences:
            yield f"{run.task}, {title(run.algo)}: hyperparameters have changed since ({differences})."


def _section(heading: str, text: str, make: Callable[[Records], str], records: Records) -> str:
    body = make(records) if records.cells else "No runs yet."
    return f"## {heading}\n{text}\n{body}\n"


def make_report(results: Path, report: Path, picture: Path, readme: Path) -> list[Path]:
    """
    Make the report.

    :param results: folder of all campaigns
    :param report: the Markdown file to write
    :param picture: the learning curves to write, if there are any
    :param readme: whose table of results to write, if there are any
    :return: what was written
    """
    learning = load(results / "learning")
    reach = {task: target.reach for task, target in tables.TARGETS.items()}
    drawn = draw_all(learning, [*tables.TARGETS], reach, picture)
    sections, others = comparison_sections(results, learning)
    tables_of_others = [*twin_sections(results), *other_sections(results)]
    parts = [HEAD, *learning_sections(learning), *sections, *tables_of_others, *remarks([learning, *others])]
    report.write_text("\n".join(part for part in parts if drawn or not part.startswith("![")))
    if not drawn:
        return [report]
    readme.write_text(RESULTS.replaced(readme.read_text(), tables.overview(learning)))
    return [report, picture, readme]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of all campaigns")
    parser.add_argument("--report", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs/images/learning_curves.png")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--list", type=Path, metavar="FOLDER", help="only print what lies in one campaign's folder")
    options = parser.parse_args()
    if options.list is not None:
        records = load(options.list)
        print("\n".join([tables.listing(records), *records.problems]))
        return
    for path in make_report(options.results, options.report, options.picture, options.readme):
        print(path)


if __name__ == "__main__":
    main()
