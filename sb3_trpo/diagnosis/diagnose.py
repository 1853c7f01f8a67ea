"""
The diagnosis of a run: what the rules find in what it has left.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_trpo.diagnosis.finding import Finding
from sb3_trpo.diagnosis.record import Record
from sb3_trpo.diagnosis.rules import RULES, find
from sb3_trpo.diagnosis.run_files import STEPS, read_record
from sb3_trpo.saved_models.refused import printable
from sb3_trpo.validation.values import UserError, short


@dataclass(frozen=True)
class Diagnosis:
    """
    What was found in a run. As a text it is what ``sb3-trpo diagnose`` prints.

    :param name: the run's name
    :param record: what is known of the run
    :param findings: what is wrong with it, the worst first
    """

    name: str
    record: Record
    findings: Sequence[Finding]

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.extent()}.", self.headline() + "."]
        return "\n".join([*parts, *(f"\n{describe(finding)}" for finding in self.findings)])

    def extent(self) -> str:
        """
        Say how much there is of the run.

        :return: updates and steps
        """
        (steps,) = self.record.complete(STEPS)
        return f"{self._n_updates()} updates" + (f", {steps.max():.0f} steps" if len(steps) else "")

    def _n_updates(self) -> int:
        (updates,) = self.record.complete("train/kl_divergence_loss")
        return round(len(updates) * self.record.updates_per_row()) if len(updates) else 0

    def headline(self) -> str:
        """
        Say how much was found.

        :return: the numbers of errors and of warnings
        """
        if not self.findings and self._n_updates() == 0:
            return "The log has no update that could be judged"
        if not self.findings:
            return f"Nothing found, by {len(RULES)} rules"
        counts = Counter(finding.severity.name.lower() for finding in self.findings)
        return ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for word, n in counts.items())

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """
        Write a report with plots: one file, which needs no network.

        :param path: where to write it
        :raises UserError: if matplotlib is not installed
        """
        from sb3_trpo.diagnosis.html import make_report

        Path(path).write_text(make_report(self), encoding="utf-8")


def describe(finding: Finding) -> str:
    """
    Put a finding into lines for a terminal.

    :param finding: the finding
    :return: problem, evidence, change and page, one below the other
    """
    first = f"{finding.severity.name:8}{finding.problem[0].upper()}{finding.problem[1:]}."
    others = [finding.evidence, f"Try: {finding.change}.", f"See {finding.page}"]
    return "\n".join([first, *(f"        {line[0].upper()}{line[1:]}" for line in others if line)])


def diagnose(path: str | os.PathLike[str]) -> Diagnosis:
    """
    Say why a run does not learn.

    :param path: the folder of a run of ``sb3-trpo train``, or any folder or file with SB3's ``progress.csv``
    :return: the findings, with their evidence
    :raises UserError: if there is no log, or it can't be read
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path is {short(path)}, but must be the path of a run's folder, or of a progress.csv.")
    run = Path(path)
    with np.errstate(all="ignore"):
        record = read_record(run)
        return Diagnosis(printable(str(run), max_characters=300), record, find(record))
