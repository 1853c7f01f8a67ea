"""
What RL Zoo does not know of hyperparameters: schedules of our algorithms, and which names an algorithm has.

``target_kl: lin_0.06`` falls linearly to 0, and ``min_std: lin_0.4_0.2`` goes from one number to the other, as RL Zoo's
own schedules do for ``learning_rate``, which may have both forms here.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo.validation import UserError, as_integer, short, suggest_names

# Hyperparameters of our algorithms that may have a schedule.
SCHEDULED = ("target_kl", "min_std", "max_std")
# Names that RL Zoo takes out of the hyperparameters before it makes the algorithm.
RL_ZOO_NAMES = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "noise_std",
    "noise_type",
    "normalize",
    "vec_env_wrapper",
)


def check_names(names: Iterable[str], algorithm_class: type[BaseAlgorithm]) -> None:
    """
    Check that RL Zoo or the algorithm knows each hyperparameter.

    :param names: the names in the file and on the command line
    :param algorithm_class: the algorithm
    :raises UserError: at the first name that neither knows; the message has the names that are most alike
    """
    arguments = inspect.signature(algorithm_class.__init__).parameters
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return
    known = {*RL_ZOO_NAMES, *arguments} - {"self", "env"}
    for name in names:
        if name not in known:
            raise UserError(f"{algorithm_class.__name__} has no hyperparameter {name!r}; {suggest_names(name, known)}")


def check_counts(hyperparams: dict[str, Any]) -> None:
    """
    Check the numbers that RL Zoo itself uses.

    :param hyperparams: the hyperparameters, as in a file; whole numbers are made of those that are written as 4.0
    :raises UserError: if one is no whole number above 0, or there is no policy
    """
    for name in ("n_envs", "n_timesteps", "frame_stack"):
        if hyperparams.get(name) is not None:
            hyperparams[name] = as_integer(name, hyperparams[name], minimum=1)
    if not isinstance(hyperparams.get("policy"), (str, type)):
        raise UserError(f"policy is {short(hyperparams.get('policy'))}, but must be a name such as 'MlpPolicy'.")


def read_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Replace texts by schedules, in the hyperparameters that RL Zoo does not know.

    :param hyperparams: the arguments of the algorithm, as in a file; they are changed in place, as RL Zoo does
    :return: the same dictionary
    :raises UserError: if a text is no schedule
    """
    for name in (*SCHEDULED, "learning_rate"):
        if isinstance(hyperparams.get(name), str):
            schedule = _read_linear_schedule(name, hyperparams[name])
            # RL Zoo has its own for the learning rate, which fall to 0.
            if name != "learning_rate" or schedule.end != 0.0:
                hyperparams[name] = schedule
    return hyperparams


def _read_linear_schedule(name: str, text: str) -> LinearSchedule:
    """
    Read a schedule.

    :param name: the name of the hyperparameter
    :param text: ``lin_START`` or ``lin_START_END``
    :return: the schedule from START to END, or to 0
    :raises UserError: if the text is in neither form
    """
    kind, *numbers = text.split("_")
    try:
        match kind, [float(number) for number in numbers]:
            case "lin", [start]:
                return LinearSchedule(start, 0.0, 1.0)
            case "lin", [start, end]:
                return LinearSchedule(start, end, 1.0)
    except ValueError:
        pass
    raise UserError(
        f"{name} is {text!r}, but must be a number, lin_START (falls to 0) or lin_START_END (in YAML 1e-5 "
        "is a text, 1.0e-5 a number)."
    )
