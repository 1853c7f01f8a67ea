"""
Sphinx's settings for the pages in this folder: `make docs`.
"""

import os
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

import sb3_trpo

project = "sb3_trpo"
author = "The sb3_trpo developers"
release = version = sb3_trpo.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design"]

html_theme = "furo"
html_title = f"sb3_trpo {release}"
html_show_sphinx = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# The pages `first-run` and `mend-a-run` train while they are built, each in a folder that is removed.
nb_execution_mode = "auto"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"

# Pages whose text stands elsewhere in the repository.
ELSEWHERE = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "findings": "sb3_trpo/diagnosis/findings.md",
    "protocol": "benchmarks/README.md",
    "results": "benchmarks/RESULTS.md",
    "tuning": "benchmarks/TUNING.md",
    "tuning-log": "benchmarks/TUNING_LOG.md",
}


def read_page(_app: object, name: str, source: list[str]) -> None:
    """
    Give Sphinx the text of a page, with links that lead somewhere in these pages.

    :param name: the page
    :param source: its text, which is replaced
    """
    file = REPOSITORY / ELSEWHERE[name] if name in ELSEWHERE else REPOSITORY / "docs" / f"{name}.md"
    text = file.read_text() if name in ELSEWHERE else source[0]
    source[0] = re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", lambda match: _link(file.parent, *match.groups()), text)


def _link(folder: Path, mark: str, words: str, target: str) -> str:
    """
    Rewrite a link.

    :param folder: the folder of the page that it stands on
    :param mark: ! for a picture
    :param words: the words that are linked
    :param target: where it leads
    :return: the link; the words alone if it leads to a folder of the repository
    """
    path, _, anchor = target.partition("#")
    if "://" in target or not path or not (folder / path).exists():
        return f"{mark}[{words}]({target})"
    place = (folder / path).resolve()
    if place.is_dir():
        return words
    pages = {REPOSITORY / file: f"{name}.md" for name, file in ELSEWHERE.items()}
    if place == REPOSITORY / "README.md":
        return f"{mark}[{words}](index.md)"
    new = pages.get(place) or os.path.relpath(place, REPOSITORY / "docs")
    return f"{mark}[{words}]({new}{'#' if anchor else ''}{anchor})"


def setup(app: object) -> None:
    """Let Sphinx read pages with the function above."""
    app.connect("source-read", read_page)
