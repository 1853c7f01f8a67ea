"""
One row at one number of threads: a file of results.
"""

import importlib.metadata
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from campaign.provenance import provenance

FORMAT = 1
PEERS = ("tianshou", "skrl")


@dataclass(frozen=True)
class Run:
    """
    How a row is measured.

    :param threads: of torch
    :param quick: whether to try out the code on tiny sizes, rather than to measure
    :param device: of torch, where the updates take place
    """

    threads: int
    quick: bool
    device: str = "cpu"

    def pick(self, full: Any, quick: Any) -> Any:
        """Return the one of the two sizes that is asked for."""
        return quick if self.quick else full


def path_of(out: Path, row: str, threads: int) -> Path:
    """
    Name a row's file.

    :param out: folder of the results
    :return: the row's file
    """
    return out / f"{row}-{threads}.json"


def write(out: Path, row: str, run: Run, measured: dict[str, Any], load_before: float) -> Path:
    """
    Write what a row has measured.

    :param out: folder of the results
    :param row: its name
    :param run: how it was made
    :param measured: the row's own result
    :param load_before: load average of the machine, of which this benchmark had no part yet
    :return: the file
    """
    sources = provenance()
    options = " --quick" * run.quick + f" --device {run.device}" * (run.device != "cpu")
    sources["versions"] |= {name: version for name in PEERS if (version := _version(name))}
    values = {
        "format": FORMAT,
        "row": row,
        "threads": run.threads,
        "quick": run.quick,
        "device": run.device,
        "command": f"python benchmarks/speed.py --only {row} --threads {run.threads}{options}",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_before": load_before,
        "torch_threads": th.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        **sources,
        "measured": measured,
    }
    path = path_of(out, row, run.threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)
    return path


def read(out: Path, row: str, threads: int) -> dict[str, Any] | None:
    """Return the contents of the row's file; None if there is none, or none that can be read."""
    try:
        values = json.loads(path_of(out, row, threads).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("format") == FORMAT else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
