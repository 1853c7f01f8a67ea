"""
Which algorithm saved a file: the names of the attributes tell, so that nothing of the file is run to find out.
"""

import enum
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping

from stable_baselines3.common.save_util import open_path

from sb3_trpo.saved_models.refused import printable

ModelPath = str | pathlib.Path | io.BufferedIOBase


class Origin(enum.Enum):
    """The algorithm that saved a file."""

    OURS = "sb3_trpo's TRPO"
    CONTRIB = "sb3-contrib's TRPO"
    PPO = "PPO"
    A2C = "A2C"
    OTHER = "another algorithm"


# For each algorithm an attribute of its models; the first that is there tells. A model of ours that sb3-contrib has
# trained and saved keeps our attribute.
_MARKS = (
    ("cg_residual_tol", Origin.OURS),
    ("cg_max_steps", Origin.CONTRIB),
    ("clip_range", Origin.PPO),
    ("gae_lambda", Origin.A2C),
)


def origin_of(data: Mapping[str, object]) -> Origin:
    """
    Tell from the names of the attributes which algorithm saved a model.

    :param data: the attributes, as they are in the file
    :return: the algorithm
    """
    return next((origin for name, origin in _MARKS if name in data), Origin.OTHER)


def policy_module(data: Mapping[str, object]) -> str:
    """
    Look up where a model's policy class comes from, in the text that SB3 saves for readers.

    :param data: the attributes, as they are in the file
    :return: the name of the module, such as ``stable_baselines3.sac.policies``; empty if the file does not tell
    """
    policy = data.get("policy_class")
    module = policy.get("__module__") if isinstance(policy, dict) else None
    return printable(module) if isinstance(module, str) else ""


def read_data(path: ModelPath) -> dict[str, object]:
    """
    Read the attributes of a saved model as they are in the file, that is, as JSON.

    :param path: the file's path, or an open file, which is left where it was
    :return: the attributes; empty if it is no saved model
    """
    file = open_path(path, "r", suffix="zip")
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            data = json.loads(archive.read("data"))
            return data if isinstance(data, dict) else {}
    except (zipfile.BadZipFile, KeyError, ValueError):
        return {}
    finally:
        file.seek(start) if file is path else file.close()
