"""
Run sb3-contrib's own tests of TRPO, MaskablePPO and RecurrentPPO with this package's classes in their place.

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

# What PPO alone has: the tests give it, and nothing here has a use for it. Its epochs are those of the critic.
CONFTEST = """
import sb3_contrib
import sb3_contrib.ppo_mask
import sb3_contrib.ppo_recurrent
import sb3_contrib.trpo
import sb3_trpo


def as_ppo(kind):
    def init(self, *args, n_epochs=10, clip_range=None, clip_range_vf=None, vf_coef=None, **kwargs):
        kind.__init__(self, *args, **{"n_critic_updates": n_epochs, **kwargs})

    return {"__init__": init}


MaskablePPO = type("MaskablePPO", (sb3_trpo.MaskableTRPO,), as_ppo(sb3_trpo.MaskableTRPO))
RecurrentPPO = type("RecurrentPPO", (sb3_trpo.RecurrentTRPO,), as_ppo(sb3_trpo.RecurrentTRPO))
sb3_contrib.TRPO = sb3_contrib.trpo.TRPO = sb3_trpo.TRPO
sb3_contrib.MaskablePPO = sb3_contrib.ppo_mask.MaskablePPO = MaskablePPO
sb3_contrib.RecurrentPPO = sb3_contrib.ppo_recurrent.RecurrentPPO = RecurrentPPO


def pytest_report_header():
    ours = [sb3_contrib.TRPO, *MaskablePPO.__bases__, *RecurrentPPO.__bases__]
    names = ", ".join(kind.__name__ for kind in ours)
    return f"with {names}; sb3-contrib is {sb3_contrib.__file__}"
"""
# Of the tests of the PPO twins, those that ask for what is PPO's.
DIFFERENT = [
    # 90 of 100 after a single rollout: PPO has taken 64 steps by then, TRPO one of length δ.
    "tests/test_invalid_actions.py::test_identity",
    # It expects an AssertionError; ours is a sentence, a ValueError.
    "tests/test_invalid_actions.py::test_discrete_action_space_required",
    # The actor's batch norm keeps its statistics: what moves them would move the policy outside of the trust region.
    "tests/test_train_eval_mode.py::test_ppo_mask_train_eval_mode",
]
SELECTED = "TRPO or trpo or MaskablePPO or RecurrentPPO or test_ppo or test_lstm or test_invalid_actions or advantage"


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
        left_out = [f"--deselect={test}" for test in DIFFERENT]
        selection = ["-k", SELECTED, *left_out, *options, "tests"]
        return subprocess.run([*pytest, *selection], cwd=sources, check=False).returncode


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
