"""
Measure the KL divergence of single updates at the same ``target_kl``, by sb3-contrib's TRPO and by ours.

    python benchmarks/kl_table.py                   # measure, print the table, write results/kl_table.json
    python benchmarks/kl_table.py --update-docs   # and put the table into docs/benchmarks.md

Both algorithms have their defaults, on plain environments. Measured from the outside, with a copy of the policy from
before the update and torch's own KL divergence: the sum over action dimensions of KL(old ‖ new), averaged over the
states of the rollout.
"""

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch as th
from campaign.provenance import provenance
from campaign.readme import KL_TABLE, REPOSITORY
from campaign.tables import table
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import kl_divergence

import sb3_trpo

PAGE = REPOSITORY / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results" / "kl_table.json"

TASKS = ("InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5", "Humanoid-v5")
ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {"sb3-contrib": sb3_contrib.TRPO, "sb3_trpo": sb3_trpo.TRPO}
TARGET_KL = 0.01
N_STEPS = 2048

# KL of each accepted update of each seed, by task and algorithm.
Measurements = Mapping[str, Mapping[str, Sequence[float]]]


def measure(algorithm: type[OnPolicyAlgorithm], task: str, seed: int, n_updates: int) -> list[float]:
    """
    Measure KL of the first updates of a training.

    :param algorithm: a TRPO
    :param task: with continuous actions
    :param seed: of everything
    :param n_updates: from the beginning of training
    :return: E_s[KL(old ‖ new)] of each update that changed the policy, in nats
    """
    divergences = []

    class Measured(algorithm):  # type: ignore[valid-type, misc]
        def train(self) -> None:
            before = copy.deepcopy(self.policy)
            super().train()
            divergences.append(mean_kl(before, self.policy, self.rollout_buffer.observations))

    model = Measured("MlpPolicy", task, n_steps=N_STEPS, target_kl=TARGET_KL, seed=seed, device="cpu")
    model.learn(n_updates * N_STEPS)
    return [kl for kl in divergences if kl > 0]


@th.no_grad()
def mean_kl(old: ActorCriticPolicy, new: ActorCriticPolicy, observations: np.ndarray) -> float:
    """
    Measure KL between two policies.

    :param old: a policy with independent Gaussians, or one categorical
    :param new: another of the same kind
    :param observations: of a rollout, (N, ·)
    :return: E_s[KL(old ‖ new)], summed over action dimensions
    """
    states = th.as_tensor(observations)
    distributions: list[Any] = [policy.get_distribution(states).distribution for policy in (old, new)]
    per_dimension = kl_divergence(*distributions).double()
    return float(per_dimension.reshape(len(states), -1).sum(dim=1).mean())


def kl_table(measurements: Measurements, action_dimensions: Mapping[str, int]) -> str:
    """
    Write the table of KL.

    :param measurements: to show
    :param action_dimensions: of each task
    :return: the table in Markdown, mean and largest of each cell
    """
    header = ["task", "action dimensions"]
    for name in ALGORITHMS:
        header += [f"{name}: mean", "largest"]
    rows = []
    for task, by_algorithm in measurements.items():
        row = [task, str(action_dimensions[task])]
        for name in ALGORITHMS:
            row += [f"{np.mean(by_algorithm[name]):.4f}", f"{np.max(by_algorithm[name]):.4f}"]
        rows.append(row)
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (5)")
    parser.add_argument("--updates", type=int, default=5, help="updates of each, from the first on (5)")
    parser.add_argument("--update-docs", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    if min(options.seeds, options.updates) < 1:
        parser.error(f"seeds={options.seeds} and updates={options.updates} must be at least 1.")

    th.set_num_threads(1)
    measurements: dict[str, dict[str, list[float]]] = {}
    dimensions = {}
    for task in TASKS:
        with gym.make(task) as env:
            dimensions[task] = gym.spaces.flatdim(env.action_space)
        measurements[task] = {
            name: [kl for seed in range(options.seeds) for kl in measure(algorithm, task, seed, options.updates)]
            for name, algorithm in ALGORITHMS.items()
        }

    result: dict[str, Any] = {
        "target_kl": TARGET_KL,
        "n_steps": N_STEPS,
        "seeds": options.seeds,
        "updates": options.updates,
        "action_dimensions": dimensions,
        "kl": measurements,
        **provenance(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    section = kl_table(measurements, dimensions)
    print(section)
    if options.update_docs:
        PAGE.write_text(KL_TABLE.replaced(PAGE.read_text(), section))


if __name__ == "__main__":
    main()
