"""
The callback that writes checkpoints, and goes on from one.
"""

import io
import pathlib
import warnings
import zipfile
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_trpo.checkpoints.training_state import restore_training, save_training
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.saved_models.archive import read_archive, write_archive
from sb3_trpo.saved_models.atomic import atomic_write
from sb3_trpo.saved_models.untrusted import TRAINING_STATE
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation import check_integer


class Checkpoint(BaseCallback):
    """
    Saves the whole state of a training between two updates, so that it can go on after a crash as if there had been
    none. To be given to ``learn`` itself, alone or in a list, with the same total of steps each time.

    A crash loses the steps since the last checkpoint, nothing else. Training then ends with the same weights, bit for
    bit, as without the crash, if the state of the environments can be saved (see ``env_state``); otherwise they are
    reset, with a warning. Neither the writing of checkpoints nor their interval changes what is learned.

    :param path: of the file
    :param every: updates between two checkpoints
    :param note: texts to be kept in the file
    :param verbose: 1 to tell of each checkpoint
    """

    # Of the steps nothing is read (see ``sb3_trpo.rollouts.collect``).
    reads_values = False

    def __init__(
        self, path: str | pathlib.Path, every: int = 10, note: dict[str, str] | None = None, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_integer("every", every, minimum=1)
        self.path = pathlib.Path(path)
        self.every = every
        self.note = note or {}
        # Why the environments had to be reset when training went on; empty if they had not.
        self.why_reset = ""
        self._pending: bytes | None = None
        self._is_own = False

    def exists(self) -> bool:
        """
        :return: whether there is a checkpoint to go on from
        """
        return self.path.exists()

    def load(
        self, env: GymEnv, algorithm_class: type[OnPolicyAlgorithm] = TRPO, *, trusted: bool = True, **kwargs: Any
    ) -> Any:
        """
        :param env: made as in the training that has ended
        :param algorithm_class: of the model
        :param trusted: as in ``TRPO.load``; what a checkpoint holds besides the model is data in any case
        :param kwargs: for the algorithm's ``load``
        :return: the model, whose next ``learn`` with this callback goes on where the checkpoint was written
        :raises ValueError: if the file is no checkpoint
        """
        members, state = _read(self.path)
        if not trusted:
            kwargs["trusted"] = False
        model = algorithm_class.load(io.BytesIO(write_archive(members)), env, **kwargs)
        self._pending, folder = state["state"], state["log_folder"]
        if trusted and model.tensorboard_log is not None and folder:
            # One curve in TensorBoard, not one for each session.
            model.set_logger(configure(folder, [*(["stdout"] if model.verbose else []), "tensorboard"]))
        return model

    def _on_training_start(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(
                f"Checkpoint is for algorithms without a replay buffer, which it would not save; this is a "
                f"{type(self.model).__name__}."
            )
        if self.exists() and self._pending is None and not self._is_own:
            raise FileExistsError(
                f"{self.path} is the checkpoint of another training: go on from it (Checkpoint.load), or remove it."
            )
        self._root: BaseCallback = self.locals["callback"]

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        if self._pending is not None:
            # At the same place in the loop where it was written.
            self.why_reset = restore_training(self.model, self._root, self._pending)
            self._pending, self._is_own = None, True
            if self.why_reset:
                warnings.warn(
                    f"Training goes on with new episodes, not where they were: {self.why_reset}.", stacklevel=2
                )
        elif self.model._n_updates % self.every == 0:
            self._write()

    def _write(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        model_file = io.BytesIO()
        self.model.save(model_file)
        state = {"note": self.note, "log_folder": self.logger.get_dir(), "state": save_training(self.model, self._root)}
        with zipfile.ZipFile(model_file, "a") as archive:
            archive.writestr(TRAINING_STATE, pack(state))
        with atomic_write(self.path, "zip") as file:
            file.write(model_file.getvalue())
        self._is_own = True
        if self.verbose > 0:
            print(f"Checkpoint after {self.model.num_timesteps} steps: {self.path}")

    def _on_step(self) -> bool:
        return True


def read_note(path: pathlib.Path) -> dict[str, str]:
    """
    :param path: of a checkpoint
    :return: the texts that were given to ``Checkpoint``
    :raises ValueError: if it is no checkpoint
    """
    return _read(path)[1]["note"]


def _read(path: pathlib.Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """
    :param path: of a checkpoint
    :return: the members of the model's archive, and the rest
    :raises ValueError: if it is no checkpoint
    """
    with path.open("rb") as file:
        members = read_archive(file)
    if TRAINING_STATE not in members:
        raise ValueError(f"{path} is no checkpoint: it has no state of a training.")
    return members, unpack(members.pop(TRAINING_STATE))
