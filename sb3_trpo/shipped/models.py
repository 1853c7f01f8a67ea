"""
The hyperparameters that ship, and models made with them: the results of the README from Python.

RL Zoo reads the files of hyperparameters, as it does for ``sb3-trpo train``. Nothing of RL Zoo is replaced here.
"""

import argparse
import contextlib
import copy
import inspect
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gymnasium as gym
import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trpo.shipped.mujoco_warnings import say_warnings_once
from sb3_trpo.shipped.rule import describe, hyperparameters_by_rule, read_task
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError, as_integer, short, suggest_names

if TYPE_CHECKING:
    from rl_zoo3.exp_manager import ExperimentManager

SelfShipped = TypeVar("SelfShipped", bound="ShippedTRPO")

HYPERPARAMETERS = Path(__file__).parent / "hyperparams"
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


class ShippedTRPO(TRPO):
    """
    A TRPO that knows how long its task is trained, and with which callbacks.

    Its files are TRPO's: ``TRPO.load`` reads them.
    """

    # Of the task's hyperparameters; a loaded model has none.
    shipped_timesteps: int | None = None
    shipped_callbacks: Sequence[BaseCallback] = ()
    _OF_THE_TASK: ClassVar[tuple[str, str]] = ("shipped_timesteps", "shipped_callbacks")

    def learn(
        self: SelfShipped,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfShipped:
        """
        Train as ``sb3-trpo train`` does, whose callbacks come before those that are given.

        :param total_timesteps: the steps to train for, over all environments; None for the task's own number
        :param callback: the callback, or a list of them
        :param log_interval: the number of updates between two entries of the log
        :param tb_log_name: the run's name for TensorBoard; None is TRPO
        :param reset_num_timesteps: whether to count steps from 0, rather than go on
        :param progress_bar: whether to show a progress bar
        :return: the algorithm
        :raises UserError: if it is not known how many steps to train for
        """
        n_timesteps = self.shipped_timesteps if total_timesteps is None else total_timesteps
        if n_timesteps is None:
            raise UserError("total_timesteps is None, but must be a number: only sb3_trpo.make gives models their own.")
        callbacks = [*self.shipped_callbacks, *_as_callbacks(callback)]
        return super().learn(
            n_timesteps, callbacks or None, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *self._OF_THE_TASK]


def make(
    env_id: str,
    seed: int | None = None,
    *,
    device: th.device | str = "auto",
    verbose: int = 0,
    tensorboard_log: str | None = None,
    vec_env: str = "dummy",
    **hyperparams: Any,
) -> ShippedTRPO:
    """
    Make a model for a task, with the environments, callbacks and schedules of the published results.

    ``make(env_id, seed).learn()`` trains as ``sb3-trpo train --env ENV_ID --seed SEED`` does, bit for bit; but it
    writes no files, and does not evaluate on the way.

    :param env_id: the id of the task
    :param seed: the seed of environments and policy
    :param device: the device: cpu, cuda, ...; auto takes the GPU if there is one
    :param verbose: 0 for no output, 1 for info, 2 for debug
    :param tensorboard_log: the folder for TensorBoard; None writes none
    :param vec_env: ``dummy`` steps the environments in this process, ``subproc`` each in its own
    :param hyperparams: what takes the place of shipped values: arguments of TRPO, and ``n_envs``, ``normalize``,
        ``n_timesteps``, ``callback``, ``env_kwargs``, ``env_wrapper``, ``frame_stack`` as in RL Zoo's files
    :return: the model; its method ``learn`` needs no arguments
    :raises UserError: if a hyperparameter has an unknown name, or a value that is not allowed
    """
    seed = None if seed is None else as_integer("seed", seed, minimum=0)
    if vec_env not in ("dummy", "subproc"):
        raise UserError(f"vec_env is {vec_env!r}, but must be 'dummy' or 'subproc'.")
    manager = _make_manager(env_id, seed, vec_env, hyperparams)
    with contextlib.redirect_stdout(io.StringIO()), say_warnings_once(env_id):
        entry, _ = manager.read_hyperparameters()
        check_names(entry, TRPO)
        check_counts(entry)
        arguments, manager.env_wrapper, callbacks, manager.vec_env_wrapper = manager._preprocess_hyperparams(entry)
        check_env_kwargs("env_kwargs", env_id, manager.env_kwargs)
        env = manager.create_envs(manager.n_envs, no_log=True)
        model = ShippedTRPO(
            env=env, seed=seed, device=device, verbose=verbose, tensorboard_log=tensorboard_log, **arguments
        )
    model.shipped_timesteps, model.shipped_callbacks = manager.n_timesteps, callbacks
    return model


def hyperparameters(env_id: str) -> dict[str, Any]:
    """
    Look up what a task's published results were trained with, as arguments of ``TRPO``.

    ``n_envs``, normalisation and callbacks are no arguments of TRPO; ``make`` has them, too.

    :param env_id: the id of the task
    :return: the arguments, by name
    """
    with contextlib.redirect_stdout(io.StringIO()):
        entry, _ = _make_manager(env_id).read_hyperparameters()
    return {name: value for name, value in entry.items() if name not in RL_ZOO_NAMES}


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
        # RL Zoo takes None for no stack.
        if name in hyperparams and not (name == "frame_stack" and hyperparams[name] is None):
            hyperparams[name] = as_integer(name, hyperparams[name], minimum=1)
    if not isinstance(hyperparams.get("policy"), (str, type)):
        raise UserError(f"policy is {short(hyperparams.get('policy'))}, but must be a name such as 'MlpPolicy'.")


def check_env_kwargs(name: str, env_id: str, env_kwargs: Any) -> None:
    """
    Check that an environment can be made, before a process of its own fails to.

    :param name: the name of the arguments, for messages
    :param env_id: the id of the task
    :param env_kwargs: the arguments
    :raises UserError: if none can be made with these arguments, and one can be made without
    """
    if not env_kwargs:
        return
    try:
        gym.make(env_id, **env_kwargs).close()
    except Exception as error:
        # Raises what the task itself is to blame for.
        gym.make(env_id).close()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name} is {short(env_kwargs)}, with which no {env_id} can be made ({reason}).") from error


def add_rule(manager: "ExperimentManager") -> None:
    """
    Let a task that has no entry in our file start from the rule instead of from the entry ``default`` alone.

    What the user gives (``-params``) or a study has found counts more.

    :param manager: the manager, which reads our file
    """
    env_id = manager.env_name.gym_id
    entries = yaml.safe_load(Path(manager.config).read_text())
    # RL Zoo takes a trial's hyperparameters before the user's own, among which ours are.
    is_from_study = manager.storage and manager.study_name and manager.trial_id
    if env_id in entries or manager._is_atari or is_from_study:
        return
    check_env_kwargs("env_kwargs", env_id, manager.env_kwargs)
    env = gym.make(env_id, **manager.env_kwargs)
    task = read_task(env)
    env.close()
    if task is not None:
        print(f"{env_id} has no entry, and gets hyperparameters by the rule: {describe(task)}")
        manager.custom_hyperparams = hyperparameters_by_rule(task) | (manager.custom_hyperparams or {})


def _make_manager(
    env_id: str, seed: int | None = None, vec_env: str = "dummy", hyperparams: dict[str, Any] | None = None
) -> "ExperimentManager":
    try:
        from sb3_trpo.shipped.reading import ReadingManager
    except ImportError as error:
        raise ImportError(
            f"The hyperparameters that ship are read by RL Zoo ({error}): install it with {how_to_install('zoo')}."
        ) from error
    if not isinstance(env_id, str):
        raise UserError(f"env_id is {short(env_id)}, but must be the id of a task, such as 'Pendulum-v1'.")
    # Gymnasium says what is wrong with an id that RL Zoo would look up in vain.
    gym.spec(env_id)
    manager = ReadingManager(
        argparse.Namespace(),
        "trpo",
        env_id,
        log_folder="",
        seed=seed,  # type: ignore[arg-type]  # RL Zoo hands it on to functions that take None.
        hyperparams=copy.deepcopy(hyperparams or {}),
        config=str(HYPERPARAMETERS / "trpo.yml"),
        vec_env_type=vec_env,
        verbose=0,
    )
    add_rule(manager)
    return manager


def _as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    if callback is None:
        return []
    if isinstance(callback, list):
        return callback
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
