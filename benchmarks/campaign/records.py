"""
A folder of results, checked and grouped by task and variant.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from campaign import results
from campaign.results import Result, ResultError


@dataclass(frozen=True)
class Cell:
    """
    The repetitions of one experiment.

    :param task: Gymnasium id
    :param variant: the algorithm's key, or ``key@label``
    :param runs: by seed, ascending
    """

    task: str
    variant: str
    runs: dict[int, Result]

    @property
    def scores(self) -> np.ndarray:
        """Return the score of each seed, (n,)."""
        return np.array([run.values["score"] for run in self.runs.values()])

    def restricted_to(self, seeds: set[int]) -> "Cell":
        return Cell(self.task, self.variant, {seed: run for seed, run in self.runs.items() if seed in seeds})

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps of the evaluations (n_evaluations,) and the mean return of each (n_seeds, n_evaluations)."""
        arrays = [run.arrays for run in self.runs.values()]
        timesteps = arrays[0]["timesteps"]
        return timesteps, np.array([run["results"].mean(axis=1) for run in arrays])

    def stacked(self, name: str) -> np.ndarray:
        """
        Stack an array of all runs.

        :param name: of an array
        :return: the runs' arrays, one after the other
        """
        return np.concatenate([run.arrays[name] for run in self.runs.values()])


@dataclass
class Records:
    """
    The valid results of a campaign.

    :param cells: by task and variant
    :param problems: what is in the folder but not in the cells, and what is doubtful about the cells
    """

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of_task(self, task: str) -> Iterator[Cell]:
        return (cell for (cells_task, _), cell in self.cells.items() if cells_task == task)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.cells))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(variant for _, variant in self.cells))

    def runs(self) -> Iterator[Result]:
        return (run for cell in self.cells.values() for run in cell.runs.values())


def load(folder: Path) -> Records:
    """
    Load the results of a campaign.

    :param folder: of one campaign; it need not exist
    :return: all that is valid in it; the rest is named
    """
    records = Records()
    for arrays in sorted(folder.glob("*/*/seed-*.npz")):
        if not arrays.with_suffix(".json").exists():
            records.problems.append(f"{_short(arrays)}: arrays without a JSON file")
    for path in sorted(folder.glob("*/*/seed-*.json")):
        try:
            result = results.read(path)
        except ResultError as error:
            records.problems.append(f"{_short(path)}: {error}")
            continue
        run = result.run
        if run.path(folder) != path:
            records.problems.append(f"{_short(path)}: holds {run.name}")
            continue
        cell = records.cells.setdefault((run.task, run.variant), Cell(run.task, run.variant, {}))
        cell.runs[run.seed] = result
    _check_cells(records)
    return records


def _check_cells(records: Records) -> None:
    for key, cell in list(records.cells.items()):
        records.cells[key] = Cell(cell.task, cell.variant, dict(sorted(cell.runs.items())))
        settings: dict[str, list[int]] = {}
        for seed, run in cell.runs.items():
            settings.setdefault(run.run.settings_hash, []).append(seed)
        if len(settings) > 1:
            # Their mean would be a mean of nothing in particular.
            del records.cells[key]
            groups = " and ".join(f"seeds {seeds}" for seeds in settings.values())
            records.problems.append(f"{cell.task}/{cell.variant}: {groups} were run with different settings; left out")


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
