"""
The callback that writes checkpoints, and goes on from one.
"""

import io
import os
import pathlib
import zipfile
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_trpo.checkpoints.fit import part
from sb3_trpo.checkpoints.offered_state import METHODS
from sb3_trpo.checkpoints.ranked_state import ranks_of, restore_rank, save_ranks
from sb3_trpo.checkpoints.training_state import is_state_known
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.checkpoints.tree_format import NotSavableError
from sb3_trpo.saved_models.archive import check_is_file, read_archive, write_archive
from sb3_trpo.saved_models.atomic import atomic_write, saved_path
from sb3_trpo.saved_models.untrusted import TRAINING_STATE
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.values import UserError, check_choice, check_integer, short, warn_user

SUFFIX = "zip"


class Checkpoint(BaseCallback):
    """
    A callback that saves the whole state of a training between two updates, so that it can go on after a crash.

    Give it to ``learn`` itself, alone or in a list, with the same total of steps each time.

    A crash loses the steps since the last checkpoint, nothing else. Training then ends with the same weights, bit for
    bit, as without the crash, if the state of the environments can be saved (see ``env_state``); otherwise they are
    reset, with a warning. Neither the writing of checkpoints nor their interval changes what is learned.

    On several ranks the file has the environments and random numbers of each. A training may go on with more ranks, or
    fewer: further ranks begin with new episodes.

    :param path: the file; as in SB3, ``.zip`` is added to a name without an ending
    :param every: the number of updates between two checkpoints
    :param note: the texts to keep in the file
    :param verbose: 1 prints a line for each checkpoint
    """

    # Each rank gives its state.
    runs_on_all_ranks = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 10,
        note: dict[str, str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_integer("every", every, minimum=1)
        if not isinstance(path, (str, os.PathLike)) or not pathlib.Path(path).name:
            raise UserError(f"path is {short(path)}, but must be the path of a file, such as 'run/checkpoint.zip'.")
        # An absolute path, for the current folder may change.
        self.path = saved_path(pathlib.Path(path).expanduser(), SUFFIX)
        self.every = every
        self.note = note or {}
        # Why the environments had to be reset when training went on; empty if they had not.
        self.why_reset = ""
        self._pending: list[bytes] = []
        self._is_trusted = True
        self._is_own = False

    def exists(self) -> bool:
        """
        Tell whether there is a checkpoint to go on from.

        :return: whether the file exists
        """
        return self.path.exists()

    def load(
        self, env: GymEnv, algorithm_class: type[OnPolicyAlgorithm] = TRPO, *, trusted: bool = True, **kwargs: Any
    ) -> OnPolicyAlgorithm:
        """
        Load the model; its next ``learn`` with this callback goes on where the checkpoint was written.

        What a checkpoint holds besides the model is data in any case. Without trust no text is set either, so that no
        path, name or method of environments, wrappers or callbacks can change.

        :param env: the environments, made as in the training that has ended
        :param algorithm_class: the class of the model
        :param trusted: whether the file comes from where no harm is meant, as in ``TRPO.load``
        :param kwargs: more arguments of the algorithm's ``load``
        :return: the model
        :raises UserError: if the file is no checkpoint, or a damaged one
        """
        check_choice("trusted", trusted, (True, False))
        file = _read(self.path)
        if not trusted:
            kwargs["trusted"] = False
        model = algorithm_class.load(io.BytesIO(write_archive(file.members)), env, **kwargs)
        self._pending, self._is_trusted = file.states, trusted
        if trusted and model.tensorboard_log is not None and file.log_folder:
            # One curve in TensorBoard, not one for each process.
            model.set_logger(configure(file.log_folder, [*(["stdout"] if model.verbose else []), "tensorboard"]))
        return model

    def _on_training_start(self) -> None:
        kind = type(self.model).__name__
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise UserError(
                f"Checkpoint is for algorithms without a replay buffer, which it would not save; this is a {kind}."
            )
        if self.exists() and not self._pending and not self._is_own:
            raise FileExistsError(
                f"{self.path} is the checkpoint of another training: go on from it (Checkpoint.load), or remove it."
            )
        if not is_state_known(self.model):
            warn_user(
                f"{kind} does not say what its state is (it has no {METHODS}): a training that goes on from a "
                "checkpoint may end otherwise than without a crash."
            )
        self._root: BaseCallback = self.locals["callback"]

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        if self._pending:
            # At the same place in the loop where it was written.
            resumed = restore_rank(self.model, self._root, self._pending, trusted=self._is_trusted)
            self._pending, self._is_own = [], True
            self.why_reset = resumed.why_reset
            if self.why_reset:
                warn_user(f"Training goes on with new episodes, not where they were: {self.why_reset}.")
            for doubt in resumed.doubts:
                warn_user(f"Training does not go on exactly where it was: {doubt}.")
        elif self.model._n_updates % self.every == 0:
            self._write(self.model)

    def _write(self, model: OnPolicyAlgorithm) -> None:
        model_file = io.BytesIO()
        try:
            states = save_ranks(model, self._root)
        except NotSavableError as error:
            # A training that goes on without a checkpoint is better than none.
            warn_user(f"No checkpoint was written after {model.num_timesteps} steps: {error}.")
            return
        if not ranks_of(model).is_first:
            self._is_own = True
            return
        model.save(model_file)
        with zipfile.ZipFile(model_file, "a") as archive:
            file = {"note": self.note, "log_folder": self.logger.get_dir(), "state": states[0], "others": states[1:]}
            archive.writestr(TRAINING_STATE, pack(file))
        try:
            with atomic_write(self.path, SUFFIX) as place:
                place.write(self.seal(model_file.getvalue()))
        except OSError as error:
            # Where none can be written, the user learns it at once. Later, on a full disk, the last one is still there.
            if not self._is_own:
                raise
            warn_user(f"No checkpoint was written after {model.num_timesteps} steps: {error}.")
            return
        self._is_own = True
        if self.verbose > 0:
            print(f"Checkpoint after {model.num_timesteps} steps: {self.path}")

    def seal(self, content: bytes) -> bytes:
        """
        Finish a file before it is written; a subclass may sign it here.

        :param content: the file: a zip archive without a comment
        :return: the bytes to write
        """
        return content

    def _on_step(self) -> bool:
        return True


@dataclass
class _File:
    """
    What a checkpoint holds.

    :param members: the members of the model's archive
    :param note: the texts that were given to ``Checkpoint``
    :param log_folder: the folder of the log; None if there is none
    :param states: the state of the training, on each rank
    """

    members: dict[str, bytes]
    note: dict[str, str]
    log_folder: str | None
    states: list[bytes]


def read_note(path: str | os.PathLike[str]) -> dict[str, str]:
    """
    Read the texts of a checkpoint.

    :param path: the file
    :return: the texts that were given to ``Checkpoint``
    :raises UserError: if it is no checkpoint, or a damaged one
    """
    return _read(pathlib.Path(path)).note


def _read(path: pathlib.Path) -> _File:
    """
    Read a checkpoint, as data.

    :param path: the file
    :return: the parts of the file
    :raises UserError: if it is no checkpoint, or a damaged one
    """
    try:
        check_is_file(path)
        with path.open("rb") as file:
            members = read_archive(file)
    except FileNotFoundError as error:
        raise UserError(f"{path} is no checkpoint: there is no such file.") from error
    except OSError as error:
        raise UserError(f"{path} can't be read as a checkpoint: {error}.") from error
    # The archive's reader raises it.
    except ValueError as error:
        raise UserError(f"{path} is no checkpoint, or a damaged one: {error}.") from error
    if TRAINING_STATE not in members:
        raise UserError(f"{path} is no checkpoint: it has no state of a training.")
    try:
        saved = unpack(members.pop(TRAINING_STATE))
        note, state = part(saved, "note", dict), part(saved, "state", bytes)
        log_folder, others = saved.get("log_folder"), saved.get("others", [])
        if not (isinstance(others, list) and all(isinstance(other, bytes) for other in others)):
            raise UserError("The state of the training is damaged: what it holds of other ranks is no state.")
        if not all(isinstance(text, str) for text in [*note, *note.values(), log_folder or ""]):
            raise UserError("The state of the training is damaged: its note or its log folder is no text.")
    except (UserError, NotSavableError) as error:
        raise UserError(f"{path} is a damaged checkpoint: {error}") from error
    return _File(members, note, log_folder, [state, *others])
