"""
Where each finding is explained: the page ``findings.md``, which is installed beside this file.
"""

import importlib.metadata
import re
from pathlib import Path

from sb3_trpo.saved_models.refused import printable
from sb3_trpo.validation.values import UserError

PAGE = Path(__file__).with_name("findings.md")
# From the repository on.
PLACE = "sb3_trpo/diagnosis/findings.md"


def read_sections() -> dict[str, str]:
    """
    Read the page.

    :return: the text of each finding's section, by the finding's name
    """
    sections = re.findall(r"^## (\S+)\n(.*?)(?=^#|\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return {name: text.strip() for name, text in sections}


def explain(name: str) -> str:
    """
    Explain a finding.

    :param name: the finding's name, such as small-batch
    :return: its section of the page
    :raises UserError: if no finding has this name
    """
    sections = read_sections()
    if name not in sections:
        raise UserError(f"There is no finding '{printable(name)}'; there are {', '.join(sections)}.")
    return sections[name]


def where(name: str) -> str:
    """
    Say where a finding is explained.

    :param name: the finding's name
    :return: the address of its section, if the package was built with that of its repository; else a command, which
        works wherever the package is installed
    """
    try:
        package = importlib.metadata.distribution("sb3-trpo")
        urls = dict(entry.split(", ", 1) for entry in package.metadata.get_all("Project-URL", []))
        return f"{urls['Source']}/blob/v{package.version}/{PLACE}#{name}"
    # Sources that were never installed, or the address was not set.
    except (importlib.metadata.PackageNotFoundError, LookupError, ValueError):
        return f"`sb3-trpo diagnose --explain {name}`"
