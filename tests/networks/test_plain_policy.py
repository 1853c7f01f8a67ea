"""
A policy counts as plain only if its written-out network computes what the policy itself does.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sample_policies import ACTIONS, OBSERVATIONS, cnn_policy, make_policy, squashed
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sb3_trpo.networks.mlp import PlainMlp
from sb3_trpo.networks.plain_policy import extract_features, plain_actor, plain_critic
from sb3_trpo.policies import MlpPolicy


class Unchanged(ActorCriticPolicy):
    """A user's subclass, with a method of its own that has nothing to do with what is computed."""

    def describe(self) -> str:
        return "mine"


def make(policy_class: type[ActorCriticPolicy], **kwargs: object) -> ActorCriticPolicy:
    return policy_class(OBSERVATIONS, ACTIONS["Box"], lambda _: 1e-3, **kwargs)


PLAIN: dict[str, Callable[[], ActorCriticPolicy]] = {
    **{name: lambda space=space: make_policy(space, dtype=th.float32) for name, space in ACTIONS.items()},
    "no hidden layers": lambda: make_policy(net_arch=[], dtype=th.float32),
    "different sizes": lambda: make_policy(net_arch={"pi": [32], "vf": [7, 5, 3]}, dtype=th.float32),
    "ReLU": lambda: make_policy(activation_fn=nn.ReLU, dtype=th.float32),
    "Sigmoid": lambda: make_policy(activation_fn=nn.Sigmoid, dtype=th.float32),
    "one-hot": lambda: make_policy(observation_space=spaces.Discrete(4), dtype=th.float32),
    "matrix": lambda: make_policy(observation_space=spaces.Box(-1.0, 1.0, (3, 4)), dtype=th.float32),
    "image": lambda: make_policy(observation_space=spaces.Box(0, 255, (3, 36, 36), np.uint8), dtype=th.float32),
    "two extractors": lambda: make_policy(share_features_extractor=False, dtype=th.float32),
    "gSDE": lambda: make_policy(use_sde=True, dtype=th.float32),
    "the package's MlpPolicy": lambda: make(MlpPolicy),
    "subclass": lambda: make(Unchanged),
}


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("n", [1, 8, 300])
def test_plain_networks_are_the_policys_own_bit_for_bit(name, n) -> None:
    policy = PLAIN[name]()
    policy.observation_space.seed(0)
    obs = th.as_tensor(np.stack([policy.observation_space.sample() for _ in range(n)]))
    actor, critic = plain_actor(policy), plain_critic(policy)
    assert actor is not None
    assert critic is not None
    with th.no_grad():
        inner = policy.get_distribution(obs).distribution
        outputs = actor.forward(extract_features(policy, obs, policy.pi_features_extractor))
        if isinstance(inner, th.distributions.Normal):
            assert th.equal(outputs, inner.loc)
        elif isinstance(inner, th.distributions.Bernoulli):
            assert th.equal(outputs, inner.logits)
        else:
            subs = inner if isinstance(inner, list) else [inner]
            split = outputs.split([sub.logits.shape[1] for sub in subs], dim=1)
            normalized = [sub - sub.logsumexp(dim=-1, keepdim=True) for sub in split]
            assert all(map(th.equal, normalized, [sub.logits for sub in subs]))
        values = critic.forward(extract_features(policy, obs, policy.vf_features_extractor))
        assert th.equal(values, policy.predict_values(obs))


def test_plain_networks_hold_the_policys_parameters() -> None:
    policy = make_policy()
    actor, critic = plain_actor(policy), plain_critic(policy)
    assert isinstance(actor, PlainMlp)
    assert isinstance(critic, PlainMlp)
    expected = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    assert [id(p) for p in actor.parameters] == [id(p) for p in expected]
    expected = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    assert [id(p) for p in critic.parameters] == [id(p) for p in expected]


class OtherFeatures(ActorCriticPolicy):
    def extract_features(self, obs, features_extractor=None):
        return 2.0 * super().extract_features(obs, features_extractor)


class OtherDistribution(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(-obs)


class OtherLatent(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(-latent_pi)


class OtherMlp(MlpExtractor):
    def forward_actor(self, features):
        return -super().forward_actor(features)


class OtherMlpPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OtherMlp(self.features_dim, self.net_arch, self.activation_fn)


class DoubledFlatten(FlattenExtractor):
    def forward(self, obs):
        return 2.0 * super().forward(obs)


class OtherLinear(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


def changed(change: Callable[[ActorCriticPolicy], object]) -> Callable[[], ActorCriticPolicy]:
    """
    :param change: done to a plain policy
    :return: makes the policy
    """

    def make_changed() -> ActorCriticPolicy:
        policy = make_policy()
        assert plain_actor(policy) is not None
        change(policy)
        return policy

    return make_changed


def hidden(policy: ActorCriticPolicy) -> nn.Sequential:
    return policy.mlp_extractor.policy_net


def tie(policy: ActorCriticPolicy) -> None:
    policy.mlp_extractor.policy_net.append(nn.Linear(5, 5).double()).append(nn.Tanh())
    policy.mlp_extractor.policy_net.append(nn.Linear(5, 5).double()).append(nn.Tanh())
    policy.mlp_extractor.policy_net[4].weight = policy.mlp_extractor.policy_net[6].weight


NOT_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "another activation": lambda: make_policy(activation_fn=nn.ELU),
    "another extractor": lambda: make_policy(features_extractor_class=DoubledFlatten),
    "images": cnn_policy,
    "extract_features": lambda: make(OtherFeatures),
    "get_distribution": lambda: make(OtherDistribution),
    "_get_action_dist_from_latent": lambda: make(OtherLatent),
    "MlpExtractor": lambda: make(OtherMlpPolicy),
    "recurrent": lambda: make(RecurrentActorCriticPolicy),
    "maskable": lambda: MaskableActorCriticPolicy(OBSERVATIONS, ACTIONS["Discrete"], lambda _: 1e-3),
    "dictionary": lambda: MultiInputActorCriticPolicy(spaces.Dict({"x": OBSERVATIONS}), ACTIONS["Box"], lambda _: 1e-3),
    "another algorithm's": lambda: DQNPolicy(OBSERVATIONS, ACTIONS["Discrete"], lambda _: 1e-3),
    "no policy": lambda: nn.Linear(3, 3),
    "method of the object": changed(lambda p: setattr(p, "get_distribution", p.get_distribution)),
    "method of the extractor": changed(lambda p: setattr(p.mlp_extractor, "forward_actor", lambda x: -x)),
    "forward of a layer": changed(lambda p: setattr(p.action_net, "forward", lambda x: -x)),
    "forward of the features": changed(lambda p: setattr(p.pi_features_extractor, "forward", lambda x: -x)),
    "dropout": changed(lambda p: hidden(p).append(nn.Dropout())),
    "normalisation": changed(lambda p: hidden(p).append(nn.LayerNorm(5).double())),
    "no bias": changed(lambda p: setattr(p, "action_net", nn.Linear(5, 2, bias=False).double())),
    "another layer": changed(lambda p: setattr(p, "action_net", OtherLinear(5, 2).double())),
    "two layers in a row": changed(lambda p: hidden(p).append(nn.Linear(5, 5).double())),
    "two activations in a row": changed(lambda p: hidden(p).append(nn.Tanh())),
    "ends with an activation": changed(lambda p: setattr(p, "action_net", nn.Sequential(p.action_net, nn.Tanh()))),
    "tied weights": changed(tie),
    "two precisions": changed(lambda p: p.action_net.float()),
    "weight norm": changed(lambda p: parametrizations.weight_norm(p.action_net)),
    "orthogonal": changed(lambda p: parametrizations.orthogonal(hidden(p)[0])),
    "parametrized bias": changed(lambda p: parametrize.register_parametrization(p.action_net, "bias", nn.Tanh())),
    "spectral norm": changed(lambda p: nn.utils.spectral_norm(p.action_net)),
    "forward hook": changed(lambda p: p.action_net.register_forward_hook(lambda m, x, y: -y)),
    "forward hook of a container": changed(lambda p: hidden(p).register_forward_hook(lambda m, x, y: -y)),
    "forward hook of the extractor": changed(lambda p: p.mlp_extractor.register_forward_hook(lambda m, x, y: y)),
    "forward hook of the features": changed(
        lambda p: p.pi_features_extractor.register_forward_hook(lambda m, x, y: -y)
    ),
    "forward pre-hook": changed(lambda p: hidden(p)[0].register_forward_pre_hook(lambda m, x: (-x[0],))),
    "backward hook": changed(lambda p: p.action_net.register_full_backward_hook(lambda m, x, y: None)),
    "backward pre-hook": changed(lambda p: p.action_net.register_full_backward_pre_hook(lambda m, y: None)),
    "hook of a parameter": changed(lambda p: p.action_net.weight.register_hook(lambda grad: 0.0 * grad)),
    "hook of log σ": changed(lambda p: p.log_std.register_hook(lambda grad: 0.0 * grad)),
}


@pytest.mark.parametrize("name", list(NOT_PLAIN))
def test_anything_else_is_no_plain_actor(name) -> None:
    assert plain_actor(NOT_PLAIN[name]()) is None


class OtherValues(ActorCriticPolicy):
    def predict_values(self, obs):
        return -super().predict_values(obs)


NO_PLAIN_CRITIC: dict[str, Callable[[], nn.Module]] = {
    "predict_values": lambda: make(OtherValues),
    "method of the object": changed(lambda p: setattr(p, "predict_values", p.predict_values)),
    "method of the extractor": changed(lambda p: setattr(p.mlp_extractor, "forward_critic", lambda x: -x)),
    "forward hook": changed(lambda p: p.value_net.register_forward_hook(lambda m, x, y: -y)),
    "hook of a parameter": changed(lambda p: p.value_net.weight.register_hook(lambda grad: 0.0 * grad)),
    "dropout": changed(lambda p: p.mlp_extractor.value_net.append(nn.Dropout())),
    **{name: NOT_PLAIN[name] for name in ("another activation", "extract_features", "MlpExtractor", "recurrent")},
}


@pytest.mark.parametrize("name", list(NO_PLAIN_CRITIC))
def test_anything_else_is_no_plain_critic(name) -> None:
    assert plain_critic(NO_PLAIN_CRITIC[name]()) is None


def test_actor_and_critic_are_judged_apart() -> None:
    """What is special about one of them need not slow down the other."""
    assert plain_actor(make(OtherValues)) is not None
    assert plain_critic(make(OtherLatent)) is not None
    assert plain_critic(make(OtherDistribution)) is not None
    assert plain_critic(cnn_policy()) is not None
    assert plain_actor(changed(lambda p: p.mlp_extractor.value_net.append(nn.Dropout()))()) is not None
    assert plain_actor(squashed()) is not None
