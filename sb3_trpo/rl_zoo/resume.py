"""
RL Zoo's ``train`` that can be killed at any moment.

With ``--resume`` a run keeps a checkpoint, and the same command goes on with it, in the same folder.

A checkpoint is a model file, and a model file may run code when it is loaded. What this account has written carries its
seal (see ``seal``) and is loaded as it is; anything else is read as data (``trusted=False``), or passed over.
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
import rl_zoo3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo.checkpoints import Checkpoint, Checkpointable
from sb3_trpo.ranks.callbacks import callbacks_of_rank
from sb3_trpo.rl_zoo.progress_log import keep_file
from sb3_trpo.rl_zoo.report import ReportingExperimentManager
from sb3_trpo.rl_zoo.runs import CHECKPOINT, FINISHED, Run, describe_run, find_run, say, try_lock
from sb3_trpo.rl_zoo.seal import add_seal
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.values import UserError


class SealedCheckpoint(Checkpoint):
    """A ``Checkpoint`` whose files carry the seal of the account that has written them."""

    def seal(self, content: bytes) -> bytes:
        """
        Seal a file before it is written.

        :param content: the file: a zip archive without a comment
        :return: the file with the account's seal
        """
        return add_seal(content)


class ResumableExperimentManager(ReportingExperimentManager):
    """
    An experiment manager whose runs can go on after a crash.

    :param others: the positional arguments of RL Zoo's manager
    :param settings: the keyword arguments of ``TrainingManager``
    """

    def __init__(self, *others: Any, **settings: Any) -> None:
        super().__init__(*others, **settings)
        self.checkpoint: SealedCheckpoint | None = None
        # The run to go on with; None begins a new one.
        self.run: Run | None = None
        self._lock: IO[bytes] | None = None
        if not self.options.resume:
            return
        if self.optimize_hyperparameters:
            raise UserError("--resume is for training; a search (-optimize) goes on with --storage instead.")
        if not issubclass(rl_zoo3.ALGOS[self.algo], OnPolicyAlgorithm):
            raise UserError(f"--resume is for algorithms without a replay buffer, which {self.algo} has.")

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters, and choose the run to go on with, which depends on them.

        :return: the hyperparameters twice, to process and to save
        """
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        if self.options.resume:
            self._choose_run(saved_hyperparams)
        return hyperparams, saved_hyperparams

    def _choose_run(self, hyperparams: dict[str, Any]) -> None:
        """
        Find the run to go on with, and take its folder and seed, or stay with the new run that RL Zoo has prepared.

        :param hyperparams: the hyperparameters of the task
        """
        n_timesteps = self.n_timesteps if self.n_timesteps > 0 else int(hyperparams["n_timesteps"])
        wanted = describe_run(self.args, hyperparams, self.seed, n_timesteps)
        found = None
        if self.ranks.is_first:
            found = find_run(Path(self.log_path), self.env_name, wanted, self.options.is_seeded, self._accepts)
        run, self._lock = found or (None, None)
        self.run = self.ranks.broadcast(run)
        if self.run is not None:
            self.use_folder(str(self.run.checkpoint.parent), self.run.note.seed)
            say(f"Going on with {self.save_path}, which has seed {self.seed}.")
            if self.run.note.n_timesteps < n_timesteps:
                say(
                    f"It was begun with {self.run.note.n_timesteps} steps: schedules and what else goes by the share "
                    f"of training that is left now run over {n_timesteps}."
                )
        note = describe_run(self.args, hyperparams, self.seed, n_timesteps)
        path = Path(self.save_path) / CHECKPOINT
        self.checkpoint = SealedCheckpoint(path, self.options.checkpoint_every, note.to_texts())

    def _accepts(self, run: Run) -> bool:
        """
        Tell whether the command can go on with a run that fits; if not, print the reason.

        :param run: the run
        :return: whether it can
        """
        if run.is_own or self.options.trusts_checkpoints:
            return True
        passed_over = f"{run.checkpoint} is passed over: this account has not written it, or it was changed since, and"
        folder = run.checkpoint.parent
        algorithm_class = rl_zoo3.ALGOS[self.algo]
        if not issubclass(algorithm_class, TRPO):
            say(f"{passed_over} {self.algo} can't be read as data (--trust-checkpoints loads it as it is).")
            return False
        if any(path.is_symlink() for path in [folder, *folder.rglob("*")]):
            say(f"{passed_over} its folder holds links, through which files elsewhere would be written.")
            return False
        try:
            algorithm_class.load(run.checkpoint, device="cpu", trusted=False)
        except (OSError, ValueError) as error:
            say(f"{passed_over} it can't be read as data: {error} (--trust-checkpoints loads it as it is)")
            return False
        say(f"{run.checkpoint} is read as data: this account has not written it, or it was changed since.")
        return True

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Make the model, or load it from the run's checkpoint.

        :return: the model and the hyperparameters; None if these are to be searched
        """
        results = super().setup_experiment()
        if results is None or self.checkpoint is None or self.run is None:
            return results
        model, hyperparams = results
        assert isinstance(model, OnPolicyAlgorithm)
        assert model.env is not None
        is_trusted = self.run.is_own or self.options.trusts_checkpoints
        loaded = self.checkpoint.load(
            model.env, type(model), trusted=is_trusted, device=self.device, verbose=self.verbose
        )
        return loaded, hyperparams

    def create_log_folder(self) -> None:
        """
        Create the run's folder, and lock it.

        :raises UserError: if another process works there
        """
        super().create_log_folder()
        if self.checkpoint is None or not self.ranks.is_first:
            return
        self._lock = self._lock or try_lock(Path(self.save_path))
        if self._lock is None:
            raise UserError(f"{self.save_path} is a run that another process is going on with.")
        if self.run is not None and self.run.checkpoint.name == FINISHED:
            self.run.checkpoint.replace(self.checkpoint.path)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train the model.

        :param model: the model, new or from the run's checkpoint
        """
        try:
            super().learn(model)
        except BaseException:
            self._unlock()
            raise

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def create_callbacks(self) -> None:
        """Create RL Zoo's callbacks, and the one that writes checkpoints."""
        super().create_callbacks()
        if self.checkpoint is not None:
            self.callbacks.append(self.checkpoint)
        # RL Zoo ends the first of its callbacks itself, which has to be one that was begun.
        of_rank = callbacks_of_rank(self.callbacks, self.ranks)
        assert isinstance(of_rank, list)
        self.callbacks = of_rank

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create environments, in the wrappers that the hyperparameters ask for.

        :param n_envs: the number of environments
        :param eval_env: whether the environments are for evaluation
        :param no_log: whether to write no monitor file
        :return: the environments
        """
        if self.checkpoint is None:
            return super().create_envs(n_envs, eval_env, no_log)
        if self.run is not None:
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        env_wrapper = self.env_wrapper
        if self.vec_env_class is SubprocVecEnv:
            self.env_wrapper = make_checkpointable(env_wrapper)
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.env_wrapper = env_wrapper

    def make_envpool(self, n_envs: int, monitor_dir: str | None) -> VecEnv:
        """
        Make EnvPool's environments; the monitor file of a run that goes on begins anew, beside the old one.

        :param n_envs: the number of environments
        :param monitor_dir: the folder for the monitor file; None writes none
        :return: the environments
        """
        if self.run is not None and monitor_dir is not None:
            keep_file(Path(monitor_dir) / "monitor.csv")
        return super().make_envpool(n_envs, monitor_dir)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model, and keep the checkpoint of a run that has come to its end under another name.

        :param model: the model, trained, or interrupted by the user
        """
        if not self.ranks.is_first:
            return
        super().save_trained_model(model)
        if self.checkpoint is not None and model.num_timesteps >= self.n_timesteps and self.checkpoint.exists():
            self.checkpoint.path.replace(self.checkpoint.path.with_name(FINISHED))
        self._unlock()


def make_checkpointable(env_wrapper: Callable[[gym.Env], gym.Env] | None) -> Callable[[gym.Env], gym.Env]:
    """
    Give environments in other processes a wrapper through which checkpoints reach their state.

    :param env_wrapper: the wrapper of single environments, or None
    :return: a function that wraps an environment in it, and in ``Checkpointable``
    """

    def wrap(env: gym.Env) -> gym.Env:
        return Checkpointable(env if env_wrapper is None else env_wrapper(env))

    return wrap
