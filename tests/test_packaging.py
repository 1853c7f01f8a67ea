"""
What a user installs: few dependencies, typed, complete.
"""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
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
    List what a distribution requires.

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


def test_importing_warns_of_nothing():
    command = [sys.executable, "-W", "error", "-c", "import sb3_trpo, sb3_trpo.cli"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def rooms_from_top_to_bottom() -> list[str]:
    """
    Read the table of rooms in CONTRIBUTING.md.

    :return: the names of the rooms, from top to bottom
    """
    section = (
        (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## Where a line of code goes")[2].partition("\n## ")[0]
    )
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


def rooms_that_are_imported_by(file: Path) -> set[str]:
    """
    Find the rooms that a module imports from, within functions too.

    :param file: a module of the package
    :return: the names of the rooms
    """
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules.update(name.name for name in node.names)
    return {module.split(".")[1] for module in modules if module.startswith("sb3_trpo.")}


def test_contributing_names_every_room_once():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }
    assert sorted(rooms_from_top_to_bottom()) == sorted(rooms)


@pytest.mark.parametrize("room", rooms_from_top_to_bottom())
def test_imports_go_from_top_to_bottom(room):
    rooms = rooms_from_top_to_bottom()
    above = set(rooms[: rooms.index(room)])
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else [*(PACKAGE / room).rglob("*.py")]
    assert files
    upwards = {str(file): rooms for file in files if (rooms := rooms_that_are_imported_by(file) & above)}
    assert upwards == {}


# The hooks that pip calls, without pip's isolated environment, which would have to be downloaded.
BUILD = """
import os, sys

os.umask(int(sys.argv[1], 8))
sys.path.insert(0, "build_backend")
import reproducible

reproducible.build_sdist("dist")
reproducible.build_wheel("dist")
"""

EPOCH = 1_700_000_000  # seconds since 1970


def build(sources: Path, umask: int, modified: int, address: str | None = None) -> Path:
    """
    Build the distributions of a copy of the sources.

    :param sources: a folder to be made, which gets a copy of the sources
    :param umask: permissions that the copy and all that is built don't get
    :param modified: when the sources were written, in seconds since 1970
    :param address: that of the repository, empty for none; that of the checkout if None
    :return: a folder with wheel and source distribution
    """
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        sources.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, sources)
    for name in ("sb3_trpo", "build_backend", "tests", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(REPOSITORY / name, sources / name, ignore=ignored)
    if address is not None:
        setup = (sources / "setup.py").read_text()
        (sources / "setup.py").write_text(re.sub('^REPOSITORY = ".*"', f'REPOSITORY = "{address}"', setup, flags=re.M))
    for path in sources.rglob("*"):
        path.chmod((0o777 if path.is_dir() or path.stat().st_mode & 0o100 else 0o666) & ~umask)
        os.utime(path, (modified, modified))
    result = subprocess.run(
        [sys.executable, "-c", BUILD, f"{umask:o}"],
        cwd=sources,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return sources / "dist"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Return a folder with wheel and source distribution."""
    return build(tmp_path_factory.mktemp("distributions") / "sources", umask=0o022, modified=EPOCH - 1000)


def test_builds_depend_on_the_sources_alone(distributions, tmp_path):
    other = build(tmp_path / "another_folder", umask=0o077, modified=EPOCH + 2_000_000)
    names = sorted(path.name for path in distributions.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["whl", "gz"]
    for name in names:
        assert (distributions / name).read_bytes() == (other / name).read_bytes(), name


def test_builds_have_the_time_that_was_asked_for_and_no_owner(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    assert sdist.read_bytes()[4:8] == EPOCH.to_bytes(4, "little")
    with tarfile.open(sdist) as archive:
        assert {(file.mtime, file.uid, file.uname, file.gid, file.gname) for file in archive} == {(EPOCH, 0, "", 0, "")}
        assert {file.mode for file in archive if file.isfile()} == {0o644}
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {file.date_time for file in archive.infolist()} == {time.gmtime(EPOCH)[:6]}


def package_files() -> set[str]:
    """
    List the files of the package in the checkout.

    :return: their paths, from the repository on
    """
    files = (file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    names = {file.relative_to(REPOSITORY).as_posix() for file in files}
    assert {"sb3_trpo/py.typed", "sb3_trpo/shipped/hyperparams/trpo.yml"} <= names
    return names


def test_wheel_holds_the_whole_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "sb3-trpo = sb3_trpo.cli:main" in archive.read(entry_points).decode()
    assert names == package_files()


def test_source_distribution_holds_the_package_and_no_tests(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml", *package_files()} <= names
    assert not {name for name in names if name.startswith(("tests", "benchmarks"))}


def test_an_index_would_take_them(distributions):
    pytest.importorskip("twine", reason="needs sb3-trpo[release]")
    files = [str(path) for path in distributions.iterdir()]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_long_description_has_no_relative_links(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "License-Expression: MIT" in metadata
    assert "# sb3_trpo" in metadata
    links = re.findall(r"\]\(([^)\s]+)\)", metadata)
    assert links
    assert [link for link in links if "://" not in link] == []


# Where the findings of an installed package lead, and what its command says of each.
EXPLAIN = """
import sys
from sb3_trpo.cli import main
from sb3_trpo.diagnosis.explanations import read_sections
from sb3_trpo.diagnosis.finding import Finding, Severity

assert sys.modules["sb3_trpo"].__file__.startswith(sys.argv[1])
print(Finding("small-batch", Severity.ERROR, "p", "e", "c").page)
for name in read_sections():
    main(["diagnose", "--explain", name])
"""


@pytest.mark.parametrize("address", ["", pytest.param("https://example.org/owner/sb3_trpo", marks=pytest.mark.slow)])
def test_findings_of_an_installed_package_are_explained(tmp_path, address):
    """Without a checkout: by the repository's address if it was set, else by a command; the command always works."""
    (wheel,) = build(tmp_path / "sources", 0o022, EPOCH - 1000, address).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shutil.rmtree(tmp_path / "sources")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", EXPLAIN, str(tmp_path / "installed")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page, _, explained = done.stdout.partition("\n")
    if address:
        place, _, anchor = page.partition("#")
        version = re.search(r"-([\d.]+)-", wheel.name)[1]
        path = REPOSITORY / place.removeprefix(f"{address}/blob/v{version}/")
        assert f"\n## {anchor}\n" in path.read_text()
    else:
        assert page == "`sb3-trpo diagnose --explain small-batch`"
    assert "KL and its curvature are estimated from one rollout." in explained
    assert "If it is\nKL(new ‖ old), the two were exchanged." in explained


TRAIN = """
import sys
from sb3_trpo import TRPO

assert sys.modules["sb3_trpo"].__file__.startswith(sys.prefix)
TRPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(64)
"""


@pytest.fixture
def clean_environment(tmp_path) -> Iterator[Path]:
    """Return the folder of a virtual environment, which is removed at the end: PyTorch takes a gigabyte."""
    folder = tmp_path / "environment"
    # Not every Python has ensurepip; the pip at hand installs into any environment.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_both_install_in_a_clean_environment(distributions, clean_environment):
    """With what the package itself requires and nothing else, in the versions of constraints.txt, from an index."""
    programs = clean_environment / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    install = [*pip, "install", "--quiet", "-c", REPOSITORY / "constraints.txt"]
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    for installation in ([*install, wheel], [*install, "--no-deps", "--force-reinstall", sdist]):
        uses = [programs / "python", "-I", "-c", TRAIN], [programs / "sb3-trpo", "--help"]
        for command in (installation, [*pip, "check"], *uses):
            result = subprocess.run(command, cwd=clean_environment, capture_output=True, text=True, timeout=900)
            assert result.returncode == 0, result.stderr
        assert "enjoy-untrusted" in result.stdout


def pins() -> list[Requirement]:
    """Return constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def ranges() -> list[Requirement]:
    """Return all requirements of setup.cfg, those of extras too."""
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
