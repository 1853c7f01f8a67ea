"""
RL Zoo's experiment manager, which reads hyperparameters, with one sentence for what it can't read.
"""

import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rl_zoo3
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.validation.values import UserError, short, suggest_names


class ReadingManager(ExperimentManager):
    """RL Zoo's experiment manager, which takes every form of schedule that the algorithm reads."""

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """
        Make objects of what the hyperparameters say.

        :param hyperparams: the hyperparameters; they are changed in place
        :return: the arguments of the algorithm, and the wrappers and callbacks
        :raises UserError: if RL Zoo can't read one of them
        """
        try:
            processed = super()._preprocess_hyperparams(hyperparams)
        except Exception as error:
            # What wrappers and callbacks of the user raise keeps its traceback.
            if not _is_of_rl_zoo(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"The hyperparameters of {self.env_name} in {self.config} can't be read ({reason})."
            ) from error
        _check_normalization(self.normalize_kwargs)
        return processed

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        Make schedules of texts.

        RL Zoo knows numbers, and one form of text, for a learning rate that falls to 0. The algorithm reads all others
        itself.

        :param hyperparams: the hyperparameters
        :return: the hyperparameters with schedules
        """
        rate = hyperparams.get("learning_rate")
        if isinstance(rate, (int, float)) or (isinstance(rate, str) and rate.count("_") == 1):
            processed: dict[str, Any] = ExperimentManager._preprocess_schedules(hyperparams)
            return processed
        others = {name: value for name, value in hyperparams.items() if name != "learning_rate"}
        kept = {"learning_rate": rate} if "learning_rate" in hyperparams else {}
        return ExperimentManager._preprocess_schedules(others) | kept


def _check_normalization(arguments: object) -> None:
    known = list(inspect.signature(VecNormalize).parameters)
    if not isinstance(arguments, Mapping):
        raise UserError(f"normalize is {short(arguments)}, but must be true, false, or arguments of VecNormalize.")
    for name in arguments:
        if name not in known:
            hint = suggest_names(str(name), known)
            raise UserError(f"normalize has {short(name)}, but VecNormalize has no such argument; {hint}")


def _is_of_rl_zoo(error: Exception) -> bool:
    """
    Tell whether an error was raised by RL Zoo itself, by an expression that it evaluates, or by an import.

    :param error: the error
    :return: whether it was, and so is about a text in the hyperparameters
    """
    *_, last = traceback.extract_tb(error.__traceback__)
    is_rl_zoos = Path(last.filename).parent == Path(rl_zoo3.__file__).parent
    return is_rl_zoos or last.filename == "<string>" or last.filename.startswith("<frozen importlib")
