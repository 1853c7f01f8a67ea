"""
``policy_kwargs``: what config files and slips make of it is named in one sentence, and what can be meant is taken.
"""

import functools
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.policies.policies import BetaPolicy, CnnPolicy
from sb3_trpo.validation.values import UserError


class Extractor(BaseFeaturesExtractor):
    """A features extractor whose size may be told by a word."""

    def __init__(self, observation_space: spaces.Box, size: int | str = 4, activation_fn: str = "relu") -> None:
        super().__init__(observation_space, 4 if size == "small" else int(size))
        self.linear = nn.Linear(observation_space.shape[0], self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(observations)


class Policy(ActorCriticPolicy):
    """A policy whose layers and activation may be told by words."""

    def __init__(self, *args: Any, net_arch: str = "small", activation_fn: str = "tanh", **kwargs: Any) -> None:
        super().__init__(*args, net_arch=[8] if net_arch == "small" else [64], **kwargs)


class Heir(ActorCriticPolicy):
    """A policy with SB3's own constructor."""


def make(policy: str | type[ActorCriticPolicy] = "MlpPolicy", **policy_kwargs: Any) -> TRPO:
    return TRPO(policy, "Pendulum-v1", n_steps=16, batch_size=16, policy_kwargs=policy_kwargs, device="cpu")


def relu() -> nn.Module:
    return nn.ReLU()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("net_arch", "[64, 64]", "a list of the layers' sizes"),
        ("net_arch", 64, "a list of the layers' sizes"),
        ("net_arch", ["64"], r"\[0\] is '64', but must be an integer of at least 0 and not a text"),
        ("net_arch", [64.5], "an integer"),
        ("net_arch", {"pi": "64"}, r"\['pi'\] is '64'"),
        ("activation_fn", "nn.ReLU", "a class of modules such as torch.nn.ReLU"),
        ("activation_fn", nn.ReLU(), "a class of modules"),
        ("activation_fn", th.tanh, "a class of modules"),
        ("activation_fn", int, "a class of modules"),
        ("activation_fn", lambda: 1, "no module"),
        ("activation_fn", nn.GLU, "changes the width"),
        ("activation_fn", nn.LayerNorm, "using it fails"),
        ("activation_fn", None, "a class of modules"),
        ("ortho_init", "False", "one of True, False"),
        ("share_features_extractor", "no", "one of True, False"),
        ("log_std_init", "-2", "a number and not a text"),
        ("log_std_init", np.nan, "a number"),
        ("optimizer_class", "Adam", "a class such as Adam"),
        ("optimizer_class", th.optim.LBFGS, "whose steps need a closure"),
        ("optimizer_kwargs", "dict(eps=1)", "a dictionary"),
        ("optimizer_kwargs", {"eps": "1e-5"}, r"\['eps'\] is '1e-5', but must be a number and not a text \(in YAML"),
        ("optimizer_kwargs", {"lr": 1e-3}, "has 'lr', which is an argument of the algorithm's"),
        ("optimizer_kwargs", {"epsilon": 1e-3}, "Adam has no such argument; did you mean eps"),
        ("features_extractor_class", "Flatten", "a class such as FlattenExtractor"),
        ("features_extractor_kwargs", {"features_dim": 3}, "FlattenExtractor has no such argument"),
        ("net_arc", [64], "has no such argument; did you mean net_arch"),
        ("use_sde", True, "has 'use_sde', which is an argument of the algorithm's"),
    ],
)
@pytest.mark.parametrize("policy", ["MlpPolicy", Heir, BetaPolicy])
def test_what_is_not_allowed_is_named(policy: Any, name: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make(policy, **{name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_with_arguments_of_its_own_beside_sb3s() -> None:
    env = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
    for name, value in (("share_features_extractor", "no"), ("activation_fn", "nn.ReLU"), ("net_arc", [])):
        with pytest.raises(UserError, match=f"policy_kwargs.*{name}"):
            TRPO(CnnPolicy, env, policy_kwargs={name: value})


@pytest.mark.parametrize("policy_kwargs", ["dict(net_arch=[8])", [("net_arch", [8])], 8])
def test_arguments_that_are_no_dictionary_are_named(policy_kwargs: Any) -> None:
    with pytest.raises(UserError, match=f"policy_kwargs is {re.escape(repr(policy_kwargs))}, but must be a dictionary"):
        TRPO("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": [8.0, np.int64(8)]},
        {"net_arch": np.array([8, 8])},
        {"net_arch": {"pi": (8,), "vf": [8.0]}},
        {"net_arch": None},
        {"activation_fn": functools.partial(nn.LeakyReLU, 0.2)},
        {"activation_fn": relu},
        *({"activation_fn": kind} for kind in (nn.Identity, nn.PReLU, nn.RReLU, nn.Dropout, nn.Softmax)),
        {"log_std_init": np.float32(-2)},
        {"log_std_init": -2},
        {"ortho_init": 0},
        {"optimizer_kwargs": None},
        {"optimizer_kwargs": {"eps": 1e-5, "betas": [0.9, 0.99], "weight_decay": 0}},
        {"optimizer_class": functools.partial(th.optim.SGD, momentum=0.9)},
        {"features_extractor_class": Extractor, "features_extractor_kwargs": {"size": "small"}},
        {"features_extractor_class": Extractor, "features_extractor_kwargs": {"activation_fn": "tanh"}},
    ],
    # Without the addresses of functions, which differ from process to process.
    ids=lambda kwargs: re.sub(" at 0x[0-9a-f]+", "", str(kwargs)),
)
def test_what_can_be_meant_is_taken(policy_kwargs: dict[str, Any]) -> None:
    make(**policy_kwargs).learn(16)


def test_words_of_a_users_own_policy_are_taken() -> None:
    assert make(Policy, net_arch="large", activation_fn="relu").policy.net_arch == [64]


@pytest.mark.parametrize("policy", ["MlpPolcy", "MlpLstmPolicy", ""])
def test_an_unknown_policy_is_named_with_those_that_there_are(policy: str) -> None:
    with pytest.raises(UserError, match=f"policy is '{policy}', but must be one of MlpPolicy, CnnPolicy, "):
        make(policy)
