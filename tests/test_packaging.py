"""
What a user installs: few dependencies, typed, complete.
"""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "sb3_trpo"

# Refuses every installed package but ours that Stable-Baselines3 does not require itself (directly or by way of torch
# and Gymnasium, which it requires).
IMPORT_WITH_THE_CORE_ONLY = """
import sys
from importlib.metadata import packages_distributions

allowed = set(sys.argv[1:])
refused = {
    module
    for module, owners in packages_distributions().items()
    if allowed.isdisjoint(owner.lower().replace("_", "-") for owner in owners)
}

class Refusal:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not a dependency", name=name)

sys.meta_path.insert(0, Refusal)
try:
    import rl_zoo3
except ModuleNotFoundError:
    import sb3_trpo
"""


def required_by(root: str) -> set[str]:
    """
    :param root: an installed distribution
    :return: the names of it and of all that it requires, itself or by way of others, without extras
    """
    found: set[str] = set()
    waiting = [root]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            requirements = map(Requirement, requires(name) or [])
            waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_importing_needs_only_sb3_and_what_it_needs():
    allowed = required_by("stable-baselines3")
    assert {"torch", "gymnasium", "numpy"} <= allowed
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_WITH_THE_CORE_ONLY, "sb3-trpo", *allowed],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """
    :return: a folder with wheel and source distribution, built from a copy of the sources
    """
    sources = tmp_path_factory.mktemp("sources")
    for file in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, sources)
    for folder in ("sb3_trpo", "tests", "benchmarks"):
        shutil.copytree(REPOSITORY / folder, sources / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # The hooks that pip calls, without pip's isolated environment, which would have to be downloaded.
    build = "from setuptools import build_meta; build_meta.build_sdist('dist'); build_meta.build_wheel('dist')"
    result = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return sources / "dist"


def test_wheel_holds_the_whole_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "sb3-trpo = sb3_trpo.cli:main" in archive.read(entry_points).decode()
    files = (file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert names == {file.relative_to(REPOSITORY).as_posix() for file in files}
    assert {"sb3_trpo/py.typed", "sb3_trpo/hyperparams/trpo.yml"} <= names


def test_source_distribution_holds_the_package_and_no_tests(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "sb3_trpo/py.typed", "sb3_trpo/hyperparams/trpo.yml"} <= names
    assert not {name for name in names if name.startswith(("tests", "benchmarks"))}


def pins() -> list[Requirement]:
    """
    :return: constraints.txt
    """
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def ranges() -> list[Requirement]:
    """
    :return: all requirements of setup.cfg, those of extras too
    """
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [Requirement(line) for block in lines for line in block.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "requirement", [r for r in ranges() if r.name != "sb3-trpo"], ids=lambda requirement: requirement.name
)
def test_every_requirement_is_pinned_within_its_range(requirement):
    versions = [
        next(iter(pin.specifier)).version
        for pin in pins()
        if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
    ]
    assert versions
    assert all(version in requirement.specifier for version in versions)


@pytest.mark.parametrize("pin", ["torch==2.13.0", "stable-baselines3==2.9.2", "gymnasium==1.4.0", "mujoco==4.0.0"])
def test_versions_of_the_published_results(pin):
    wanted = Requirement(pin)
    assert any(canonicalize_name(other.name) == wanted.name and other.specifier == wanted.specifier for other in pins())
