"""
What environments tell of their episodes, without a question to each of thousands.
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo.networks.untouched import is_as_written

# With fewer environments there is nothing to gain.
MANY = 64
NAME = "_update_info_buffer"


def note_episodes(algorithm: BaseAlgorithm, infos: Sequence[Any], dones: np.ndarray) -> None:
    """
    Do what SB3's ``_update_info_buffer`` does, which asks each environment's info what it tells of its episode.

    Simulators of thousands of environments give empty dictionaries, but for those whose episodes have ended. SB3's
    method gets the others alone, in their order.

    :param algorithm: the algorithm that collects the rollout
    :param infos: the step's infos
    :param dones: whether the step ended episodes, (n_envs,)
    """
    if type(infos) in (list, tuple) and type(dones) is np.ndarray and MANY <= len(infos) == len(dones):
        # A dictionary of a class of its own may answer whatever it holds, and a method that is replaced ask anything.
        are_plain = list(map(type, infos)).count(dict) == len(infos)
        if are_plain and NAME not in vars(algorithm) and is_as_written(type(algorithm), BaseAlgorithm, NAME):
            telling = list(compress(range(len(infos)), infos))
            infos, dones = [infos[i] for i in telling], dones[telling]
    # SB3's type of the infos is a list, where SubprocVecEnv gives a tuple.
    algorithm._update_info_buffer(infos, dones)  # type: ignore[arg-type]
