"""
RL Zoo's ``train`` that can be killed at any moment: with ``--resume`` a run keeps a checkpoint, and the same command
goes on with it, in the same folder.
"""

import argparse
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo.checkpoints import Checkpoint, Checkpointable
from sb3_trpo.checkpoints.checkpoint import read_note
from sb3_trpo.rl_zoo.envpool_training import TrainParser
from sb3_trpo.rl_zoo.report import ReportingExperimentManager
from sb3_trpo.validation import check_integer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT = "checkpoint.zip"
# Locked by the process that trains; the system takes the lock away when that ends, however it ends.
LOCK = ".in_use"
# What makes two commands one run; a seed counts only if it is given.
IDENTITY = (
    "algo",
    "env",
    "seed",
    "n_timesteps",
    "hyperparams",
    "conf_file",
    "env_kwargs",
    "eval_env_kwargs",
    "vec_env",
    "eval_freq",
    "eval_episodes",
    "n_eval_envs",
    "trained_agent",
    "storage",
    "study_name",
    "trial_id",
)


class ResumableTrainParser(TrainParser):
    """
    The parser of RL Zoo's ``train``, with ``--resume``.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.add_argument(
            "--resume",
            action="store_true",
            help="Keep a checkpoint, and go on with the run that this command has left unfinished, if there is one",
        )
        self.add_argument(
            "--checkpoint-every", type=int, default=10, help="Updates between two checkpoints (with --resume)"
        )

    def parse_args(self, *args: Any, **settings: Any) -> Any:
        """
        :return: the arguments; ``resumed_run`` is the folder of the run to go on with, empty if there is none
        """
        parsed = super().parse_args(*args, **settings)
        parsed.resumed_run = ""
        if parsed.resume:
            check_integer("--checkpoint-every", parsed.checkpoint_every, minimum=1)
            if parsed.optimize_hyperparameters:
                raise ValueError("--resume is for training; a search (-optimize) goes on with --storage instead.")
            run, seed = find_unfinished_run(parsed)
            if run is not None:
                parsed.resumed_run, parsed.seed = str(run), seed
        return parsed


def find_unfinished_run(args: argparse.Namespace) -> tuple[Path | None, int]:
    """
    :param args: of the command; a negative seed stands for any
    :return: the folder of the latest run with the same arguments that has not come to its end, and its seed
    """
    wanted = identity(args)
    checkpoints = Path(args.log_folder, args.algo).glob(f"{args.env.replace('/', '-')}_*/{CHECKPOINT}")
    for path in sorted(checkpoints, key=lambda path: path.stat().st_mtime, reverse=True):
        lock = _lock(path.parent)
        if lock is None:
            continue
        lock.close()
        note = read_note(path)
        if note == {**wanted, "seed": note["seed"] if args.seed < 0 else wanted["seed"]}:
            return path.parent, int(note["seed"])
    return None, args.seed


def identity(args: argparse.Namespace) -> dict[str, str]:
    """
    :param args: of the command
    :return: those that define the run, as texts
    """
    return {name: str(getattr(args, name, None)) for name in IDENTITY}


class ResumableExperimentManager(ReportingExperimentManager):
    """
    An experiment manager whose runs can go on after a crash.

    :param args: of the command, from ``ResumableTrainParser``
    """

    def __init__(self, args: argparse.Namespace, *others: Any, **settings: Any) -> None:
        super().__init__(args, *others, **settings)
        self.checkpoint: Checkpoint | None = None
        self.is_resumed = False
        self._lock: IO | None = None
        if getattr(args, "resume", False):
            self.is_resumed = bool(args.resumed_run)
            if self.is_resumed:
                self.save_path = args.resumed_run
                self.params_path = f"{self.save_path}/{self.env_name}"
            self.checkpoint = Checkpoint(Path(self.save_path) / CHECKPOINT, args.checkpoint_every, identity(args))

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: the model, new or from the run's checkpoint, and the hyperparameters
        """
        results = super().setup_experiment()
        if results is None or self.checkpoint is None or not self.is_resumed:
            return results
        model, hyperparams = results
        assert isinstance(model, OnPolicyAlgorithm)
        assert model.env is not None
        print(f"Going on with {self.save_path}")
        return self.checkpoint.load(model.env, type(model), device=self.device, verbose=self.verbose), hyperparams

    def create_log_folder(self) -> None:
        super().create_log_folder()
        if self.checkpoint is not None:
            self._lock = _lock(Path(self.save_path))
            if self._lock is None:
                raise ValueError(f"{self.save_path} is a run that another process is going on with.")

    def learn(self, model: BaseAlgorithm) -> None:
        """
        :param model: new, or from the run's checkpoint
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
        super().create_callbacks()
        if self.checkpoint is not None:
            self.callbacks.append(self.checkpoint)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: how many
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor file
        :return: the environments, in the wrappers that the hyperparameters ask for
        """
        if self.checkpoint is None:
            return super().create_envs(n_envs, eval_env, no_log)
        if self.is_resumed:
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        env_wrapper = self.env_wrapper
        if self.vec_env_class is SubprocVecEnv:
            self.env_wrapper = _within_reach(env_wrapper)
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.env_wrapper = env_wrapper

    def _make_envpool(self, monitor_dir: str | None, env_fns: list[Any]) -> VecEnv:
        if self.is_resumed and monitor_dir is not None:
            _set_aside(Path(monitor_dir))
        return super()._make_envpool(monitor_dir, env_fns)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        :param model: trained, or interrupted by the user; then the checkpoint stays
        """
        super().save_trained_model(model)
        if self.checkpoint is not None and model.num_timesteps >= self.n_timesteps:
            self.checkpoint.path.unlink(missing_ok=True)
        self._unlock()


def _lock(run: Path) -> IO | None:
    """
    :param run: a folder
    :return: a file whose closing ends the lock; None if another process has it
    """
    file = (run / LOCK).open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
    return file


def _within_reach(env_wrapper: Any) -> Any:
    """
    :param env_wrapper: of single environments, or None
    :return: the same, with ``Checkpointable`` around it
    """

    def wrap(env: gym.Env) -> gym.Env:
        return Checkpointable(env if env_wrapper is None else env_wrapper(env))

    return wrap


def _set_aside(folder: Path) -> None:
    """
    EnvPool's monitor file is always begun anew; whoever reads a run's monitor files finds the old one by its ending.

    :param folder: of the run
    """
    present = folder / "monitor.csv"
    if present.exists():
        present.rename(folder / f"until_{len(list(folder.glob('*monitor.csv')))}.monitor.csv")
