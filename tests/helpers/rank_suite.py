"""
All that the default tests need from ranks, in one start of them: ``rank_suite.py FOLDER KIND ...``, with the
environment variables that torchrun sets.
"""

import sys
from pathlib import Path

import torch as th
from rank_starts import leave_seen
from rank_training import Fault, leave_result
from rank_updates import leave_updates

if __name__ == "__main__":
    th.set_num_threads(1)
    folder = Path(sys.argv[1])
    leave_updates(folder, sys.argv[2:])
    leave_result(folder, Fault("", 0))
    leave_seen(folder)
