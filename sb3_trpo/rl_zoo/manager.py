"""
RL Zoo's experiment manager, as ``sb3-trpo train`` uses it.

It says in one sentence what is wrong with the hyperparameters, and can train in EnvPool's environments. Evaluations
stay with Gymnasium's environments, on which others publish their results.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import yaml
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.rl_zoo.masked_runs import evaluate_with_masks
from sb3_trpo.rl_zoo.options import ENVPOOL, TrainOptions
from sb3_trpo.rl_zoo.progress_log import ProgressLog
from sb3_trpo.rl_zoo.ranked import RankedExperimentManager
from sb3_trpo.shipped.models import check_counts, check_env_kwargs, check_names
from sb3_trpo.validation.values import UserError


class TrainingManager(RankedExperimentManager):
    """
    RL Zoo's experiment manager, with this package's options.

    Of RL Zoo's parsed arguments, ``vec_env`` becomes what is really used, for the run's ``args.yml``.

    :param args: the positional arguments of RL Zoo's manager
    :param options: the options of this package
    :param settings: the keyword arguments of RL Zoo's manager
    """

    def __init__(self, *args: Any, options: TrainOptions | None = None, **settings: Any) -> None:
        self.options = options or TrainOptions()
        super().__init__(*args, **settings)
        if self.options.uses_envpool:
            self.args.vec_env = ENVPOOL

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters of the task.

        :return: the hyperparameters twice, to process and to save
        :raises UserError: if there is no such file, it holds no hyperparameters, or a name in it is unknown
        """
        is_text = self.config.endswith((".yml", ".yaml"))
        if is_text or self.config.endswith(".py"):
            if not Path(self.config).is_file():
                raise UserError(f"--conf-file is {self.config!r}, but there is no such file.")
        elif not _is_module(self.config):
            raise UserError(f"--conf-file is {self.config!r}, which is neither a .yml or .py file nor a module.")
        try:
            hyperparams, saved_hyperparams = super().read_hyperparameters()
        # Reading a text may raise these. A file of Python is a program, whose own errors keep their traceback.
        except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
            if not is_text:
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"{self.config} can't be read ({type(error).__name__}): {reason}") from error
        check_names(hyperparams, rl_zoo3.ALGOS[self.algo])
        check_counts(hyperparams)
        return hyperparams, saved_hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """
        Make objects of what the hyperparameters say.

        :param hyperparams: the hyperparameters; they are changed in place
        :return: the arguments of the algorithm, and the wrappers and callbacks
        :raises UserError: if RL Zoo can't read one of them, or no environment can be made with ``env_kwargs``
        """
        processed = super()._preprocess_hyperparams(hyperparams)
        if not self.options.uses_envpool:
            check_env_kwargs("env_kwargs", self.env_name.gym_id, self.env_kwargs)
        check_env_kwargs("eval_env_kwargs", self.env_name.gym_id, self.eval_env_kwargs)
        return processed

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create environments, in the wrappers that the hyperparameters ask for.

        :param n_envs: the number of environments
        :param eval_env: whether the environments are for evaluation
        :param no_log: whether to write no monitor file
        :return: the environments
        :raises UserError: if EnvPool can't give what the hyperparameters ask for
        """
        # Ranks would write the same files.
        no_log = no_log or not self.ranks.is_first
        if eval_env or not self.options.uses_envpool:
            return super().create_envs(n_envs, eval_env, no_log)
        if self.env_wrapper is not None:
            raise UserError(
                f"env_wrapper is given for {self.env_name}, but wrappers of single environments can't be put around "
                "EnvPool's: use --vec-env dummy or subproc."
            )
        monitor_dir = None if no_log else self.save_path

        def make_pool(env_fns: list[Callable[[], gym.Env]]) -> VecEnv:
            return self.make_envpool(len(env_fns), monitor_dir)

        # RL Zoo hands this to make_vec_env, which calls it with a function for each of Gymnasium's environments.
        vec_env_class = self.vec_env_class
        self.vec_env_class = make_pool  # type: ignore[assignment]
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.vec_env_class = vec_env_class

    def create_callbacks(self) -> None:
        """
        Create RL Zoo's callbacks, and the one that writes ``progress.csv``.

        Those that evaluate do so with masks, if the algorithm has them.
        """
        with evaluate_with_masks(self.algo):
            super().create_callbacks()  # type: ignore[no-untyped-call]  # RL Zoo gives it no types.
        self.callbacks.append(ProgressLog(Path(self.save_path)))

    def hyperparameters_optimization(self) -> None:
        """
        Tune the hyperparameters; trials are evaluated with masks, if the algorithm has them.

        :raises UserError: if no trial was completed
        """
        try:
            with evaluate_with_masks(self.algo):
                super().hyperparameters_optimization()
        except ValueError as error:
            # Optuna's study has no best trial, where RL Zoo asks for it.
            if "No trials are completed" not in str(error):
                raise
            raise UserError(
                "The search has no best trial, for none was completed: all have failed or were pruned, or the search "
                "was ended in the first."
            ) from error

    def make_envpool(self, n_envs: int, monitor_dir: str | None) -> VecEnv:
        """
        Make EnvPool's environments.

        :param n_envs: the number of environments
        :param monitor_dir: the folder for the monitor file; None writes none
        :return: the environments
        :raises UserError: if EnvPool is not installed, or lacks the task or an option
        """
        try:
            from sb3_trpo.envpool import make_envpool_vec_env
        except ImportError as error:
            raise UserError(str(error)) from error
        return make_envpool_vec_env(
            self.env_name.gym_id,
            n_envs,
            self.seed + self.ranks.rank * n_envs,
            monitor_dir=monitor_dir,
            info_keywords=self.monitor_kwargs.get("info_keywords", ()),
            **self.env_kwargs,
        )


def _is_module(name: str) -> bool:
    """
    Tell whether there is a module of a name, without running it.

    :param name: the name, with dots; the packages before the last dot are imported
    :return: whether there is such a module
    """
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
