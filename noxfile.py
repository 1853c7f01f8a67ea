"""
The tests with the oldest and with the newest versions that setup.cfg allows; CI has those of constraints.txt.

    nox                         both
    nox -s 'tests(oldest)'      one; what follows -- goes to pytest
"""

import configparser
import re
from pathlib import Path

import nox

EXTRAS = ("zoo", "mujoco", "box2d", "envpool", "tests")
# The ends of setup.cfg's list of Pythons.
VERSIONS = [nox.param("3.10", "oldest", id="oldest"), nox.param("3.13", "newest", id="newest")]


@nox.session
@nox.parametrize(["python", "versions"], VERSIONS)
def tests(session: nox.Session, versions: str) -> None:
    """
    :param session: with an environment of its own
    :param versions: ``oldest`` or ``newest``
    """
    if versions == "oldest":
        # RL Zoo wants a later Stable-Baselines3 than the package itself; its tests are skipped.
        wanted = [requirement for requirement in requirements() if not requirement.startswith("rl_zoo3")]
        constraints = Path(session.create_tmp()) / "oldest.txt"
        constraints.write_text("\n".join(filter(None, map(oldest, wanted))) + "\n")
        session.install("-c", str(constraints), *wanted, "-e", ".")
    else:
        session.install("-e", f".[{','.join(EXTRAS)}]")
    session.run("python", "-m", "pip", "freeze")
    session.run("python", "-m", "pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


def requirements() -> list[str]:
    """
    :return: what setup.cfg requires of others, with ``EXTRAS``
    """
    config = configparser.ConfigParser()
    config.read(Path(__file__).parent / "setup.cfg")
    extras = config["options.extras_require"]
    texts = [config["options"]["install_requires"], *(extras[name] for name in EXTRAS)]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip() and line[0] != "#"]


def oldest(requirement: str) -> str:
    """
    :param requirement: a line of setup.cfg
    :return: the constraint that allows its lower bound alone; empty if it has none
    """
    bound = re.match(r"([\w.-]+)>=([\w.]+)[^;]*(;.*)?$", requirement)
    return f"{bound[1]}=={bound[2]}{bound[3] or ''}" if bound else ""
