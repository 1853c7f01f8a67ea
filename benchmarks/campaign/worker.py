"""
One run in a process of its own: ``python -m campaign.worker OUT < specification.json``, started by the scheduler.

While it runs it holds a lock on ``seed-3.running``, which tells the steps done; two campaigns in one folder therefore
never do the same run twice at once.
"""

import fcntl
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import IO

import torch as th

from campaign import results
from campaign.improvement_run import improvement_run
from campaign.learning_run import learning_run
from campaign.provenance import provenance
from campaign.specification import RunSpecification

KINDS = {"learning": learning_run, "improvement": improvement_run}

# Exit status of a worker that found its run in progress elsewhere.
ALREADY_RUNNING = 75
SECONDS_BETWEEN_REPORTS = 1.0


def claim(path: Path) -> IO[str] | None:
    """
    Claim a run for this process.

    :param path: of the lock file
    :return: the file, locked until it is closed; None if another process holds it
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed the file between the two calls: then the lock is on a file without a name.
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


class Reporter:
    """
    Writes the number of steps done into the lock file, and ends the process when its campaign is gone.

    :param file: the lock file
    """

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.campaign = os.getppid()
        self.next_report = 0.0

    def __call__(self, steps: int) -> None:
        # A campaign that was killed could not end its workers; going on would be a run too many when it is resumed.
        if os.getppid() != self.campaign:
            sys.exit("The campaign that started this run is gone.")
        if time.monotonic() < self.next_report:
            return
        self.next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS
        self.file.seek(0)
        self.file.truncate()
        self.file.write(str(steps))
        self.file.flush()


def main() -> None:
    run = RunSpecification.from_dict(json.load(sys.stdin))
    path = run.path(Path(sys.argv[1]))
    running = path.with_suffix(".running")
    lock = claim(running)
    if lock is None:
        sys.exit(ALREADY_RUNNING)
    with lock:
        # It may be finished: by another campaign, since this one looked.
        if results.status(path, run)[0] is not results.Status.FINISHED:
            carry_out(run, path, Reporter(lock))
        # Somebody may have taken the file for a leftover; what counts is the result.
        running.unlink(missing_ok=True)


def carry_out(run: RunSpecification, path: Path, reporter: Reporter) -> None:
    """
    Carry out a run and write its result.

    :param run: what to run
    :param path: of its result
    :param reporter: of the steps done
    """
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    sources = provenance()
    values, arrays = KINDS[run.kind](run, reporter)
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results.write(path, run, {**values, "finished": finished, **sources}, arrays)


if __name__ == "__main__":
    main()
