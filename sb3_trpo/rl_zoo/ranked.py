"""
RL Zoo's ``train`` on several ranks (``torchrun``): one folder, one seed, one set of evaluations.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import rl_zoo3
import torch as th
from stable_baselines3.common.utils import set_random_seed

from sb3_trpo.ranks.joining import join, launched_as
from sb3_trpo.shipped.reading import ReadingManager
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.values import UserError


class RankedExperimentManager(ReadingManager):
    """
    RL Zoo's experiment manager, of which there is one on each rank; only the first evaluates and writes.

    :param args: the positional arguments of RL Zoo's manager
    :param settings: the keyword arguments of RL Zoo's manager
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ranks = join(th.device("cpu"))
        if self.ranks.is_alone:
            return
        if self.optimize_hyperparameters:
            raise UserError("-optimize is for one process; several work on one search with --storage.")
        if not issubclass(rl_zoo3.ALGOS[self.algo], TRPO):
            raise UserError(f"{self.algo} can't train on {self.ranks.size} ranks together, as trpo can.")
        # The number of a run is the first that is free, and a seed that is not named is drawn.
        self.use_folder(*self.ranks.broadcast((self.save_path, self.seed)))
        if self.ranks.is_first:
            # In steps of one environment, as RL Zoo has them; each of them counts for one on each rank.
            self.eval_freq, self.save_freq = (
                freq if freq <= 0 else max(freq // self.ranks.size, 1) for freq in (self.eval_freq, self.save_freq)
            )
        else:
            self.eval_freq = self.save_freq = -1
            self.show_progress, self.verbose = False, 0

    def use_folder(self, folder: str, seed: int) -> None:
        """
        Work in another folder, with another seed, than those that RL Zoo has prepared.

        :param folder: the folder
        :param seed: the seed
        """
        self.save_path, self.params_path = folder, f"{folder}/{self.env_name}"
        self.seed = self.args.seed = seed
        set_random_seed(seed)

    def create_log_folder(self) -> None:
        """Create the run's folder, once."""
        if self.ranks.is_first:
            super().create_log_folder()  # type: ignore[no-untyped-call]  # RL Zoo gives it no types.

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.ranks.is_first:
            super()._save_config(saved_hyperparams)


@contextlib.contextmanager
def print_once() -> Iterator[None]:
    """Print nothing, in the block, if this process is one of several and not the first."""
    if launched_as()[0] == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
