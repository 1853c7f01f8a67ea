"""
The same seed gives the same weights, bit for bit, in another process too: nothing hangs on the order of sets, on
addresses, on the clock, on which thread is first, or on random numbers that are not seeded.

The number of threads has to be the same: with another one torch's matrix products sum in another order, even those of
two states and a layer of 64 units, so that the actions of the first rollout differ in their last bits already.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch as th
from train_and_print import train_all

HERE = Path(__file__).parent
N_KINDS = 6


def digests(hash_seed: str, n_threads: int) -> dict[str, str]:
    """
    Train models in a process of its own.

    :param hash_seed: of Python's hashes of texts
    :param n_threads: of torch
    :return: a digest of each model that a process of its own has trained
    """
    path = str(HERE.parent / "helpers")
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path, "OMP_NUM_THREADS": str(n_threads)}
    # Threads that wait make room for others.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(
        [sys.executable, HERE / "train_and_print.py", str(n_threads)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def test_another_process_trains_the_same_weights():
    # Whatever this one has done before plays no part.
    here = train_all()
    assert len(set(here.values())) == N_KINDS
    assert digests("1", th.get_num_threads()) == here


@pytest.mark.slow
def test_two_processes_with_two_threads_train_the_same_weights():
    first = digests("1", 2)
    assert len(set(first.values())) == N_KINDS
    assert digests("2", 2) == first
