"""
Models that were saved by sb3-contrib's TRPO: they load as they are, but one number in them has come to mean more.
"""

import contextlib
import io
import json
import pathlib
import warnings
import zipfile
from collections.abc import Iterator

from gymnasium import spaces
from stable_baselines3.common.save_util import open_path

# An argument of this package's TRPO that sb3-contrib's never had.
OWN_ARGUMENT = "cg_residual_tol"


def is_contribs(path: str | pathlib.Path | io.BufferedIOBase) -> bool:
    """
    :param path: of a saved TRPO, or the open file
    :return: whether sb3-contrib's class saved it; nothing of what is saved is run to find out
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return OWN_ARGUMENT not in json.loads(archive.read("data"))
    finally:
        if file is not path:
            file.close()


def averaged_dimensions(action_space: spaces.Space) -> int:
    """
    :param action_space: of a model
    :return: the number of action dimensions over which sb3-contrib's TRPO takes the mean KL divergence: for one choice
        there is nothing to average, and over several choices it takes the sum
    """
    if isinstance(action_space, (spaces.Box, spaces.MultiBinary)):
        return spaces.flatdim(action_space)
    return 1


def explain_target_kl(target_kl: object, action_space: spaces.Space, stacklevel: int) -> None:
    """
    Warn that a model of sb3-contrib's will be trained with smaller steps, unless they are the same.

    :param target_kl: as it was saved
    :param action_space: of the model
    :param stacklevel: of the caller's caller, counted from here
    """
    n = averaged_dimensions(action_space)
    if n == 1:
        return
    example = f", as in TRPO.load(..., target_kl={n * target_kl:g})" if isinstance(target_kl, (int, float)) else ""
    warnings.warn(
        f"This model was saved by sb3-contrib's TRPO, whose target_kl bounds the mean KL divergence of the {n} action "
        f"dimensions. Here it bounds their sum, so that training goes on with smaller steps: for the same trust region "
        f"multiply target_kl by {n}{example}. Predictions are not affected.",
        UserWarning,
        stacklevel=stacklevel + 1,
    )


@contextlib.contextmanager
def missing_gym_explained() -> Iterator[None]:
    """
    While it is open, say what to do about a file from before sb3-contrib 2.0, whose spaces are of the old Gym.

    :raises ModuleNotFoundError: as before, in words that help
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "gym":
            raise
        raise ModuleNotFoundError(
            "This model was saved with spaces of the old Gym, which is not installed: give Gymnasium's in their place, "
            'as in TRPO.load(..., custom_objects={"observation_space": env.observation_space, '
            '"action_space": env.action_space}).',
            name=error.name,
        ) from error
