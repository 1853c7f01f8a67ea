"""
How far sb3-contrib's TRPO really goes at a given ``target_kl``, by the number of action dimensions.

    python benchmarks/kl_factor.py      # measure, print the table, write results/kl_factor.json

Its ``target_kl`` bounds the mean of KL over action dimensions, and its damping takes a share of that. Measured here is
the sum over action dimensions of KL(old ‖ new), as in ``kl_table.py``; the factor is that sum over the one that this
package's TRPO reaches with the same ``target_kl``. ``sb3_trpo.saved_models.contrib.kl_factor`` is the rule drawn
from it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from campaign.provenance import provenance
from campaign.tables import table
from kl_table import ALGORITHMS, TARGET_KL, measure

from sb3_trpo.saved_models.contrib import kl_factor

RESULTS = Path(__file__).parent / "results" / "kl_factor.json"
TASKS = (
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Swimmer-v5",
    "Reacher-v5",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
    "Pusher-v5",
    "Ant-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds (2)")
    parser.add_argument("--updates", type=int, default=5, help="updates of each, from the first on (5)")
    options = parser.parse_args()

    th.set_num_threads(1)
    rows, measured = [], {}
    for task in TASKS:
        with gym.make(task) as env:
            n = gym.spaces.flatdim(env.action_space)
        means = {
            name: float(
                np.mean([kl for seed in range(options.seeds) for kl in measure(algorithm, task, seed, options.updates)])
            )
            for name, algorithm in ALGORITHMS.items()
        }
        factor = means["sb3-contrib"] / means["sb3_trpo"]
        measured[task] = {"action_dimensions": n, "mean_kl": means, "factor": factor}
        rows.append([task, str(n), f"{means['sb3-contrib']:.4f}", f"{factor:.2f}", f"{kl_factor(n):.2f}"])
        print(rows[-1], flush=True)

    result: dict[str, Any] = {
        "target_kl": TARGET_KL,
        "seeds": options.seeds,
        "updates": options.updates,
        "tasks": measured,
        **provenance(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(["task", "action dimensions", "sb3-contrib: mean KL", "factor", "rule"], rows))


if __name__ == "__main__":
    main()
