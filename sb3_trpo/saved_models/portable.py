"""
Models in a form that sb3-contrib's TRPO can read.

They name no class of this package, and have no tensor outside of their modules.
"""

import copy
from typing import TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy

from sb3_trpo.policies.policies import CnnPolicy, MultiInputPolicy

AnyAlgorithm = TypeVar("AnyAlgorithm", bound=OnPolicyAlgorithm)

_SB3S: dict[type[ActorCriticPolicy], type[ActorCriticPolicy]] = {
    CnnPolicy: ActorCriticCnnPolicy,
    MultiInputPolicy: MultiInputActorCriticPolicy,
}
_OURS = {theirs: ours for ours, theirs in _SB3S.items()}
SHARE = "share_features_extractor"


def make_portable(algorithm: AnyAlgorithm) -> AnyAlgorithm:
    """
    Make a twin of an algorithm, which is saved in its place.

    This package's policies differ from SB3's by a default, which the twin has as an argument of SB3's policy. The last
    search direction becomes an array among the attributes, for sb3-contrib's ``load`` fails at a tensor that it has no
    place for. An empty direction is left out. The twin shares all else with the algorithm.

    :param algorithm: the algorithm, which stays as it is
    :return: the twin
    """
    twin = copy.copy(algorithm)
    if algorithm.policy_class in _SB3S:
        twin.policy_class = _SB3S[algorithm.policy_class]
        twin.policy_kwargs = {SHARE: False, **algorithm.policy_kwargs}
    direction = vars(algorithm).get("cg_direction")
    if isinstance(direction, th.Tensor):
        vars(twin).pop("cg_direction")
        if direction.numel() > 0:
            vars(twin)["cg_direction"] = direction.numpy(force=True)
    return twin


def undo_portable(algorithm: OnPolicyAlgorithm) -> None:
    """
    Undo what ``make_portable`` has changed, in an algorithm whose attributes come from a file.

    :param algorithm: the algorithm, before its policy is made
    """
    if algorithm.policy_class in _OURS and SHARE in algorithm.policy_kwargs:
        # The network is the same, but a policy of our class, saved alone, also says whether it shares features.
        algorithm.policy_class = _OURS[algorithm.policy_class]
    direction = vars(algorithm).get("cg_direction")
    if isinstance(direction, np.ndarray):
        vars(algorithm)["cg_direction"] = th.as_tensor(direction, device=algorithm.device)
