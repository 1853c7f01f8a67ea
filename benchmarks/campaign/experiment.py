"""
Environments and model of a run, made by RL Zoo's own code from hyperparameters in its format.
"""

import argparse
import contextlib
import io
from copy import deepcopy
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from campaign.algorithms import ALGORITHMS
from campaign.specification import RunSpecification

try:
    import rl_zoo3
    from rl_zoo3.exp_manager import ExperimentManager
except ImportError as error:
    raise ImportError(
        f"The benchmarks need RL Zoo ({error}): install it with `pip install 'sb3-trpo[zoo]'`."
    ) from error


class Experiment(ExperimentManager):
    """
    RL Zoo's experiment manager without its folders, log files and printed reports.

    :param run: which task, algorithm, seed and hyperparameters
    """

    def __init__(self, run: RunSpecification) -> None:
        rl_zoo3.ALGOS[run.algo] = ALGORITHMS[run.algo].load()
        super().__init__(
            argparse.Namespace(),
            run.algo,
            run.task,
            log_folder="",
            n_timesteps=run.n_timesteps,
            eval_freq=-1,
            seed=run.seed,
            log_interval=-2,
            verbose=0,
            device="cpu",
        )
        self.run = run

    def make_model(self) -> BaseAlgorithm:
        """Return the untrained model in its training environments."""
        with contextlib.redirect_stdout(io.StringIO()):
            setup = self.setup_experiment()
        assert setup is not None
        return setup[0]

    def make_evaluation_envs(self, n_envs: int) -> list[gym.Env]:
        """
        Make environments to evaluate in.

        :param n_envs: how many
        :return: single environments with the wrappers of the training environments, but for their normalisation
        """
        vec_env: Any = super().create_envs(n_envs, eval_env=True, no_log=True)
        while isinstance(vec_env, VecEnvWrapper):
            vec_env = vec_env.venv
        assert isinstance(vec_env, DummyVecEnv)
        return vec_env.envs

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        hyperparams = {**deepcopy(self.run.hyperparams), "n_timesteps": self.run.n_timesteps}
        # RL Zoo would give these to the training environments alone.
        self.eval_env_kwargs = hyperparams.get("env_kwargs", {})
        return hyperparams, {}

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        if self.run.vec_env == "dummy":
            return super().create_envs(n_envs, eval_env, no_log=True)
        return self._maybe_normalize(make_envpool(self.run.task, n_envs, self.seed), eval_env=False)

    def create_log_folder(self) -> None:
        pass

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        pass


def make_envpool(task: str, n_envs: int, seed: int) -> VecEnv:
    """
    Make EnvPool's environments.

    :param task: EnvPool's id, which for MuJoCo is Gymnasium's
    :param n_envs: stepped together
    :param seed: of the first environment
    :return: the environments as a ``VecEnv``
    """
    from sb3_trpo.envpool import make_envpool_vec_env

    return make_envpool_vec_env(task, n_envs, seed)
