"""
Run sb3-contrib's own tests of TRPO with this package's TRPO in the place of theirs.

    python benchmarks/contrib_suite.py [options of pytest]

The tests come with the source distribution of the sb3-contrib that is installed, which pip downloads, from wherever it
is configured to. The exit status is pytest's.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CONFTEST = """
import sb3_contrib
import sb3_contrib.trpo
import sb3_trpo

sb3_contrib.TRPO = sb3_contrib.trpo.TRPO = sb3_trpo.TRPO


def pytest_report_header():
    return f"sb3_contrib.TRPO is {sb3_contrib.TRPO.__module__}.TRPO; sb3-contrib is {sb3_contrib.__file__}"
"""


def main(options: list[str]) -> int:
    """
    Run sb3-contrib's own tests on this package's TRPO.

    :param options: of pytest
    :return: pytest's exit status
    """
    with tempfile.TemporaryDirectory(prefix="contrib-suite-") as folder:
        sources = unpack(download(f"sb3-contrib=={version('sb3-contrib')}", Path(folder)))
        # The tests are for the installed package, which a folder of the same name would hide.
        (sources / "sb3_contrib").rename(sources / "their_sb3_contrib")
        (sources / "conftest.py").write_text(CONFTEST)
        # Their own settings of pytest are for their own development.
        pytest = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider"]
        return subprocess.run([*pytest, "-k", "TRPO or trpo", *options, "tests"], cwd=sources, check=False).returncode


def download(requirement: str, folder: Path) -> Path:
    """
    Download a source distribution.

    :param requirement: of one exact version
    :param folder: for the file
    :return: its source distribution
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"]
    subprocess.run([*pip, str(folder), requirement], check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpack(archive: Path) -> Path:
    """
    Unpack a source distribution.

    :param archive: a source distribution
    :return: the folder of its sources
    """
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    (tests,) = archive.parent.glob("*/tests")
    return tests.parent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
