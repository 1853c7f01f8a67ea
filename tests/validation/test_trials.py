"""
What is wrong with a policy, and shows nowhere but where it is tried: the number of features, the type of the weights.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_models import VECTOR, SpacesEnv, TwoHeads
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from updates import Change, changed, pendulum, state

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.validation.values import UserError

SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "device": "cpu", "seed": 0}


class Features(BaseFeaturesExtractor):
    """
    Says that it gives 8 features.

    :param observation_space: the observation space
    :param give: what it makes of observations
    """

    def __init__(self, observation_space: Any, give: Callable[[th.Tensor], Any]) -> None:
        super().__init__(observation_space, features_dim=8)
        self.give = give
        self.register_buffer("n_calls", th.zeros(1))

    def forward(self, observations: Any) -> Any:
        self.n_calls += 1
        x = observations["x"] if isinstance(observations, dict) else observations
        return self.give(x)


def of_width(n: int) -> Callable[[th.Tensor], th.Tensor]:
    return lambda x: x.new_ones(len(x), n)


@pytest.mark.parametrize(
    ("algorithm", "policy"), [(TRPO, "MlpPolicy"), (MaskableTRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy")]
)
@pytest.mark.parametrize("shared", [True, False])
def test_a_wrong_number_of_features_is_named_when_the_model_is_made(algorithm, policy, shared) -> None:
    kwargs = {
        "features_extractor_class": Features,
        "features_extractor_kwargs": {"give": of_width(12)},
        "share_features_extractor": shared,
    }
    said = "is Features, which says that it gives 8 features (features_dim), but it gives 12 for each observation."
    with pytest.raises(UserError, match="^policy_kwargs.*" + re.escape(said)):
        algorithm(policy, SpacesEnv(VECTOR, spaces.Discrete(3)), policy_kwargs=kwargs, **SETTINGS)


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda x: x.new_ones(len(x), 2, 3), "an array of shape (2, 3) for each"),
        (lambda x: x.new_ones(len(x)), "an array of shape () for each"),
        (lambda x: (x, x), "'tuple', no tensor"),
        (lambda _: None, "'NoneType', no tensor"),
        (lambda x: x.numpy(), "'ndarray', no tensor"),
        (lambda x: of_width(8)(x).double(), "gives them as torch.float64, but must give torch.float32"),
        (lambda x: of_width(8)(x).long(), "gives them as torch.int64"),
    ],
)
def test_features_of_other_kinds_are_named(give: Any, said: str) -> None:
    kwargs = {"features_extractor_class": Features, "features_extractor_kwargs": {"give": give}}
    env = SpacesEnv(spaces.Dict(x=VECTOR, y=VECTOR), spaces.Box(-1, 1, (1,)))
    with pytest.raises(UserError, match=re.escape(said)):
        TRPO("MultiInputPolicy", env, policy_kwargs=kwargs, **SETTINGS)


class Sized(BaseFeaturesExtractor):
    """
    Says what it is told.

    :param observation_space: the observation space
    :param size: the number of features
    """

    def __init__(self, observation_space: Any, size: Any) -> None:
        super().__init__(observation_space, size)


@pytest.mark.parametrize("size", [0, -1, None, "8", 8.5, 8.0])
@pytest.mark.parametrize(("algorithm", "policy"), [(TRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy")])
def test_numbers_of_features_that_are_none_are_named(algorithm: Any, policy: str, size: Any) -> None:
    kwargs = {"features_extractor_class": Sized, "features_extractor_kwargs": {"size": size}}
    with pytest.raises(
        UserError, match=f"^policy_kwargs.* is Sized, whose features_dim is {size!r}, but must be a whole"
    ):
        algorithm(policy, "CartPole-v1", policy_kwargs=kwargs, **SETTINGS)


class Counting(nn.Module):
    """A layer whose answer moves with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.n += 1
        return x + 0.1 * self.n


def noisy(x: th.Tensor) -> th.Tensor:
    return th.nn.functional.pad(x + 0.1 * th.randn_like(x), (0, 5))


def moving() -> Callable[[th.Tensor], th.Tensor]:
    layer = Counting()
    return lambda x: th.nn.functional.pad(layer(x), (0, 5))


def with_features(give: Callable[[th.Tensor], th.Tensor], algorithm: Any = TRPO, policy: str = "MlpPolicy") -> Any:
    kwargs = {"features_extractor_class": Features, "features_extractor_kwargs": {"give": give}}
    return algorithm(policy, "Pendulum-v1", policy_kwargs=kwargs, **SETTINGS)


@pytest.mark.parametrize("make", [lambda: noisy, moving], ids=["random", "moving"])
def test_a_network_that_answers_in_another_way_each_time_is_told_once(make: Any) -> None:
    with pytest.warns(UserWarning, match="other action distributions each time.*look at Features") as caught:
        with_features(make())
    assert len([warning for warning in caught if "each time" in str(warning.message)]) == 1


@pytest.mark.parametrize(("algorithm", "policy"), [(TRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy")])
def test_a_network_that_answers_alike_is_told_nothing(
    algorithm: Any, policy: str, recwarn: pytest.WarningsRecorder
) -> None:
    with_features(lambda x: th.nn.functional.pad(th.dropout(x, 0.5, train=False), (0, 5)), algorithm, policy)
    assert [str(warning.message) for warning in recwarn if "each time" in str(warning.message)] == []


class KnowsBetter(ActorCriticPolicy):
    """A policy whose network takes what features there are."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = TwoHeads(12)  # type: ignore[assignment]


def test_features_that_a_network_of_ones_own_takes_are_taken_and_the_trial_leaves_nothing() -> None:
    kwargs = {"features_extractor_class": Features, "features_extractor_kwargs": {"give": of_width(12)}}
    model = TRPO(KnowsBetter, "Pendulum-v1", policy_kwargs=kwargs, **SETTINGS)
    assert model.policy.pi_features_extractor.n_calls == 0
    drawn = th.rand(1)
    TRPO(KnowsBetter, "Pendulum-v1", policy_kwargs=kwargs, **SETTINGS)
    assert th.rand(1) == drawn
    model.learn(64)


@pytest.mark.parametrize("when", ["on_rollout_start", "on_step", "on_rollout_end"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: model.policy.double(), "torch.float64 on the device cpu"),
        (lambda model: model.policy.half(), "torch.float16 on the device cpu"),
        (lambda model: model.policy.value_net.bfloat16(), "value_net.weight is of type torch.bfloat16"),
        (lambda model: model.policy.to("meta"), "on the device meta"),
    ],
)
def test_weights_of_another_type_are_named(when: str, change: Any, named: str) -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    with pytest.raises(UserError, match=f"^The policy's .*{named}.* must be of type torch.float32 on cpu"):
        model.learn(256, Change(when, 65, change))


def test_weights_that_are_brought_back_train_on() -> None:
    model = pendulum()
    model.policy.double()
    with pytest.raises(UserError, match=r"^The policy's log_std is of type torch.float64"):
        model.train()
    model.policy.float()
    before = state(model)
    model.train()
    assert changed(before, state(model))


class Doubles(BaseFeaturesExtractor):
    """Features of weights in double precision, which are given as SB3's networks take them."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.linear = nn.Linear(observation_space.shape[0], 4).double()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(observations.double()).float()


def test_policies_that_reckon_with_other_types_train() -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"features_extractor_class": Doubles}, **SETTINGS)
    before = state(model)
    model.learn(64)
    assert "features_extractor.linear.weight" in changed(before, state(model))
    assert np.isfinite(model.predict(np.zeros(3, np.float32))[0]).all()


class InPlace(BaseFeaturesExtractor):
    """
    Features that are made in the place of observations.

    :param observation_space: the observation space
    :param change: the function that makes them
    """

    def __init__(self, observation_space: Any, change: Callable[[th.Tensor], Any]) -> None:
        super().__init__(observation_space, features_dim=3)
        self.change, self.linear = change, nn.Linear(3, 3)

    def forward(self, observations: Any) -> th.Tensor:
        x = observations["x"] if isinstance(observations, dict) else observations
        self.change(x)
        return self.linear(x)


@pytest.mark.parametrize("space", [VECTOR, spaces.Dict(x=VECTOR, y=VECTOR)])
@pytest.mark.parametrize("shared", [True, False])
def test_observations_that_are_changed_in_place_are_told(space: spaces.Space, shared: bool) -> None:
    kwargs = {
        "features_extractor_class": InPlace,
        "features_extractor_kwargs": {"change": lambda x: x.mul_(0.5)},
        "share_features_extractor": shared,
    }
    policy = "MlpPolicy" if space is VECTOR else "MultiInputPolicy"
    with pytest.raises(UserError, match=r"^policy is .*, which changes its observations in place \(look at InPlace\)"):
        TRPO(policy, SpacesEnv(space, spaces.Discrete(3)), policy_kwargs=kwargs, **SETTINGS)


@pytest.mark.parametrize("change", [lambda x: x.clamp_(-0.1, 0.1), lambda x: x * 2])
def test_what_is_clipped_once_stays(change: Any) -> None:
    kwargs = {"features_extractor_class": InPlace, "features_extractor_kwargs": {"change": change}}
    model = TRPO("MlpPolicy", SpacesEnv(VECTOR, spaces.Discrete(3)), policy_kwargs=kwargs, **SETTINGS).learn(64)
    assert 0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01 * (1 + 1e-6)


class Dividing(BaseFeaturesExtractor):
    """Features that are not finite where an observation is large."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=3)
        self.linear = nn.Linear(3, 3)

    def forward(self, observations: Any) -> th.Tensor:
        return self.linear(observations) / (observations < 0.9).all(dim=1, keepdim=True)


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.MultiBinary(2), spaces.Box(-1, 1, (1,))])
def test_features_that_are_not_finite_are_told_with_environment_and_step(actions: spaces.Space) -> None:
    kwargs = {"features_extractor_class": Dividing}
    model = TRPO("MlpPolicy", SpacesEnv(VECTOR, actions), policy_kwargs=kwargs, **SETTINGS)
    with pytest.raises(UserError, match=r"^The policy's action for environment 0 is not finite after \d+ steps"):
        model.learn(640)
