"""
What a run leaves in its folder, read as data: numbers and a few settings, within bounds on their size.

The folder may be a stranger's. No text out of it is kept, but for names of columns in the form of a log's keys.
"""

import base64
import csv
import io
import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_trpo.diagnosis.record import Record, Settings, action_dimensions
from sb3_trpo.saved_models.archive import read_archive
from sb3_trpo.saved_models.objects import read_object
from sb3_trpo.saved_models.refused import RefusedModelError, printable
from sb3_trpo.validation.values import UserError

PROGRESS = "progress.csv"
STEPS = "time/total_timesteps"
KEY = re.compile(r"[a-z_]{1,40}/[a-z_]{1,40}")
# Bytes and columns of a table; 20,000 updates take 16 MB.
MAX_BYTES = 64 * 2**20
MAX_COLUMNS = 200
MAX_MODEL_BYTES = 2**30
# Beyond any number in single precision, and small enough to be squared.
LARGEST = 1e100

Table = dict[str, np.ndarray]


def read_record(path: Path) -> Record:
    """
    Read what is known of a run.

    :param path: the folder of a run, or a ``progress.csv``
    :return: the run
    :raises UserError: if there is no log, or it can't be read
    """
    folder = path if path.is_dir() else path.parent
    newest = path / PROGRESS if path.is_dir() else path
    if not newest.is_file():
        # A log folder of `sb3-trpo train` holds a folder for each algorithm, which hold the runs.
        runs = sorted(file.parent for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{PROGRESS}"))
        if runs:
            example = printable(str(runs[-1]), max_characters=300)
            raise UserError(f"{path} is no run, but holds {len(runs)}: name one, such as {example}.")
        raise UserError(
            f"{path} has no {PROGRESS}, which `sb3-trpo train` writes; in Python, "
            'model.set_logger(stable_baselines3.common.logger.configure(folder, ["csv"])) does.'
        )
    older = sorted(folder.glob(f"until_*.{newest.name}"), key=_number)
    log = _joined([_read_table(file) for file in [*older, newest]])
    model = _find_model(folder) if path.is_dir() else None
    settings, planned = _read_model(model) if model is not None else (Settings(), None)
    steps = log.get(STEPS, np.empty(0))
    done = float(np.nanmax(steps)) if np.isfinite(steps).any() else 0.0
    progress = min(1.0, done / planned) if planned and done > 0.0 else 1.0
    return Record(log, settings, progress)


def _number(path: Path) -> int:
    match = re.match(r"until_(\d{1,9})\.", path.name)
    return int(match[1]) if match else 0


def _read_table(path: Path) -> Table:
    """
    Read the numbers of a log.

    :param path: a file of comma-separated values, whose first line has the keys
    :return: a column for each key of a log, (n,); NaN where there is no number
    :raises UserError: if it is no such file, or too large
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES // 2**20} MiB, which no log of a run is.")
    text = path.read_bytes()[:MAX_BYTES].decode(errors="replace")
    # The process may have been killed while it wrote the last line.
    whole = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    reader = csv.reader(io.StringIO(whole.replace("\0", ""), newline=""))
    try:
        header = next(reader, [])
        columns = {key: i for i, key in enumerate(header[:MAX_COLUMNS]) if KEY.fullmatch(key)}
        numbers = {key: array("d") for key in columns}
        for row in reader:
            for key, i in columns.items():
                numbers[key].append(_to_number(row[i]) if i < len(row) else math.nan)
    except csv.Error as error:
        raise UserError(f"{path} is no table of comma-separated values: {error}.") from error
    if not numbers:
        raise UserError(f"{path} has no columns of a log, such as train/value_loss.")
    return {key: np.array(column) for key, column in numbers.items()}


def _to_number(text: str) -> float:
    try:
        number = float(text[:40])
    except ValueError:
        return math.nan
    return number if abs(number) < LARGEST else math.nan


def _joined(tables: Iterable[Table]) -> Table:
    """
    Put the logs of a run that was resumed one after the other.

    :param tables: the logs, in order; each goes on from a checkpoint, so that the one before may have gone further
    :return: one log
    """
    joined: Table = {}
    for table in tables:
        steps = table.get(STEPS)
        if joined and steps is not None and STEPS in joined and np.isfinite(steps).any():
            keep = ~(joined[STEPS] >= np.nanmin(steps))
            joined = {key: column[keep] for key, column in joined.items()}
        n_before, n_after = _n_rows(joined), _n_rows(table)
        joined = {
            key: np.concatenate([joined.get(key, _missing(n_before)), table.get(key, _missing(n_after))])
            for key in joined.keys() | table.keys()
        }
    return joined


def _n_rows(table: Table) -> int:
    return len(next(iter(table.values()))) if table else 0


def _missing(n: int) -> np.ndarray:
    return np.full(n, math.nan)


def _find_model(folder: Path) -> Path | None:
    """
    Find the model of a run.

    :param folder: the folder, which RL Zoo names by the task and a number
    :return: the final model, or any other; None if there is none
    """

    def candidates() -> Iterator[Path]:
        yield folder / f"{folder.resolve().name.rpartition('_')[0]}.zip"
        yield from (folder / name for name in ("checkpoint.zip", "last_checkpoint.zip", "best_model.zip"))
        yield from sorted(folder.glob("*.zip"))

    return next((path for path in candidates() if path.is_file()), None)


def _read_model(path: Path) -> tuple[Settings, float | None]:
    """
    Read the settings of a saved model, without running what it holds.

    :param path: the file
    :return: the settings, as far as they can be read, and the number of steps that were planned
    """
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            return Settings(), None
        with path.open("rb") as file:
            data = json.loads(read_archive(file)["data"])
    # A file of another kind; the rules that need it stay silent.
    except (OSError, RefusedModelError, LookupError, ValueError, RecursionError):
        return Settings(), None
    if not isinstance(data, dict):
        return Settings(), None
    n_steps, n_envs = _integer(data.get("n_steps")), _integer(data.get("n_envs"))
    settings = Settings(
        n_samples=n_steps * n_envs if n_steps and n_envs else None,
        action_dimensions=_read_action_dimensions(data.get("action_space")),
        gae_lambda=_real(data.get("gae_lambda")),
        ent_coef=_real(data.get("ent_coef")),
        use_sde=data.get("use_sde") is True,
        least_max_std=_least(data["max_std"]) if "max_std" in data else None,
    )
    return settings, _real(data.get("_total_timesteps"))


def _integer(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _real(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else None


def _least(value: Any) -> float | None:
    """
    Read the smallest value of a bound.

    :param value: None, a number, or a linear schedule with its start and end, as SB3 writes them beside the pickle
    :return: the smallest value; infinite for None; None if it can't be told
    """
    if value is None:
        return math.inf
    if isinstance(value, Mapping):
        ends = [_real(value.get(name)) for name in ("start", "end")]
        return min(end for end in ends if end is not None) if None not in ends else None
    return _real(value)


def _read_action_dimensions(item: Any) -> int | None:
    if not isinstance(item, dict) or not isinstance(item.get(":serialized:"), str):
        return None
    try:
        return action_dimensions(read_object(base64.b64decode(item[":serialized:"])))
    # What else a stranger may have put there has no shape.
    except (RefusedModelError, ValueError, AttributeError, TypeError):
        return None
