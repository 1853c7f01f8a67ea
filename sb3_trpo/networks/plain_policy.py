"""
Which policies are plain: those whose networks are multilayer perceptrons and nothing else.

``plain_actor`` and ``plain_critic`` give a policy's network only if what it computes is exactly what the policy itself
computes: anything else (overridden methods, hooks, other layers) is left to the general path, which works for every
policy. ``why_not_plain`` says in words what stands in the way.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch as th
from stable_baselines3.common import policies
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.networks.activations import ACTIVATIONS, Activation, activation_of
from sb3_trpo.networks.mlp import PlainMlp
from sb3_trpo.networks.untouched import is_as_written, why_module_is_touched, why_torch_is_touched

# The classes that define the methods of a plain policy, by their modules and names: SB3's, and sb3-contrib's for action
# masks, which need not be installed.
_POLICIES = (
    (policies.__name__, "ActorCriticPolicy"),
    ("sb3_contrib.common.maskable.policies", "MaskableActorCriticPolicy"),
)
_ACTOR = ("extract_features", "get_distribution", "_get_action_dist_from_latent")
_CRITIC = ("extract_features", "predict_values")
_MLP_EXTRACTOR = ("forward", "forward_actor", "forward_critic")
# What SB3's features extractors are made of: it gives the same for the same input, in evaluation mode and in training.
ALWAYS_SAME = (
    FlattenExtractor,
    CombinedExtractor,
    NatureCNN,
    nn.ModuleDict,
    nn.Sequential,
    nn.Flatten,
    nn.Conv2d,
    nn.Linear,
    *ACTIVATIONS,
)


class _NotPlainError(Exception):
    """Why a policy is not plain, in words that follow "because"."""


def plain_actor(policy: nn.Module) -> PlainMlp | None:
    """
    Give the network from features to mean actions or logits.

    :param policy: the policy
    :return: the network, if it is a plain one, on features that the actor does not train, and ``get_distribution`` is
        SB3's; else None
    """
    return _unless_not_plain(_actor_network, policy)


def plain_critic(policy: nn.Module) -> PlainMlp | None:
    """
    Give the network from the critic's features to values.

    :param policy: the policy
    :return: the network, if it is a plain one and ``predict_values`` is SB3's; else None
    """
    return _unless_not_plain(_critic_network, policy)


def why_not_plain(policy: nn.Module) -> str:
    """
    Say why a policy can't act, and be evaluated, by plain networks alone.

    :param policy: the policy
    :return: the reason, in words that follow "because", such as "the policy's action_net has a hook"; empty if it can
    """
    try:
        # ``forward`` is what acts.
        _check_methods(policy, ("forward",))
        _actor_network(policy)
        _critic_network(policy)
    except _NotPlainError as error:
        return str(error)
    return ""


def why_features_change(extractor: nn.Module, moved: Iterable[nn.Parameter], is_counted_on: bool = False) -> str:
    """
    Say why the features of the same observations may change while an actor or a critic learns.

    :param extractor: the features extractor, in evaluation mode
    :param moved: the parameters that are moved meanwhile
    :param is_counted_on: whether the extractor stays in evaluation mode, and the policy step already relies on it to
        give the same features at each evaluation
    :return: the reason, in words that follow "because"; empty if features need computing only once
    """
    # 1. What learns.
    moving = {id(parameter) for parameter in moved}
    if any(id(parameter) in moving for parameter in extractor.parameters()):
        return "the features extractor learns"
    for module in extractor.modules():
        # 2. What calls something else, which may want to be called each time.
        touched = why_module_is_touched(module)
        if touched:
            return f"a {type(module).__name__} in the features extractor {touched}"
        # 3. What may differ between training and evaluation (dropout), or learn without parameters (a running mean).
        is_known = type(module) in ALWAYS_SAME and is_as_written(type(module), type(module), "forward")
        if not is_known and not is_counted_on:
            return f"the features extractor has a {type(module).__name__}"
    return ""


def actor_modules(policy: nn.Module) -> list[nn.Module] | None:
    """
    Give the modules that the action distribution comes from.

    :param policy: the policy
    :return: the modules, plain or not; None if ``get_distribution`` is not SB3's, so that nobody can tell
    """
    try:
        checked = _check_methods(policy, _ACTOR)
    except _NotPlainError:
        return None
    return [checked.pi_features_extractor, checked.mlp_extractor.policy_net, checked.action_net]


def extract_features(policy: BasePolicy, obs: PyTorchObs, extractor: BaseFeaturesExtractor) -> th.Tensor:
    """
    Give the inputs of a policy's network, as SB3 prepares them (one-hot, scaled images, flattened).

    :param policy: a policy whose actor or critic is plain
    :param obs: the observations of N states, a tensor (N, ...) or a dictionary of such
    :param extractor: the policy's features extractor
    :return: the features, (N, features_dim)
    """
    features = BasePolicy.extract_features(policy, obs, extractor)
    assert isinstance(features, th.Tensor)
    return features


def _actor_network(policy: nn.Module) -> PlainMlp:
    """
    Give the network from features to mean actions or logits.

    :param policy: the policy
    :return: the network
    :raises _NotPlainError: if it is not a plain one, or not all that the actor is
    """
    checked = _check_methods(policy, _ACTOR)
    trained = [parameter for parameter in checked.pi_features_extractor.parameters() if parameter.requires_grad]
    reason = why_features_change(checked.pi_features_extractor, trained)
    if reason:
        raise _NotPlainError(reason)
    return _plain_mlp([checked.mlp_extractor.policy_net, checked.action_net], "the actor's network")


def _critic_network(policy: nn.Module) -> PlainMlp:
    """
    Give the network from the critic's features to values.

    :param policy: the policy
    :return: the network
    :raises _NotPlainError: if it is not a plain one, or not all that the critic is
    """
    checked = _check_methods(policy, _CRITIC)
    return _plain_mlp([checked.mlp_extractor.value_net, checked.value_net], "the critic's network")


def _unless_not_plain(network_of: Callable[[nn.Module], PlainMlp], policy: nn.Module) -> PlainMlp | None:
    try:
        return network_of(policy)
    except _NotPlainError:
        return None


def _check_methods(policy: nn.Module, methods: Sequence[str]) -> ActorCriticPolicy:
    """
    Check that methods of a policy are SB3's own.

    :param policy: the policy
    :param methods: the names of the methods
    :return: the policy, with the type whose attributes it has; so has one for action masks
    :raises _NotPlainError: if these methods, or those that they call, are not SB3's own on SB3's own modules
    """
    # 1. torch, for whatever is called.
    reason = why_torch_is_touched()
    if reason:
        raise _NotPlainError(reason)
    # 2. The policy's methods, in its class and on the instance.
    base = next((c for c in type(policy).__mro__ if (c.__module__, c.__name__) in _POLICIES), None)
    if base is None:
        raise _NotPlainError(f"the policy is a {type(policy).__name__}")
    for name in (*methods, "__call__", "__getattr__"):
        if not is_as_written(type(policy), base, name):
            raise _NotPlainError(f"the policy has a {name} of its own")
    touched = why_module_is_touched(policy, methods)
    if touched:
        raise _NotPlainError(f"the policy {touched}")
    # 3. What splits features between actor and critic.
    assert isinstance(policy.mlp_extractor, nn.Module)
    if type(policy.mlp_extractor) is not MlpExtractor:
        raise _NotPlainError(f"the policy's mlp_extractor is a {type(policy.mlp_extractor).__name__}")
    touched = why_module_is_touched(policy.mlp_extractor, _MLP_EXTRACTOR)
    if touched:
        raise _NotPlainError(f"the policy's mlp_extractor {touched}")
    if not all(is_as_written(MlpExtractor, MlpExtractor, name) for name in _MLP_EXTRACTOR):
        raise _NotPlainError("MlpExtractor has been patched")
    return cast("ActorCriticPolicy", policy)


def _plain_mlp(modules: Sequence[nn.Module], name: str) -> PlainMlp:
    """
    Make a plain network of modules.

    :param modules: linear layers, activations and sequences of these, in the order of evaluation
    :param name: the name of the whole, for messages
    :return: the network that they form
    :raises _NotPlainError: if it is not a plain one
    """
    layers: list[nn.Linear] = []
    activations: list[Activation] = []
    for module in _leaves(modules, name):
        activation = activation_of(module)
        # 1. Layers and activations in turn.
        if type(module) is nn.Linear and module.bias is not None and len(layers) == len(activations):
            layers.append(module)
        elif activation is not None and len(layers) == len(activations) + 1:
            activations.append(activation)
        else:
            what = type(module).__name__ + (" without bias" if getattr(module, "bias", module) is None else "")
            raise _NotPlainError(f"{name} has a {what} where linear layers and known activations take turns")
    if len(layers) != len(activations) + 1:
        raise _NotPlainError(f"{name} does not end with a linear layer")
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    # 2. Each parameter has one place in θ ...
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise _NotPlainError(f"{name} uses a parameter twice")
    # 3. ... and all can be one vector.
    if len({(parameter.dtype, parameter.device) for parameter in parameters}) > 1:
        raise _NotPlainError(f"{name} is of several precisions or on several devices")
    return PlainMlp(parameters, activations)


def _leaves(modules: Iterable[nn.Module], name: str) -> Iterator[nn.Module]:
    """
    Take modules out of the sequences that they are in.

    :param modules: modules and sequences, in the order of evaluation
    :param name: the name of the whole, for messages
    :return: the modules, in the same order
    :raises _NotPlainError: if calling one of them may do something else than its class says
    """
    for module in modules:
        kind = type(module)
        touched = why_module_is_touched(module)
        if touched:
            raise _NotPlainError(f"a {kind.__name__} in {name} {touched}")
        if not is_as_written(kind, kind, "forward"):
            raise _NotPlainError(f"{kind.__name__} has been patched")
        if type(module) is nn.Sequential:
            yield from _leaves(module, name)
        else:
            yield module
