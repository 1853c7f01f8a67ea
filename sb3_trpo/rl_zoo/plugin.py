"""
RL Zoo with this package's TRPO: importing this module puts it, and its hyperparameters, in the place of ``trpo``.

    python -m rl_zoo3.train --algo trpo --env HalfCheetah-v5 --gym-packages sb3_trpo.rl_zoo

RL Zoo imports the modules named by ``--gym-packages`` after it has parsed its arguments, so a new algorithm name would
come too late to be accepted, while the existing name can still be given another class. ``python -m rl_zoo3.train``
runs that file as ``__main__``, a second copy of the module ``rl_zoo3.train`` with names of its own, so replacing the
names of a module would miss it. What both copies share are the objects: the dictionaries ``rl_zoo3.ALGOS`` and those of
``rl_zoo3.hyperparams_opt``, and the class ``ExperimentManager``. These are changed in place, and nothing else is.

A hyperparameter file may give schedules for ``target_kl``, ``min_std`` and ``max_std`` as for ``learning_rate``:
``target_kl: lin_0.06`` falls linearly to 0, and ``min_std: lin_0.4_0.2`` from one to the other.
"""

import functools
import inspect
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

try:
    import rl_zoo3
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
except ImportError as error:
    raise ImportError(
        f"sb3_trpo.rl_zoo needs RL Zoo ({error}): install it with `pip install 'sb3-trpo[zoo]'`."
    ) from error

from sb3_trpo.rl_zoo.sampler import convert_trpo_params, sample_trpo_params
from sb3_trpo.saved_models.contrib import own_options, warn_of_contribs_file
from sb3_trpo.trpo import TRPO

ALGO = "trpo"
# Hyperparameters of ours that may have a schedule.
SCHEDULED = ("target_kl", "min_std", "max_std")
HYPERPARAMETERS = Path(__file__).parent / "hyperparams" / "trpo.yml"


def register() -> None:
    """
    Make ``trpo`` mean this package's TRPO in RL Zoo, with this package's hyperparameters.
    """
    rl_zoo3.ALGOS[ALGO] = TRPO
    HYPERPARAMS_SAMPLER[ALGO] = sample_trpo_params
    HYPERPARAMS_CONVERTER[ALGO] = convert_trpo_params
    _default_to_own_hyperparameters(ExperimentManager)
    _read_own_schedules(ExperimentManager)


def _default_to_own_hyperparameters(manager_class: type[ExperimentManager]) -> None:
    """
    Let a manager of ``trpo`` experiments read ``HYPERPARAMETERS`` unless the user names a file (``--conf-file``).

    RL Zoo chooses its file inside the constructor and has no table of files that could be changed instead.

    :param manager_class: RL Zoo's experiment manager, whose constructor is wrapped
    """
    rl_zoo_init = manager_class.__init__
    if getattr(rl_zoo_init, "reads_sb3_trpo_hyperparameters", False):
        return
    signature = inspect.signature(rl_zoo_init)

    @functools.wraps(rl_zoo_init)
    def init(self: ExperimentManager, *args: Any, **kwargs: Any) -> None:
        rl_zoo_init(self, *args, **kwargs)
        users_file = signature.bind(self, *args, **kwargs).arguments.get("config")
        if self.algo == ALGO and not users_file:
            self.config = str(HYPERPARAMETERS)
        elif self.algo == ALGO:
            warn_of_contribs_file(self.config, own_options(TRPO))

    init.reads_sb3_trpo_hyperparameters = True  # type: ignore[attr-defined]
    manager_class.__init__ = init  # type: ignore[method-assign]


def _read_own_schedules(manager_class: type[ExperimentManager]) -> None:
    """
    RL Zoo has a fixed list of the hyperparameters that may have a schedule.

    :param manager_class: RL Zoo's experiment manager, whose reading of schedules is wrapped
    """
    rl_zoo_schedules = manager_class._preprocess_schedules
    if getattr(rl_zoo_schedules, "reads_own_schedules", False):
        return

    @functools.wraps(rl_zoo_schedules)
    def preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        for name in SCHEDULED:
            if isinstance(hyperparams.get(name), str):
                hyperparams[name] = _linear_schedule(name, hyperparams[name])
        return rl_zoo_schedules(hyperparams)

    preprocess_schedules.reads_own_schedules = True  # type: ignore[attr-defined]
    manager_class._preprocess_schedules = staticmethod(preprocess_schedules)  # type: ignore[method-assign]


def _linear_schedule(name: str, text: str) -> LinearSchedule:
    """
    :param name: of the hyperparameter
    :param text: ``lin_START`` or ``lin_START_END``
    :return: which goes from one to the other, or to 0
    :raises ValueError: if it is in neither form
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
    raise ValueError(f"{name} is {text!r}, but must be a number, lin_START (falls to 0) or lin_START_END.")
