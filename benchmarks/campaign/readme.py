"""
The sections of pages that scripts write, each between two markers.
"""

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"


@dataclass(frozen=True)
class Section:
    """
    A section of a page that a script writes.

    :param name: of the section
    :param script: that writes it
    """

    name: str
    script: str

    @property
    def start(self) -> str:
        return f"<!-- {self.name}: {self.script} -->"

    @property
    def end(self) -> str:
        return f"<!-- end of {self.name} -->"

    def replaced(self, text: str, content: str) -> str:
        """
        Replace what stands between the section's markers.

        :param text: with both markers
        :param content: to stand between them
        :return: the text with that content
        :raises ValueError: if the text lacks a marker
        """
        before, start, rest = text.partition(self.start)
        _, end, after = rest.partition(self.end)
        if not (start and end):
            raise ValueError(f"The text has no section between {self.start!r} and {self.end!r}.")
        return f"{before}{start}\n{content}\n{end}{after}"


KL_TABLE = Section("kl-table", "benchmarks/kl_table.py")
RESULTS = Section("results", "benchmarks/report.py")
