"""
Measure an update and ``learn()`` beside sb3-contrib's TRPO, SB3's PPO, Tianshou's and skrl's TRPO.

    python benchmarks/speed.py                          # everything, some 25 minutes on a quiet machine
    python benchmarks/speed.py --only defaults wide     # some rows
    python benchmarks/speed.py --tables                 # only the tables, from what is there

Each row, at each number of threads, is measured in a process of its own and leaves a file in results/speed; what is
there already is not measured again. The last step makes TABLE.md beside them, which becomes the section "Speed" of the
report (report.py).
"""

import sys

from speed.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
