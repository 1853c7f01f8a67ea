"""
Masks where RL Zoo knows none: in its evaluations, and in its commands that run a trained policy.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.utils
from rl_zoo3.callbacks import TrialEvalCallback
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.masks_and_memory.maskable import MaskableTRPO
from sb3_trpo.rl_zoo.names import use_names


class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
    """RL Zoo's evaluations during a trial of Optuna, with masks."""


def takes_masks(algo: str) -> bool:
    """
    Tell whether an algorithm takes masks, and RL Zoo does not know.

    :param algo: what ``--algo`` names
    :return: whether it is ``MaskableTRPO``
    """
    return issubclass(rl_zoo3.ALGOS.get(algo, object), MaskableTRPO)


@contextlib.contextmanager
def evaluate_with_masks(algo: str) -> Iterator[None]:
    """
    Let RL Zoo's experiment manager, in the block, make callbacks that evaluate with masks.

    :param algo: what ``--algo`` names; one without masks changes nothing
    """
    if not takes_masks(algo):
        yield
        return
    callbacks = {"EvalCallback": MaskableEvalCallback, "TrialEvalCallback": MaskableTrialEvalCallback}
    with use_names(rl_zoo3.exp_manager, **callbacks):
        yield


@contextlib.contextmanager
def play_with_masks(algo: str) -> Iterator[None]:
    """
    Let RL Zoo's commands that run a trained policy, in the block, ask the environments for masks.

    :param algo: what ``--algo`` names; one without masks changes nothing
    """
    if not takes_masks(algo):
        yield
        return
    make_env, algorithm_class, envs = rl_zoo3.utils.create_test_env, rl_zoo3.ALGOS[algo], list[VecEnv]()

    def make_and_note(*args: Any, **kwargs: Any) -> VecEnv:
        envs[:] = [make_env(*args, **kwargs)]
        return envs[0]

    class Player(algorithm_class):  # type: ignore[misc, valid-type]
        def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
            prediction: tuple[np.ndarray, tuple[np.ndarray, ...] | None]
            prediction = super().predict(*args, **{"action_masks": get_action_masks(envs[0]), **kwargs})
            return prediction

    # `record-video` is a script that imports the function when it runs; `enjoy` has imported it.
    in_utils = use_names(rl_zoo3.utils, create_test_env=make_and_note)
    with in_utils, use_names(rl_zoo3.enjoy, create_test_env=make_and_note):
        rl_zoo3.ALGOS[algo] = Player
        try:
            yield
        finally:
            rl_zoo3.ALGOS[algo] = algorithm_class
