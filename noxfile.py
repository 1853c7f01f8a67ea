"""
Run the tests with other versions of Python and of the dependencies than those of the daily run.

    make test-versions                               all three below
    make test-versions ARGS="-s 'tests(newest)'"     one of them; what follows -- goes to pytest
    make test-versions ARGS="--force-python 3.11"    all three on the Python that is named

| session | Python | dependencies |
| --- | --- | --- |
| oldest | 3.10 | the oldest versions that setup.cfg allows |
| pinned | 3.12 | the versions of constraints.txt |
| newest | 3.13 | the newest versions that setup.cfg allows |

The oldest versions go with the oldest Python because they have no wheels for newer ones. An interpreter is looked for
on PATH, and among those of pyenv. A session without its interpreter is skipped, with a line that says so.

PyTorch is that of constraints.txt in all of them: its range in setup.cfg is Stable-Baselines3's own. For Linux, PyPI
has PyTorch with CUDA only, of several gigabytes for each Python. An index that has it for the CPU alone saves these:
name it in ``PIP_EXTRA_INDEX_URL`` or in pip's configuration.
"""

import configparser
import os
import re
from pathlib import Path

import nox

REPOSITORY = Path(__file__).parent
EXTRAS = {
    # Not box2d: what Gymnasium 1.0 wants for it can't be installed without SWIG and a C++ compiler.
    "oldest": ("zoo", "mujoco", "envpool", "onnx", "atari", "tests"),
    "pinned": ("zoo", "mujoco", "box2d", "envpool", "onnx", "atari", "tests"),
    "newest": ("zoo", "mujoco", "box2d", "envpool", "onnx", "atari", "tests"),
}
PYTHONS = {"oldest": "3.10", "pinned": "3.12", "newest": "3.13"}


def find_pyenvs_pythons() -> None:
    """
    Put pyenv's interpreters at the front of PATH.

    pyenv's own commands on PATH (its shims) fail for every version that ``pyenv global`` does not name, so that nox
    would take the interpreter for broken.
    """
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    newest = [max(root.glob(f"versions/{version}.*"), key=numbers, default=None) for version in PYTHONS.values()]
    folders = [str(folder / "bin") for folder in newest if folder]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ["PATH"]])


def numbers(folder: Path) -> list[int]:
    """
    Read a version as numbers, so that 3.12.10 comes after 3.12.9.

    :param folder: a folder that is named after a version
    :return: the numbers
    """
    return [int(number) for number in re.findall(r"\d+", folder.name)]


find_pyenvs_pythons()


@nox.session
@nox.parametrize(
    ("python", "versions"), [(python, versions) for versions, python in PYTHONS.items()], ids=list(PYTHONS)
)
def tests(session: nox.Session, versions: str) -> None:
    """
    Run the default suite in an environment of its own.

    :param session: nox's session
    :param versions: the dependencies to test with: ``oldest``, ``pinned`` or ``newest``
    """
    extras = EXTRAS[versions]
    if versions == "pinned":
        file = REPOSITORY / "constraints.txt"
    else:
        constraints = [torch()]
        if versions == "oldest":
            constraints += filter(None, map(oldest, requirements(extras)))
        file = Path(session.create_tmp()) / f"{versions}.txt"
        file.write_text("\n".join(constraints) + "\n")
    session.install("-c", str(file), "-e", f".[{','.join(extras)}]")
    session.run("python", "-m", "pip", "freeze")
    # As `make test` does.
    workers = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("python", "-m", "pytest", *workers, *session.posargs, env={"OMP_NUM_THREADS": "1"})


def torch() -> str:
    """
    Find PyTorch's line in constraints.txt.

    :return: the line
    """
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def requirements(names: tuple[str, ...]) -> list[str]:
    """
    List what setup.cfg requires, PyTorch aside.

    :param names: the extras to include
    :return: the lines of setup.cfg
    """
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extras = config["options.extras_require"]
    texts = [config["options"]["install_requires"], *(extras[name] for name in names)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "torch>"))]


def oldest(requirement: str) -> str:
    """
    Turn a requirement into the constraint that allows its lower bound alone.

    :param requirement: a line of setup.cfg
    :return: the constraint; empty if the requirement has no lower bound
    """
    bound = re.match(r"([\w.-]+)>=([\w.]+)[^;]*(;.*)?$", requirement)
    return f"{bound[1]}=={bound[2]}{bound[3] or ''}" if bound else ""
