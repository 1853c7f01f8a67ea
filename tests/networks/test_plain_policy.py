"""
A policy counts as plain only if its written-out network computes what the policy itself does.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sample_policies import ACTIONS, OBSERVATIONS, cnn_policy, make_policy, squashed
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from sb3_trpo.networks.mlp import PlainMlp
from sb3_trpo.networks.plain_policy import (
    extract_features,
    plain_actor,
    plain_critic,
    why_features_change,
    why_not_plain,
)
from sb3_trpo.policies.policies import CnnPolicy, MlpPolicy, MultiInputPolicy


class Unchanged(ActorCriticPolicy):
    """A user's subclass, with a method of its own that has nothing to do with what is computed."""

    def describe(self) -> str:
        return "mine"


def make(policy_class: type[ActorCriticPolicy], **kwargs: object) -> ActorCriticPolicy:
    return policy_class(OBSERVATIONS, ACTIONS["Box"], lambda _: 1e-3, **kwargs)


IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def multi_input(parts: dict[str, spaces.Space], **kwargs: object) -> ActorCriticPolicy:
    return MultiInputPolicy(spaces.Dict(parts), ACTIONS["Box"], lambda _: 1e-3, **kwargs)


def cnn_of_sb3(**kwargs: object) -> ActorCriticPolicy:
    return CnnPolicy(IMAGE, ACTIONS["Box"], lambda _: 1e-3, **kwargs)


def frozen(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    policy.pi_features_extractor.requires_grad_(False)
    return policy


def mixed() -> ActorCriticPolicy:
    policy = make_policy(dtype=th.float32, activation_fn=nn.GELU)
    policy.mlp_extractor.policy_net[1] = nn.LeakyReLU(0.1, inplace=True)
    policy.mlp_extractor.value_net[3] = nn.Hardtanh()
    return policy


PLAIN: dict[str, Callable[[], ActorCriticPolicy]] = {
    **{name: lambda space=space: make_policy(space, dtype=th.float32) for name, space in ACTIONS.items()},
    "no hidden layers": lambda: make_policy(net_arch=[], dtype=th.float32),
    "different sizes": lambda: make_policy(net_arch={"pi": [32], "vf": [7, 5, 3]}, dtype=th.float32),
    **{
        kind.__name__: lambda kind=kind: make_policy(activation_fn=kind, dtype=th.float32)
        for kind in (nn.ReLU, nn.Sigmoid, nn.ELU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Softplus, nn.Mish, nn.ReLU6)
    },
    "an argument of an activation": lambda: make_policy(activation_fn=lambda: nn.ELU(0.3), dtype=th.float32),
    "another activation for each layer": lambda: mixed(),
    "one-hot": lambda: make_policy(observation_space=spaces.Discrete(4), dtype=th.float32),
    "matrix": lambda: make_policy(observation_space=spaces.Box(-1.0, 1.0, (3, 4)), dtype=th.float32),
    "image": lambda: make_policy(observation_space=IMAGE, dtype=th.float32),
    "two extractors": lambda: make_policy(share_features_extractor=False, dtype=th.float32),
    "gSDE": lambda: make_policy(use_sde=True, dtype=th.float32),
    "dictionary": lambda: multi_input({"x": OBSERVATIONS, "y": spaces.Discrete(3), "z": spaces.MultiBinary((2, 2))}),
    "dictionary of one": lambda: multi_input({"x": OBSERVATIONS}, share_features_extractor=True),
    "frozen convolutions": lambda: frozen(cnn_of_sb3()),
    "frozen convolutions of a dictionary": lambda: frozen(multi_input({"image": IMAGE, "x": OBSERVATIONS})),
    "the package's MlpPolicy": lambda: make(MlpPolicy),
    "subclass": lambda: make(Unchanged),
}


def as_tensors(observations: list) -> PyTorchObs:
    if isinstance(observations[0], dict):
        return {key: as_tensors([part[key] for part in observations]) for key in observations[0]}
    return th.as_tensor(np.stack(observations))


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("n", [1, 8, 300])
def test_plain_networks_are_the_policys_own_bit_for_bit(name, n) -> None:
    policy = PLAIN[name]()
    policy.observation_space.seed(0)
    obs = as_tensors([policy.observation_space.sample() for _ in range(n)])
    actor, critic = plain_actor(policy), plain_critic(policy)
    assert actor is not None
    assert critic is not None
    assert why_not_plain(policy) == ""
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


class DoubledFlat(CombinedExtractor):
    def forward(self, obs):
        return 2.0 * super().forward(obs)


class OtherTanh(nn.Tanh):
    def forward(self, x):
        return -super().forward(x)


class OtherLinear(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


def changed(change: Callable[[ActorCriticPolicy], object]) -> Callable[[], ActorCriticPolicy]:
    """
    Make a plain policy and change it.

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
    "another activation": lambda: make_policy(activation_fn=nn.PReLU),
    "a derived activation": lambda: make_policy(activation_fn=OtherTanh),
    "another extractor": lambda: make_policy(features_extractor_class=DoubledFlatten),
    "images": cnn_policy,
    "extract_features": lambda: make(OtherFeatures),
    "get_distribution": lambda: make(OtherDistribution),
    "_get_action_dist_from_latent": lambda: make(OtherLatent),
    "MlpExtractor": lambda: make(OtherMlpPolicy),
    "recurrent": lambda: make(RecurrentActorCriticPolicy),
    "convolutions that learn": cnn_of_sb3,
    "convolutions of a dictionary": lambda: multi_input({"image": IMAGE, "x": OBSERVATIONS}),
    "dictionary, extractor of its own": lambda: multi_input({"x": OBSERVATIONS}, features_extractor_class=DoubledFlat),
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
    policy = NOT_PLAIN[name]()
    assert plain_actor(policy) is None
    assert why_not_plain(policy)


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


def patch_globally(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Instrument a class, as some libraries do to others."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, functools.wraps(original)(lambda *args, **kwargs: original(*args, **kwargs)))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ActorCriticPolicy, "get_distribution"),
        (ActorCriticPolicy, "predict_values"),
        (MlpExtractor, "forward_actor"),
        (FlattenExtractor, "forward"),
        (nn.Linear, "forward"),
        (nn.Tanh, "forward"),
        (nn.Module, "__call__"),
    ],
)
def test_a_method_replaced_in_the_class_itself_counts(monkeypatch, owner, name) -> None:
    policy = make_policy()
    assert why_not_plain(policy) == ""
    patch_globally(monkeypatch, owner, name)
    assert why_not_plain(policy)
    assert plain_actor(policy) is None or plain_critic(policy) is None


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def hook_all_modules(register: Callable[[Callable[..., None]], RemovableHandle]) -> Iterator[None]:
    handle = register(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


GLOBALLY: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "forward hook": lambda: hook_all_modules(nn.modules.module.register_module_forward_hook),
    "forward pre-hook": lambda: hook_all_modules(nn.modules.module.register_module_forward_pre_hook),
    "backward hook": lambda: hook_all_modules(nn.modules.module.register_module_full_backward_hook),
    "function mode": Mode,
    "dispatch mode": DispatchMode,
    "autocast": lambda: th.autocast("cpu"),
}


@pytest.mark.parametrize("name", GLOBALLY)
def test_what_torch_is_told_to_do_at_each_call_counts(name) -> None:
    policy = make_policy()
    with GLOBALLY[name]():
        assert plain_actor(policy) is None
        assert plain_critic(policy) is None
        assert why_not_plain(policy)
    assert why_not_plain(policy) == ""


def test_a_default_device_changes_nothing() -> None:
    policy = make_policy()
    with th.device("cpu"):
        assert plain_actor(policy) is not None


ACTING: dict[str, Callable[[ActorCriticPolicy], object]] = {
    "forward of the object": lambda p: setattr(p, "forward", p.forward),
    "hook of the policy": lambda p: p.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", ACTING)
def test_what_acts_counts_when_it_is_asked_for_the_reason(name) -> None:
    assert why_not_plain(changed(ACTING[name])())


def test_reasons_are_clauses_that_name_what_is_in_the_way() -> None:
    assert why_not_plain(make_policy(activation_fn=nn.PReLU)) == (
        "the actor's network has a PReLU where linear layers and known activations take turns"
    )
    assert "without bias" in why_not_plain(NOT_PLAIN["no bias"]())
    assert why_not_plain(NOT_PLAIN["method of the object"]()) == (
        "the policy has a get_distribution of its own, set on the instance"
    )
    assert why_not_plain(cnn_of_sb3()) == "the features extractor learns"
    assert "OtherValues" not in why_not_plain(make(OtherValues))
    assert "predict_values" in why_not_plain(make(OtherValues))


@pytest.mark.parametrize("action_space", [ACTIONS["Discrete"], ACTIONS["MultiDiscrete"], ACTIONS["MultiBinary"]])
def test_a_policy_for_action_masks_has_plain_networks(action_space) -> None:
    policy = MaskableActorCriticPolicy(OBSERVATIONS, action_space, lambda _: 1e-3)
    obs = th.randn(7, 3)
    actor, critic = plain_actor(policy), plain_critic(policy)
    assert actor is not None
    assert critic is not None
    with th.no_grad():
        logits = policy.action_net(policy.mlp_extractor.forward_actor(obs))
        assert th.equal(actor.forward(extract_features(policy, obs, policy.pi_features_extractor)), logits)
        assert th.equal(critic.forward(obs), policy.predict_values(obs))


def test_a_shared_extractor_that_learns_is_fixed_for_the_critic_alone() -> None:
    policy = cnn_of_sb3(share_features_extractor=True)
    extractor, heads = policy.features_extractor, [*policy.value_net.parameters()]
    assert why_features_change(extractor, extractor.parameters())
    assert why_features_change(extractor, heads) == ""
    extractor.register_forward_hook(lambda *_: None)
    assert why_features_change(extractor, heads)


def test_an_extractor_of_ones_own_is_fixed_only_where_the_policy_counts_on_it() -> None:
    extractor = nn.Sequential(nn.Flatten(), nn.Dropout())
    assert why_features_change(extractor, [])
    assert why_features_change(extractor, [], is_counted_on=True) == ""
