"""
The options of ``benchmarks/speed.py``, and a process for each row and number of threads.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch as th

from speed import tables
from speed.cells import of_row
from speed.pictures import draw_budget, draw_growth
from speed.rows import ROWS
from speed.run import Run, read, write

BENCHMARKS = Path(__file__).parents[1]
OUT = BENCHMARKS / "results" / "speed"


def parser(description: str | None) -> argparse.ArgumentParser:
    """
    Make the parser of the speed benchmark.

    :param description: the script's docstring
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    result.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of torch; each in its own process")
    result.add_argument("--device", default="cpu", help="cuda for a GPU: the rows on `train()` alone, at one thread")
    result.add_argument("--out", type=Path, help=f"folder of the results ({OUT.relative_to(BENCHMARKS.parent)})")
    result.add_argument("--replace", action="store_true", help="measure again what is there already")
    result.add_argument("--quick", action="store_true", help="try out the code on tiny sizes, into a temporary folder")
    result.add_argument("--tables", action="store_true", help="measure nothing, only make the tables and the picture")
    result.add_argument("--in-process", action="store_true", help="measure in this process, and make no tables")
    return result


def main(description: str | None, arguments: Sequence[str] | None = None) -> int:
    """
    Measure the rows that the command line names, and make the tables.

    :param description: the script's docstring
    :param arguments: of the command line; None takes the process's own
    :return: the exit status: 1 if a row could not be measured
    """
    options = parser(description).parse_args(arguments)
    if options.out is None:
        out = OUT if options.device == "cpu" else OUT.with_name(f"{OUT.name}-{options.device}")
        options.out = Path(tempfile.mkdtemp(prefix="speed-")) if options.quick else out
    todo = [] if options.tables else _todo(options)
    if options.in_process:
        for name, threads in todo:
            measure(name, Run(threads, options.quick, options.device), options.out)
        return 0
    failed = [pair for pair in todo if not _measure_apart(*pair, options)]
    for path in make_tables(options.out):
        print(path)
    for name, threads in failed:
        print(f"Not measured, see above: {name}, {threads} threads", file=sys.stderr)
    return 1 if failed else 0


def _todo(options: argparse.Namespace) -> list[tuple[str, int]]:
    todo = []
    for name in options.only:
        for threads in options.threads:
            if threads not in _threads_of(name, options.device):
                continue
            values = read(options.out, name, threads)
            if values is not None and values["quick"] == options.quick and not options.replace:
                print(f"{name}, {threads} threads: there already")
                continue
            todo.append((name, threads))
    return todo


def _threads_of(name: str, device: str) -> tuple[int, ...]:
    row = ROWS[name]
    if device == "cpu":
        return row.threads
    return (1,) if row.on_gpu else ()


def measure(name: str, run: Run, out: Path) -> Path:
    """
    Measure one row and write it.

    :param name: of a row
    :param run: how
    :param out: folder of the results
    :return: the row's file
    """
    th.set_num_threads(run.threads)
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    return write(out, name, run, ROWS[name].load()(run), load)


def _measure_apart(name: str, threads: int, options: argparse.Namespace) -> bool:
    """Return whether the row's process ended well."""
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--in-process", "--replace", "--only", name]
    command += ["--threads", str(threads), "--device", options.device, "--out", str(options.out)]
    command += ["--quick"] * options.quick
    print(f"{name}, {threads} threads ... ", end="", flush=True)
    start = time.monotonic()
    # The simulator greets each process.
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
    )
    print(f"{time.monotonic() - start:.0f} s" if done.returncode == 0 else f"failed\n{done.stderr}", flush=True)
    return done.returncode == 0


def make_tables(out: Path) -> list[Path]:
    """
    Make the tables from the files.

    :param out: folder of the results
    :return: what was written
    """
    found = tables.load(out)
    out.mkdir(parents=True, exist_ok=True)
    text = tables.section(found, out.name)
    print(text)
    written = [out / "TABLE.md"]
    written[0].write_text(text)
    for row, draw in (("growth", draw_growth), ("budget", draw_budget)):
        for _, measured in of_row(found, row):
            written.append(out / tables.PICTURES[row][0])
            draw(measured, written[-1])
    return written
