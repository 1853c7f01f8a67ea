"""
Checks of an environment's spaces: what the policies and rollout buffers have a place for.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

from sb3_trpo.validation.policies import default_of
from sb3_trpo.validation.values import UserError


class SpaceError(UserError, AssertionError):
    """A space that can't be used: an AssertionError, too, for that is what Stable-Baselines3 raises."""


SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
FLATTEN = "gymnasium.wrappers.FlattenObservation makes it a vector"
RESHAPE = "gymnasium.wrappers.TransformAction can reshape it"
SHIFT = "gymnasium.wrappers.TransformAction can shift it"
BOUND = "gymnasium.wrappers.TransformAction can make larger actions of those in Box(-1, 1)"
# What three convolutions of NatureCNN leave a pixel of, in height and in width.
SMALLEST_IMAGE = 36
ROUND = "let gymnasium.wrappers.TransformAction round the actions of a Box of floats"


def check_spaces(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    action_kinds: tuple[type[spaces.Space[Any]], ...] = SUPPORTED_SPACES,
) -> None:
    """
    Check that rollout buffers and policies can take observations and actions.

    :param observation_space: the environment's observation space
    :param action_space: the environment's action space
    :param action_kinds: the kinds of action spaces that the algorithm takes
    :raises UserError: if they can't
    """
    _check_kind("action space", action_space, action_kinds)
    _check_dimensions("action space", action_space, RESHAPE)
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) > 1:
        _refuse("action space", action_space, f"must have one dimension: {RESHAPE}")
    if isinstance(action_space, spaces.MultiBinary) and not isinstance(action_space.n, int):
        _refuse("action space", action_space, f"must be made with a number, as in MultiBinary({action_space.n[0]})")
    if isinstance(action_space, spaces.Box) and not (action_space.is_bounded() or _is_integer(action_space)):
        _refuse("action space", action_space, f"must have bounds that are finite: {BOUND}")
    # SB3's policies count actions from 0, and give floats for a Box.
    if np.any(getattr(action_space, "start", 0)):
        _refuse("action space", action_space, f"must start at 0: {SHIFT}")
    if isinstance(action_space, spaces.Box) and _is_integer(action_space):
        _refuse("action space", action_space, f"must not be of integers: take MultiDiscrete, or {ROUND}")
    if isinstance(action_space, spaces.Box) and not np.can_cast(np.float32, action_space.dtype):
        _refuse("action space", action_space, "must have the type float32, which actions have, or float64")
    for what, space in _parts(observation_space):
        _check_kind(what, space, SUPPORTED_SPACES)
        _check_dimensions(what, space, FLATTEN)
    for what, space in (("action space", action_space), *_parts(observation_space)):
        if not (space.dtype is None or space.dtype.isnative):
            _refuse(
                what, space, f"must have numbers in this machine's byte order, such as {space.dtype.newbyteorder()}"
            )


class HasPolicyClass(Protocol):
    """An algorithm that knows its spaces and the class of its policy."""

    policy_class: Any
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]]
    policy_kwargs: dict[str, Any]
    observation_space: spaces.Space[Any]


def check_observation_encoding(algorithm: HasPolicyClass) -> None:
    """
    Check that SB3's policies can take what SB3 makes of an observation.

    A user's own policy is the user's business.

    :param algorithm: the algorithm, before it makes its policy
    :raises UserError: if they can't
    """
    if algorithm.policy_class not in algorithm.policy_aliases.values():
        return
    is_default = "features_extractor_class" not in algorithm.policy_kwargs
    if is_default and th.get_default_dtype() != th.float32:
        raise UserError(
            f"torch's default_dtype is {th.get_default_dtype()}, but Stable-Baselines3 makes observations float32: "
            "call torch.set_default_dtype(torch.float32) before the model is made."
        )
    takes_dict = issubclass(algorithm.policy_class, MultiInputActorCriticPolicy)
    if is_default and takes_dict and not isinstance(algorithm.observation_space, spaces.Dict):
        _refuse("observation space", algorithm.observation_space, "MultiInputPolicy takes a Dict: use 'MlpPolicy'")
    if is_default and isinstance(algorithm.observation_space, spaces.Dict):
        _check_names(algorithm.observation_space)
    _check_images(algorithm)
    for what, space in _parts(algorithm.observation_space):
        if np.any(getattr(space, "start", 0)):
            _refuse(what, space, f"must start at 0: {FLATTEN}")
        if space.shape == () and isinstance(space, spaces.Box) and is_default:
            _refuse(what, space, f"must have at least one dimension: {FLATTEN}")


def _check_images(algorithm: HasPolicyClass) -> None:
    """
    Check that SB3's convolutions, where the policy has them, get images that are large enough.

    :param algorithm: the algorithm
    :raises UserError: if they do not
    """
    kwargs, policy_class = algorithm.policy_kwargs, algorithm.policy_class
    is_scaled = bool(kwargs.get("normalize_images", default_of(policy_class, "normalize_images")))
    extractor = kwargs.get("features_extractor_class", default_of(policy_class, "features_extractor_class"))
    is_cnn = extractor is NatureCNN
    # CombinedExtractor has one for each part that is an image.
    has_cnn = is_cnn or extractor is CombinedExtractor
    for what, space in _parts(algorithm.observation_space):
        is_image = is_image_space(space, check_channels=False, normalized_image=not is_scaled)
        if is_cnn and not is_image:
            if isinstance(space, spaces.Box) and len(space.shape) == 3 and is_scaled:
                kind = "numbers of 8 bits from 0 to 255 (others with policy_kwargs={'normalize_images': False})"
                _refuse(what, space, f"the policy's NatureCNN takes images of {kind}")
            _refuse(
                what,
                space,
                "the policy's NatureCNN takes images, a Box of three dimensions: use 'MlpPolicy' or the like",
            )
        if is_image and min((space.shape or ())[1:] or (0,)) < SMALLEST_IMAGE and has_cnn:
            size = f"{SMALLEST_IMAGE} pixels in height and width, and its channels first"
            _refuse(what, space, f"an image for SB3's NatureCNN must have at least {size}; {FLATTEN}")


def _is_integer(space: spaces.Box) -> bool:
    return not np.issubdtype(space.dtype, np.floating)


def _parts(observation_space: spaces.Space[Any]) -> Iterator[tuple[str, spaces.Space[Any]]]:
    if not isinstance(observation_space, spaces.Dict):
        yield "observation space", observation_space
        return
    if not observation_space.spaces:
        _refuse("observation space", observation_space, "must have at least one entry")
    for name, space in observation_space.spaces.items():
        yield f"observation space {name!r}", space


def _check_names(observation_space: spaces.Dict) -> None:
    # SB3 keeps a module for each entry in one of these, beside its attributes.
    modules = th.nn.ModuleDict()
    for name, space in observation_space.spaces.items():
        if not isinstance(name, str) or not name or "." in name or hasattr(modules, name):
            _refuse(
                f"observation space {name!r}",
                space,
                "must have a name that torch.nn.ModuleDict takes: a text without dots, and none of its attributes'",
            )


def _check_kind(what: str, space: spaces.Space[Any], kinds: tuple[type[spaces.Space[Any]], ...]) -> None:
    if not isinstance(space, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        also = ", or a Dict of these" if what == "observation space" else ""
        _refuse(what, space, f"must be one of {names}{also}")


def _check_dimensions(what: str, space: spaces.Space[Any], advice: str) -> None:
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) > 1:
        _refuse(what, space, f"must have one dimension: {advice}")
    if 0 in (space.shape or ()):
        _refuse(what, space, "must have at least one element")


def _refuse(what: str, space: spaces.Space[Any], requirement: str) -> None:
    """
    Refuse a space.

    :param what: the space's name, in words
    :param space: the space
    :param requirement: the requirement that it does not meet, in words that follow "but"
    :raises SpaceError: always
    """
    # NumPy prints matrices in several lines.
    raise SpaceError(f"The {what} is {' '.join(str(space).split())}, but {requirement}.")
