"""
The part of the package's metadata that is computed; setup.cfg has the rest.

A package index shows README without the repository around it, so its links have to be absolute there.
"""

import re
from pathlib import Path

from setuptools import setup

# The address of the repository, such as https://github.com/OWNER/sb3_trpo. The one place to set it: all project URLs,
# all links of the long description and the addresses that findings name are made from it. While it is empty there are
# none, and `make release` refuses.
REPOSITORY = ""

HERE = Path(__file__).parent


def make_absolute(text: str, version: str) -> str:
    """
    Let relative links lead into the repository, at the tag of this version.

    :param text: Markdown
    :param version: the version
    :return: the same with absolute links; without a repository the words of the links, and no pictures
    """

    def replace(match: "re.Match[str]") -> str:
        mark, words, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        if not REPOSITORY:
            return "" if mark else words
        return f"{mark}[{words}]({REPOSITORY}/{'raw' if mark else 'blob'}/v{version}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", replace, text)


def read_version() -> str:
    """
    Read the version.

    :return: the version
    """
    return re.findall(r'^__version__ = "(.*)"', (HERE / "sb3_trpo/__init__.py").read_text("utf-8"), re.M)[0]


if __name__ == "__main__":
    setup(
        long_description=make_absolute((HERE / "README.md").read_text("utf-8"), read_version()),
        long_description_content_type="text/markdown",
        project_urls={
            "Source": REPOSITORY,
            "Documentation": f"{REPOSITORY}/tree/v{read_version()}/docs",
            "Issues": f"{REPOSITORY}/issues",
            "Changelog": f"{REPOSITORY}/blob/v{read_version()}/CHANGELOG.md",
        }
        if REPOSITORY
        else {},
    )
