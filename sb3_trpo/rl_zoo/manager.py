"""
RL Zoo's ``train`` with EnvPool: ``--vec-env envpool`` beside ``dummy`` and ``subproc``.

Only the environments that are trained in come from EnvPool; evaluations stay with Gymnasium, whose results are the
ones that others publish.
"""

import argparse
import functools
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv

ENVPOOL = "envpool"


class TrainParser(argparse.ArgumentParser):
    """
    The parser of RL Zoo's ``train``, with one more choice.
    """

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        if "--vec-env" in names:
            settings["choices"] = [*settings["choices"], ENVPOOL]
        return super().add_argument(*names, **settings)


class EnvPoolExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager, which can train in EnvPool's environments.

    :param vec_env_type: ``envpool``, or what RL Zoo knows
    """

    def __init__(self, *args: Any, vec_env_type: str = "dummy", **kwargs: Any) -> None:
        self.uses_envpool = vec_env_type == ENVPOOL
        kwargs["vec_env_type"] = "dummy" if self.uses_envpool else vec_env_type
        super().__init__(*args, **kwargs)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: how many
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor file
        :return: the environments, in the wrappers that the hyperparameters ask for
        """
        if eval_env or not self.uses_envpool:
            return super().create_envs(n_envs, eval_env, no_log)
        if self.env_wrapper is not None:
            raise ValueError(
                f"env_wrapper is given for {self.env_name}, but wrappers of single environments can't be put around "
                "EnvPool's: use --vec-env dummy or subproc."
            )
        vec_env_class = self.vec_env_class
        monitor_dir = None if no_log else self.save_path
        self.vec_env_class = functools.partial(self._make_envpool, monitor_dir)  # type: ignore[assignment]
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.vec_env_class = vec_env_class

    def _make_envpool(self, monitor_dir: str | None, env_fns: list[Any]) -> VecEnv:
        """
        :param monitor_dir: folder for the monitor file
        :param env_fns: of Gymnasium's environments, in place of which EnvPool's are made
        :return: as many
        """
        from sb3_trpo.envpool import make_envpool_vec_env

        return make_envpool_vec_env(
            self.env_name.gym_id,
            len(env_fns),
            self.seed,
            monitor_dir=monitor_dir,
            info_keywords=self.monitor_kwargs.get("info_keywords", ()),
            **self.env_kwargs,
        )
