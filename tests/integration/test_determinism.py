"""
The same seed gives the same weights, bit for bit, in another process too: nothing hangs on the order of sets, on
addresses, on the clock, or on random numbers that are not seeded.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def digests(hash_seed: str) -> dict[str, str]:
    """
    :param hash_seed: of Python's hashes of texts
    :return: a digest of each model that a process of its own has trained
    """
    done = subprocess.run(
        [sys.executable, HERE / "train_and_print.py"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
    )
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def test_two_processes_train_the_same_weights():
    first = digests("1")
    assert len(set(first.values())) == 6
    assert digests("2") == first
