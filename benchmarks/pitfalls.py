"""
Make runs fail in every way that the diagnosis knows, and see that it tells them from healthy ones.

    python benchmarks/pitfalls.py                 # run, print the table, write results/pitfalls.json
    python benchmarks/pitfalls.py --only critic   # those whose fault or rule has this word, and write nothing
    python benchmarks/pitfalls.py --shipped       # the short runs alone, as far as they are not measured yet
    python benchmarks/pitfalls.py --update-docs   # and put the table into docs/my-run-does-not-learn.md

The published runs of benchmarks/results/learning are asked, too: the rules that their logs have numbers for must find
nothing there. For the rules on newer keys there are short runs of the same tasks, as `sb3-trpo train` makes them.
"""

import argparse
import contextlib
import functools
import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from campaign.provenance import provenance
from campaign.readme import REPOSITORY, Section
from campaign.tables import table
from faults.cases import CASES, Run

from sb3_trpo import diagnose
from sb3_trpo.cli import main as main_of_package
from sb3_trpo.diagnosis.record import Record, Settings, action_dimensions
from sb3_trpo.diagnosis.rules import find

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "pitfalls.json"
LEARNING = HERE / "results" / "learning"
PAGE = REPOSITORY / "docs" / "my-run-does-not-learn.md"
SECTION = Section("pitfalls", "benchmarks/pitfalls.py")
# Enough for every rule to be asked but that on memory.
SHIPPED_STEPS = 22 * 2048
# Tasks with shipped hyperparameters and without published runs.
OTHER_TASKS = ("Acrobot-v1", "CartPole-v1", "MountainCarContinuous-v0", "Pendulum-v1")
RANGES = (
    "rollout/obs_std_max",
    "rollout/clipped_actions",
    "train/std_min",
    "train/return_mean",
    "train/return_std",
    "train/rejected_by_kl",
    "train/rejected_by_gain",
)


def published_record(values: Mapping[str, Any]) -> Record:
    """
    Read the log of a published run.

    :param values: the JSON of a published run, whose log is averaged between evaluations
    :return: what the rules may know of it
    """
    hyperparams = values["configuration"]["hyperparams"]
    log = {key: np.array(column, dtype=float) for key, column in values["diagnostics"].items()}
    max_std = str(hyperparams.get("max_std", "inf"))
    settings = Settings(
        n_samples=hyperparams["n_envs"] * hyperparams["n_steps"],
        action_dimensions=count_actions(values["configuration"]["task"]),
        gae_lambda=hyperparams["gae_lambda"],
        ent_coef=0.0,
        least_max_std=float(max_std.rpartition("_")[2]),
    )
    return Record(log, settings)


@functools.cache
def count_actions(task: str) -> int:
    """
    Count a task's action dimensions.

    :param task: the id of a task
    :return: its action dimensions
    """
    env = gym.make(task)
    env.close()
    return action_dimensions(env.action_space)


def ask_published() -> dict[str, list[str]]:
    """
    Ask the rules about the published runs.

    :return: the names of the findings in each published run, by its path
    """
    paths = sorted(LEARNING.glob("*/sb3_trpo/seed-*.json"))
    return {
        path.relative_to(LEARNING).as_posix(): [f.name for f in find(published_record(json.loads(path.read_text())))]
        for path in paths
    }


def ask_shipped(task: str) -> dict[str, Any]:
    """
    Train for a short time with the hyperparameters that ship, and ask the rules.

    :param task: to train for, with the hyperparameters that are shipped
    :return: what was found, and the range of each number in the log but for the first entries
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = ["--env", task, "-n", str(SHIPPED_STEPS), "--seed", "100", "--device", "cpu", "--eval-freq", "-1"]
        main_of_package(["train", *arguments, "--num-threads", "1", "--verbose", "0", "--log-folder", folder])
        diagnosis = diagnose(Path(folder) / "trpo" / f"{task}_1")
    columns = {key: diagnosis.record.complete(key)[0] for key in RANGES}
    ranges = {key: [float(f"{x:.3g}") for x in (c.min(), c.max())] for key, c in columns.items() if len(c)}
    return {"found": [finding.name for finding in diagnosis.findings], "ranges": ranges}


def ask(run: Run) -> dict[str, Any]:
    """
    Run a training, and ask the rules about it.

    :param run: to be diagnosed
    :return: what was found, with its evidence, and what was warned of
    """
    findings, warned = run.findings()
    return {
        "found": [finding.name for finding in findings],
        "evidence": {finding.name: finding.evidence for finding in findings},
        "warned": warned,
    }


def pitfalls_table(
    cases: Sequence[Mapping[str, Any]],
    published: Mapping[str, Sequence[str]],
    shipped: Mapping[str, Mapping[str, Any]],
) -> str:
    """
    Write the table of runs and rules.

    :param cases: the results of the runs
    :param published: findings in published runs
    :param shipped: findings in short runs of the same tasks
    :return: the table in Markdown, and a line about the other runs
    """
    rows = []
    for case in cases:
        told = [*case["faulty"]["found"], *case["faulty"]["warned"]]
        mark = f"`{case['rule']}`" if case["rule"] in told else "nothing"
        others = sorted({*told} - {case["rule"]})
        also = f", also {', '.join(f'`{name}`' for name in others)}" if others else ""
        healthy = sorted({*case["healthy"]["found"], *case["healthy"]["warned"]})
        rows.append(
            [
                f"**{case['fault']}**" if case["is_pitfall"] else case["fault"],
                mark + also,
                case["change"],
                ", ".join(f"`{name}`" for name in healthy) or "nothing",
            ]
        )
    n_silent = sum(not names for names in published.values())
    n_shipped = sum(not result["found"] for result in shipped.values())
    return (
        table(["fault", "found", "healthy neighbour", "found there"], rows).replace("---:", "---")
        + f"\n\nOf the {len(published)} published runs {n_silent} have no finding; of the {len(shipped)} short runs "
        f"with the shipped hyperparameters, {n_shipped}."
    )


def ask_cases(word: str | None) -> list[dict[str, Any]]:
    """
    Run the cases one after the other.

    :param word: that the fault or the rule of a case has to have; None for all
    :return: what was found in each case
    """
    results: list[dict[str, Any]] = []
    asked: dict[int, dict[str, Any]] = {}
    for case in CASES:
        if word is not None and word not in f"{case.fault} {case.rule}":
            continue
        start = time.perf_counter()
        # Neighbours that are one run are run once.
        if id(case.healthy) not in asked:
            asked[id(case.healthy)] = ask(case.healthy)
        result = {
            **{name: getattr(case, name) for name in ("fault", "rule", "change", "is_pitfall", "is_live")},
            "faulty": ask(case.faulty),
            "healthy": asked[id(case.healthy)],
        }
        results.append(result)
        print(json.dumps({**result, "seconds": round(time.perf_counter() - start, 1)}, ensure_ascii=False), flush=True)
    return results


def write(measured: Mapping[str, Any]) -> None:
    """
    Write the raw file.

    :param measured: to be the raw file
    """
    RESULTS.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="run the cases with this word alone, and write nothing")
    parser.add_argument("--shipped", action="store_true", help="train the short runs that are not measured yet, alone")
    parser.add_argument("--update-docs", action="store_true", help="put the table into the documentation")
    options = parser.parse_args()
    th.set_num_threads(1)
    if options.only:
        print(pitfalls_table(ask_cases(options.only), {}, {}))
        return
    if options.shipped:
        measured = json.loads(RESULTS.read_text())
    else:
        measured = {"cases": ask_cases(None), "published": ask_published(), "shipped": {}, **provenance()}
        write(measured)
    tasks = sorted({*OTHER_TASKS, *(path.partition("/")[0] for path in measured["published"])})
    for task in tasks:
        if task not in measured["shipped"]:
            measured["shipped"][task] = ask_shipped(task)
            print(json.dumps({task: measured["shipped"][task]}), flush=True)
            write(measured)
    section = pitfalls_table(measured["cases"], measured["published"], measured["shipped"])
    print(section)
    if options.update_docs:
        PAGE.write_text(SECTION.replaced(PAGE.read_text(), section))


if __name__ == "__main__":
    main()
