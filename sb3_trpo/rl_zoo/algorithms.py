"""
The algorithms of this package that RL Zoo gets to know.

A new algorithm takes a line in ``ALGORITHMS``, a file of hyperparameters, and a search space in ``sampler``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.masks_and_memory.maskable import MaskableTRPO
from sb3_trpo.masks_and_memory.recurrent import RecurrentTRPO
from sb3_trpo.rl_zoo.sampler import convert_trpo_params, sample_trpo_params
from sb3_trpo.shipped.models import HYPERPARAMETERS
from sb3_trpo.trpo import TRPO


@dataclass(frozen=True)
class Algorithm:
    """
    What RL Zoo needs to train with an algorithm, and to tune it.

    :param algorithm_class: the class that trains
    :param hyperparameters: the file with an entry for each task
    :param sample: the function that draws hyperparameters for a trial of Optuna
    :param convert: the function that turns what a trial has drawn into constructor arguments
    :param has_rule: whether a continuous task without an entry gets hyperparameters by the rule in ``rule``
    """

    algorithm_class: type[OnPolicyAlgorithm]
    hyperparameters: Path
    sample: Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]
    convert: Callable[[dict[str, Any]], dict[str, Any]]
    has_rule: bool = False


# The keys are what `--algo` takes.
ALGORITHMS = {
    "trpo": Algorithm(TRPO, HYPERPARAMETERS / "trpo.yml", sample_trpo_params, convert_trpo_params, has_rule=True),
    # RL Zoo brings sb3-contrib along.
    "trpo_mask": Algorithm(MaskableTRPO, HYPERPARAMETERS / "trpo_mask.yml", sample_trpo_params, convert_trpo_params),
    "trpo_lstm": Algorithm(RecurrentTRPO, HYPERPARAMETERS / "trpo_lstm.yml", sample_trpo_params, convert_trpo_params),
}
