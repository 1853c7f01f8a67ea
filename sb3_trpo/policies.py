"""
The policies behind the names ``MlpPolicy``, ``CnnPolicy`` and ``MultiInputPolicy``: SB3's own.

Those with a features extractor that learns give the critic one of its own by default. A shared one is moved by the
policy step alone (that is what makes the KL constraint hold), so that the critic would have to do with features that
were never trained for it. ``policy_kwargs=dict(share_features_extractor=True)`` shares it all the same.
"""

from typing import Any

from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)

MlpPolicy = ActorCriticPolicy


class CnnPolicy(ActorCriticCnnPolicy):
    """
    SB3's policy for images, with separate features extractors for actor and critic unless asked otherwise.
    """

    def __init__(self, *args: Any, share_features_extractor: bool = False, **kwargs: Any) -> None:
        kwargs["share_features_extractor"] = share_features_extractor
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 leaves it out, so that ``Policy.load`` would build another network than was saved.
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}


class MultiInputPolicy(MultiInputActorCriticPolicy):
    """
    SB3's policy for dictionary observations, with separate features extractors for actor and critic unless asked
    otherwise.
    """

    def __init__(self, *args: Any, share_features_extractor: bool = False, **kwargs: Any) -> None:
        kwargs["share_features_extractor"] = share_features_extractor
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}
