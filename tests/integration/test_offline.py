"""
Nothing goes to the network: not at import, not in a training, not from the command line.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# An address that is reserved for examples (RFC 5737).
TRY_TO_CONNECT = """
import contextlib, socket, sys
import train_watched

sys.addaudithook(train_watched.refuse)
with contextlib.suppress(OSError):
    socket.create_connection(("192.0.2.1", 80))
with contextlib.suppress(OSError):
    socket.socket().connect(("192.0.2.1", 80))
for line in train_watched.refused:
    print(line.split()[0])
"""


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """
    Run Python without a network.

    :param arguments: of Python
    :param folder: where it runs
    :return: how it ended and what it printed
    """
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_training_and_acting_need_no_network(tmp_path):
    result = run(HERE / "train_watched.py", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("done\n")
    assert (tmp_path / "model.zip").exists()


@pytest.mark.slow
def test_the_watch_sees_what_is_caught():
    assert run("-c", TRY_TO_CONNECT, folder=HERE).stdout.split() == ["socket.getaddrinfo", "socket.connect"]
