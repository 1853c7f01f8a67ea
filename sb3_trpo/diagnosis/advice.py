"""
Warnings during training, by the same rules that a finished run is diagnosed by.
"""

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from sb3_trpo.diagnosis.finding import Finding
from sb3_trpo.diagnosis.record import FEWEST, Record, Settings
from sb3_trpo.diagnosis.rules import RULES
from sb3_trpo.validation.values import warn_user

# The rules are asked every so many updates.
INTERVAL = FEWEST


class LiveLog(Mapping[str, np.ndarray]):
    """The log of a training as it goes on: 8 bytes for each number."""

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {}
        self.n_rows = 0

    def append(self, row: Mapping[str, float]) -> None:
        """
        Add an update.

        :param row: its numbers, by their keys
        """
        for key in row.keys() - self._columns.keys():
            self._columns[key] = array("d", [math.nan] * self.n_rows)
        for key, column in self._columns.items():
            column.append(row.get(key, math.nan))
        self.n_rows += 1

    def __getitem__(self, key: str) -> np.ndarray:
        return np.array(self._columns[key])

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass
class Advice:
    """
    What was noticed of the training, and said of it: a warning comes once for each fault.

    :param log: the updates so far
    :param given: the names of the findings that were warned of
    :param is_quiet: whether nothing is said, for another rank says it
    """

    log: LiveLog = field(default_factory=LiveLog)
    given: set[str] = field(default_factory=set)
    is_quiet: bool = False

    def observe(self, row: Mapping[str, float], settings: Settings, progress: float) -> None:
        """
        Look at an update, and every few updates at the training so far.

        :param row: the update's numbers, by their keys in the log
        :param settings: the settings of the training
        :param progress: the share of the planned steps that are done
        """
        self.log.append(row)
        if self.log.n_rows % INTERVAL == 0:
            self.consider(Record(self.log, settings, progress))

    def consider(self, record: Record) -> None:
        """
        Apply the rules, and warn of what they find.

        :param record: what is known of the training
        """
        for rule in RULES:
            self.give(rule(record))

    def give(self, finding: Finding | None) -> None:
        """
        Warn of a finding, once.

        :param finding: the finding, if any
        """
        if finding is not None and finding.name not in self.given:
            self.given.add(finding.name)
            if self.is_quiet:
                return
            text = f"TRPO: {finding.sentence()} See {finding.page}. (This is said once.)"
            warn_user(text)
