"""
The tests with the oldest and with the newest versions that setup.cfg allows; CI has those of constraints.txt.

    make test-versions                           both
    make test-versions ARGS="-s 'tests(oldest)'" one; what follows -- goes to pytest

They run on the Python that nox runs on; ``--force-python 3.12`` takes another. PyTorch is that of constraints.txt in
both: every other version is a download of gigabytes, and its range in setup.cfg is Stable-Baselines3's own.
"""

import configparser
import re
from pathlib import Path

import nox

REPOSITORY = Path(__file__).parent
EXTRAS = {
    # Not box2d: what Gymnasium 1.0 wants for it can't be installed without SWIG and a C++ compiler.
    "oldest": ("zoo", "mujoco", "envpool", "onnx", "atari", "tests"),
    "newest": ("zoo", "mujoco", "box2d", "envpool", "onnx", "atari", "tests"),
}


@nox.session
@nox.parametrize("versions", ["oldest", "newest"], ids=["oldest", "newest"])
def tests(session: nox.Session, versions: str) -> None:
    """
    :param session: with an environment of its own
    :param versions: ``oldest`` or ``newest``
    """
    extras = EXTRAS[versions]
    constraints = [torch()]
    if versions == "oldest":
        constraints += filter(None, map(oldest, requirements(extras)))
    file = Path(session.create_tmp()) / f"{versions}.txt"
    file.write_text("\n".join(constraints) + "\n")
    session.install("-c", str(file), "-e", f".[{','.join(extras)}]")
    session.run("python", "-m", "pip", "freeze")
    session.run("python", "-m", "pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


def torch() -> str:
    """
    :return: the line of constraints.txt
    """
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def requirements(names: tuple[str, ...]) -> list[str]:
    """
    :param names: of extras
    :return: what setup.cfg requires of others but PyTorch, with these extras
    """
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    extras = config["options.extras_require"]
    texts = [config["options"]["install_requires"], *(extras[name] for name in names)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "torch>"))]


def oldest(requirement: str) -> str:
    """
    :param requirement: a line of setup.cfg
    :return: the constraint that allows its lower bound alone; empty if it has none
    """
    bound = re.match(r"([\w.-]+)>=([\w.]+)[^;]*(;.*)?$", requirement)
    return f"{bound[1]}=={bound[2]}{bound[3] or ''}" if bound else ""
