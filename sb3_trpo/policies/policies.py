"""
The policies behind the names ``MlpPolicy``, ``CnnPolicy`` and ``MultiInputPolicy``: SB3's own.

``BetaPolicy``, ``BetaCnnPolicy`` and ``BetaMultiInputPolicy`` are the same with actions from Beta distributions.

Where the features extractor learns, the critic has one of its own by default. A shared extractor would be moved by the
policy step alone (that is what makes the KL constraint hold), so that the critic would have to do with features that
were never trained for it. ``policy_kwargs=dict(share_features_extractor=True)`` shares it all the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.optim import Optimizer

from sb3_trpo.policies.distributions import BetaDistribution
from sb3_trpo.validation.values import UserError

MlpPolicy = ActorCriticPolicy


class CnnPolicy(ActorCriticCnnPolicy):
    """SB3's policy for images, with separate features extractors for actor and critic unless asked otherwise."""

    def __init__(self, *args: Any, share_features_extractor: bool = False, **kwargs: Any) -> None:
        kwargs["share_features_extractor"] = share_features_extractor
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 leaves it out, so that ``Policy.load`` would build another network than was saved.
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}


class MultiInputPolicy(MultiInputActorCriticPolicy):
    """
    SB3's policy for dictionary observations.

    Actor and critic have separate features extractors unless asked otherwise.
    """

    def __init__(self, *args: Any, share_features_extractor: bool = False, **kwargs: Any) -> None:
        kwargs["share_features_extractor"] = share_features_extractor
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}


class _BetaActions(ActorCriticPolicy):
    """
    Actions from Beta distributions, which lie within the bounds of the action space by themselves.

    The distributions are on [-1, 1]; as for squashed Gaussians, SB3 brings the actions to the bounds of the space.
    """

    action_dist: BetaDistribution

    @property
    def squash_output(self) -> bool:
        """Whether actions come in [-1, 1]."""
        return True

    def _build(self, lr_schedule: Schedule) -> None:
        self._check_actions()
        super()._build(lr_schedule)
        # SB3 makes the last layer for its own distributions only. It has made a Gaussian's; this takes its place.
        self.action_dist = BetaDistribution(get_action_dim(self.action_space))
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi)
        del self.log_std
        if self.ortho_init:
            # The small outputs that SB3 gives any new policy: here wide distributions around the middle.
            self.action_net.apply(functools.partial(self.init_weights, gain=0.01))
        make_optimizer: Callable[..., Optimizer] = self.optimizer_class
        self.optimizer = make_optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _check_actions(self) -> None:
        space, name = self.action_space, type(self).__name__
        if self.use_sde:
            raise UserError(f"use_sde is True, but must be False with {name}, whose noise is not a Gaussian's.")
        is_real = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
        if not (isinstance(space, spaces.Box) and is_real and space.is_bounded()):
            raise UserError(f"The action space is {space}, but {name} needs a Box of real numbers with finite bounds.")

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> BetaDistribution:
        return self.action_dist.proba_distribution(self.action_net(latent_pi))


class BetaPolicy(_BetaActions, ActorCriticPolicy):
    """``MlpPolicy`` with actions from Beta distributions, for a Box with finite bounds."""


class BetaCnnPolicy(_BetaActions, CnnPolicy):
    """``CnnPolicy`` with actions from Beta distributions, for a Box with finite bounds."""


class BetaMultiInputPolicy(_BetaActions, MultiInputPolicy):
    """``MultiInputPolicy`` with actions from Beta distributions, for a Box with finite bounds."""
