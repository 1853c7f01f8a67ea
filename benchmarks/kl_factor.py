"""
How far sb3-contrib's TRPO really goes at a given ``target_kl``, by the number of action dimensions.

    python benchmarks/kl_factor.py           # measure, write results/kl_factor.json, print the table
    python benchmarks/kl_factor.py --show    # print the table of what was measured

Its ``target_kl`` bounds the mean of KL over action dimensions, and its damping takes a share of that. Measured here is
the sum over action dimensions of KL(old ‖ new), as in ``kl_table.py``, whose tasks are in the table, too. The factor is
that sum over the mean of what this package's TRPO reaches with the same ``target_kl`` (in ``kl_table.py``, where it is
the same for all tasks to 4%). ``sb3_trpo.saved_models.contrib.kl_factor`` is the rule drawn from the factors.
"""

import argparse
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch as th
from campaign.provenance import provenance
from campaign.tables import table
from kl_table import RESULTS as KL_TABLE_RESULTS
from kl_table import TARGET_KL, measure

from sb3_trpo.saved_models.contrib import kl_factor

RESULTS = Path(__file__).parent / "results" / "kl_factor.json"
# Besides those of kl_table.py.
TASKS = ("Swimmer-v5", "Reacher-v5", "Walker2d-v5", "Pusher-v5", "Ant-v5")
N_SEEDS, N_UPDATES = 2, 5


def measured_factors() -> dict[str, tuple[int, float]]:
    """
    Read what was measured.

    :return: for each task the number of action dimensions, and the factor
    """
    new, old = (json.loads(path.read_text()) for path in (RESULTS, KL_TABLE_RESULTS))
    ours = np.mean([np.mean(by_algorithm["sb3_trpo"]) for by_algorithm in old["kl"].values()])
    divergences = {task: by_algorithm["sb3-contrib"] for task, by_algorithm in old["kl"].items()} | new["kl"]
    dimensions = old["action_dimensions"] | new["action_dimensions"]
    return {task: (dimensions[task], float(np.mean(kl) / ours)) for task, kl in divergences.items()}


def factor_table() -> str:
    """
    Show the measured factors beside the rule.

    :return: the table in Markdown
    """
    rows = [
        [task, str(n), f"{factor:.2f}", f"{kl_factor(n):.2f}"]
        for task, (n, factor) in sorted(measured_factors().items(), key=lambda item: item[1])
    ]
    return table(["task", "action dimensions", "measured", "7 n / (n + 6)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the table of what was measured")
    if not parser.parse_args().show:
        th.set_num_threads(1)
        dimensions, divergences = {}, {}
        for task in TASKS:
            with gym.make(task) as env:
                dimensions[task] = gym.spaces.flatdim(env.action_space)
            runs = [measure(sb3_contrib.TRPO, task, seed, N_UPDATES) for seed in range(N_SEEDS)]
            divergences[task] = [kl for run in runs for kl in run]
        result = {"target_kl": TARGET_KL, "seeds": N_SEEDS, "updates": N_UPDATES, "action_dimensions": dimensions}
        RESULTS.write_text(json.dumps({**result, "kl": divergences, **provenance()}, indent=1) + "\n")
    print(factor_table())


if __name__ == "__main__":
    main()
