"""
The registration of this package's algorithms and hyperparameters in RL Zoo.

    python -m rl_zoo3.train --algo trpo --env HalfCheetah-v5 --gym-packages sb3_trpo.rl_zoo

RL Zoo reads ``--algo`` before it imports the modules that ``--gym-packages`` names. So with this command a known name,
``trpo``, can mean another class, but no new name is accepted. ``sb3-trpo`` registers first, and accepts all of
``ALGORITHMS``.

``python -m rl_zoo3.train`` runs that file as ``__main__``, a second copy of the module ``rl_zoo3.train`` with names of
its own. To replace the names of the module would miss this copy. Both copies share the dictionaries of RL Zoo and the
class ``ExperimentManager``. The dictionaries get our entries, and the constructor of the class is wrapped. Managers of
other algorithms stay as they are.
"""

import functools
import inspect
from typing import Any

from sb3_trpo.validation.install import how_to_install

try:
    import rl_zoo3
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
except ImportError as error:
    raise ImportError(f"sb3_trpo.rl_zoo needs RL Zoo ({error}): install it with {how_to_install('zoo')}.") from error

from sb3_trpo.rl_zoo.algorithms import ALGORITHMS
from sb3_trpo.saved_models.contrib import own_options, warn_of_contribs_file
from sb3_trpo.shipped.models import add_rule


def register() -> None:
    """Make the names in ``ALGORITHMS`` mean this package's classes in RL Zoo, with this package's hyperparameters."""
    # RL Zoo's types are those of its first entries.
    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    for name, algorithm in ALGORITHMS.items():
        rl_zoo3.ALGOS[name] = algorithm.algorithm_class
        samplers[name] = algorithm.sample
        converters[name] = algorithm.convert
    _wrap_constructor(ExperimentManager)


def _wrap_constructor(manager_class: type[ExperimentManager]) -> None:
    """
    Let managers of our algorithms read our hyperparameters.

    RL Zoo chooses its file inside the constructor, and has no table of files that could be changed instead. A file
    that the user names (``--conf-file``) is left alone.

    :param manager_class: RL Zoo's experiment manager
    """
    rl_zoo_init = manager_class.__init__
    if getattr(rl_zoo_init, "reads_sb3_trpo_hyperparameters", False):
        return
    signature = inspect.signature(rl_zoo_init)

    @functools.wraps(rl_zoo_init)
    def init(self: ExperimentManager, *args: Any, **kwargs: Any) -> None:
        rl_zoo_init(self, *args, **kwargs)
        algorithm = ALGORITHMS.get(self.algo)
        if algorithm is None:
            return
        if not signature.bind(self, *args, **kwargs).arguments.get("config"):
            self.config = str(algorithm.hyperparameters)
            if algorithm.has_rule:
                add_rule(self)
        else:
            warn_of_contribs_file(self.config, own_options(algorithm.algorithm_class))

    init.reads_sb3_trpo_hyperparameters = True  # type: ignore[attr-defined]
    manager_class.__init__ = init  # type: ignore[method-assign]
