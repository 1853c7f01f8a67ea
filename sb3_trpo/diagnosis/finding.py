"""
What a rule finds.
"""

from dataclasses import dataclass
from enum import IntEnum

from sb3_trpo.diagnosis.explanations import where


class Severity(IntEnum):
    """How much of learning a fault takes away."""

    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """
    A fault, with its evidence and one change to try.

    :param name: the fault's name, which is the name of the section that explains it
    :param severity: WARNING if the run learns less than it could, ERROR if it can't learn
    :param problem: what is wrong: a sentence without its full stop
    :param evidence: what was measured, in numbers
    :param change: the one change to try first: a sentence without its full stop, which begins with a small letter
    :param panel: the plot of the report that shows it; empty for none
    """

    name: str
    severity: Severity
    problem: str
    evidence: str
    change: str
    panel: str = ""

    @property
    def page(self) -> str:
        """Where it is explained: an address, or a command between backticks."""
        return where(self.name)

    def sentence(self) -> str:
        """
        Put it into words.

        :return: problem, evidence and change
        """
        evidence = f" ({self.evidence})" if self.evidence else ""
        return f"{self.problem}{evidence}: {self.change}."
