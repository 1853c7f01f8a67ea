"""
Work off the runs of a campaign that are not finished yet, several processes side by side.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from campaign import results
from campaign.results import Status
from campaign.specification import RunSpecification
from campaign.worker import ALREADY_RUNNING

BENCHMARKS = Path(__file__).parents[1]
SECONDS_BETWEEN_POLLS = 0.5
SECONDS_TO_END = 5.0
# A run's own pace is trusted from this share of its steps on.
SHARE_FOR_AN_ESTIMATE = 0.02
CLEAR_LINE = "\r\033[K" if sys.stdout.isatty() else ""


@dataclass
class Worker:
    """
    A run in progress.
    """

    run: RunSpecification
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    lock: Path
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Return the share of the run's steps that is done."""
        try:
            return min(1.0, int(self.lock.read_text() or 0) / self.run.n_timesteps)
        except (FileNotFoundError, ValueError):
            return 0.0


class Campaign:
    """
    A campaign: runs, several side by side, which can be stopped and go on.

    :param runs: all that should be finished in the end
    :param out: folder of the results
    :param jobs: runs side by side
    :param replace: run again what was made with other settings, in place of stopping
    """

    def __init__(self, runs: Sequence[RunSpecification], out: Path, jobs: int, replace: bool = False) -> None:
        self.runs = runs
        self.out = out
        self.jobs = jobs
        self.replace = replace
        self.workers: list[Worker] = []
        self.failed: list[RunSpecification] = []
        self.seconds: dict[tuple[str, str], list[float]] = {}

    def execute(self) -> int:
        """Return 0 if every run is finished in the end, else 1."""
        waiting = self.survey()
        done = len(self.runs) - len(waiting)
        print(f"{done} of {len(self.runs)} runs are finished, {len(waiting)} to go.", flush=True)
        # Ending by SIGTERM must run the `finally`, as ending by Ctrl-C does.
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            while waiting or self.workers:
                while waiting and len(self.workers) < self.jobs:
                    self.start(waiting.pop(0))
                self.collect(waiting)
                self.show(waiting)
                time.sleep(SECONDS_BETWEEN_POLLS)
        except KeyboardInterrupt:
            print("\nInterrupted: the same command goes on from here.", flush=True)
            return 128 + signal.SIGINT
        finally:
            self.end_workers()
            signal.signal(signal.SIGTERM, previous)
        for run in self.failed:
            print(f"Not finished: {run.name}")
        return 1 if self.failed else 0

    def survey(self) -> list[RunSpecification]:
        """Return what is not finished; what is there but cannot be used is named."""
        waiting = []
        for run in self.runs:
            path = run.path(self.out)
            status, reason = results.status(path, run)
            if status is Status.FINISHED:
                self._learn_duration(path, run)
                continue
            if status is Status.DIFFERENT and not self.replace:
                raise ValueError(
                    f"{path} was made with other settings ({reason}): give these runs another --label or --out, or "
                    f"--replace it."
                )
            if status is not Status.MISSING:
                print(f"{path}: {status.value} ({reason}); it will be run again.")
            elif path.with_suffix(".running").exists():
                print(f"{run.name} was interrupted or is running elsewhere.")
            waiting.append(run)
        return waiting

    def start(self, run: RunSpecification) -> None:
        one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the worker has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "campaign.worker", str(self.out.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            # Ctrl-C reaches this process alone, which then ends its workers.
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(json.dumps(run.to_dict()).encode())
        self.workers.append(Worker(run, process, errors, run.path(self.out).with_suffix(".running")))

    def collect(self, waiting: Sequence[RunSpecification]) -> None:
        """
        Take note of the runs that have ended.
        """
        for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
            self.workers.remove(worker)
            run, path = worker.run, worker.run.path(self.out)
            status, reason = results.status(path, run)
            n_left = len(waiting) + len(self.workers)
            if worker.process.returncode == ALREADY_RUNNING:
                print(f"{CLEAR_LINE}{run.name} is running in another campaign; left to it.", flush=True)
                self.failed.append(run)
            elif worker.process.returncode == 0 and status is Status.FINISHED:
                self._learn_duration(path, run)
                print(f"{CLEAR_LINE}{self._finished(path, run)}; {n_left} to go", flush=True)
            else:
                self.failed.append(run)
                print(f"{CLEAR_LINE}{run.name} failed: {reason or self._last_line(worker)}", flush=True)
            worker.errors.close()

    def show(self, waiting: Sequence[RunSpecification]) -> None:
        """
        Write a line that overwrites itself, on a terminal only.
        """
        if sys.stdout.isatty() and self.workers:
            running = ", ".join(f"{worker.run.name} {worker.share:.0%}" for worker in self.workers)
            print(f"{CLEAR_LINE}{running}; {len(waiting)} waiting, {self._time_left(waiting)}", end="", flush=True)

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.errors.close()
        self.workers.clear()

    def _finished(self, path: Path, run: RunSpecification) -> str:
        values = results.read(path).values
        score = f"score {values['score']:.1f}, " if "score" in values else ""
        return f"{run.name}: {score}{values['seconds']['total'] / 60:.1f} min"

    def _last_line(self, worker: Worker) -> str:
        worker.errors.seek(0)
        lines = worker.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {worker.process.returncode}"

    def _learn_duration(self, path: Path, run: RunSpecification) -> None:
        self.seconds.setdefault((run.task, run.variant), []).append(results.read(path).values["seconds"]["total"])

    def _expected_seconds(self, run: RunSpecification) -> float | None:
        """
        Estimate how long a run takes.

        :return: how long such a run takes, from finished runs like it, from one in progress, or from all that is known
        """
        if durations := self.seconds.get((run.task, run.variant)):
            return statistics.median(durations)
        paces = {
            (worker.run.task, worker.run.variant): worker.seconds / worker.share
            for worker in self.workers
            if worker.share > SHARE_FOR_AN_ESTIMATE
        }
        if (run.task, run.variant) in paces:
            return paces[run.task, run.variant]
        known = [statistics.median(durations) for durations in self.seconds.values()] + list(paces.values())
        return statistics.mean(known) if known else None

    def _time_left(self, waiting: Sequence[RunSpecification]) -> str:
        left = 0.0
        for run in waiting:
            left += self._expected_seconds(run) or 0.0
        for worker in self.workers:
            left += max(0.0, (self._expected_seconds(worker.run) or 0.0) - worker.seconds)
        if not left:
            return "time left unknown"
        minutes = round(left / self.jobs / 60)
        return f"about {minutes // 60} h {minutes % 60:02d} min left"
