"""
Which policies are plain: those whose networks are multilayer perceptrons and nothing else.

``plain_actor`` and ``plain_critic`` give a policy's network only if what it computes is exactly what the policy itself
computes: anything else (overridden methods, hooks, other layers) is left to the general path, which works for every
policy.
"""

from collections.abc import Iterator, Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from sb3_trpo.networks.activations import Activation, activation_of
from sb3_trpo.networks.mlp import PlainMlp


def plain_actor(policy: nn.Module) -> PlainMlp | None:
    """
    :param policy: a policy
    :return: the network from features to mean actions or logits, if it is a plain one and ``get_distribution`` is SB3's
    """
    if not _is_builtin(policy, "get_distribution", "_get_action_dist_from_latent"):
        return None
    assert isinstance(policy, ActorCriticPolicy)
    if type(policy.pi_features_extractor) is not FlattenExtractor or _is_modified(policy.pi_features_extractor):
        return None
    return _plain_mlp([policy.mlp_extractor.policy_net, policy.action_net])


def plain_critic(policy: nn.Module) -> PlainMlp | None:
    """
    :param policy: a policy
    :return: the network from the critic's features to values, if it is a plain one and ``predict_values`` is SB3's
    """
    if not _is_builtin(policy, "predict_values"):
        return None
    assert isinstance(policy, ActorCriticPolicy)
    return _plain_mlp([policy.mlp_extractor.value_net, policy.value_net])


def _is_builtin(policy: nn.Module, *methods: str) -> bool:
    """
    :param policy: a policy
    :param methods: names of methods
    :return: whether these methods, and the ones they call, are SB3's own ones on SB3's own modules
    """
    if not isinstance(policy, ActorCriticPolicy) or _is_modified(policy):
        return False
    called = {name: getattr(ActorCriticPolicy, name) for name in methods}
    called["extract_features"] = ActorCriticPolicy.extract_features
    return (
        all(getattr(type(policy), name) is function for name, function in called.items())
        and not any(name in policy.__dict__ for name in called)
        and type(policy.mlp_extractor) is MlpExtractor
        and not _is_modified(policy.mlp_extractor)
    )


def _plain_mlp(modules: Sequence[nn.Module]) -> PlainMlp | None:
    """
    :param modules: linear layers, activations and sequences of these, in the order of evaluation
    :return: the network that they form; None if it is not a plain one
    """
    layers: list[nn.Linear] = []
    activations: list[Activation] = []
    for module in _leaves(modules):
        if _is_modified(module):
            return None
        if type(module) is nn.Linear and module.bias is not None and len(layers) == len(activations):
            layers.append(module)
        elif (activation := activation_of(module)) is not None and len(layers) == len(activations) + 1:
            activations.append(activation)
        else:
            return None
    if len(layers) != len(activations) + 1:
        return None
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    tied = len({id(parameter) for parameter in parameters}) < len(parameters)
    one_dtype = len({parameter.dtype for parameter in parameters}) == 1
    return PlainMlp(parameters, activations) if one_dtype and not tied else None


def _leaves(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential and not _is_modified(module):
            yield from _leaves(list(module))
        else:
            yield module


def _is_modified(module: nn.Module) -> bool:
    """
    :param module: a module of a known class
    :return: whether calling it may do something else than its class says, forward or backward
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    own_parameters = module.parameters(recurse=False)
    return (
        any(hooks)
        or any(name in module.__dict__ for name in ("forward", "forward_actor", "forward_critic"))
        or any(parameter._backward_hooks for parameter in own_parameters)
    )


def extract_features(policy: ActorCriticPolicy, obs: th.Tensor, extractor: nn.Module) -> th.Tensor:
    """
    The inputs of a policy's network, as SB3 prepares them (one-hot, scaled images, flattened).

    :param policy: a policy that ``plain_actor`` or ``plain_critic`` accepts
    :param obs: a batch of observations, (N, ...)
    :param extractor: the policy's features extractor
    :return: features, (N, features_dim)
    """
    features = BasePolicy.extract_features(policy, obs, extractor)  # type: ignore[arg-type]
    assert isinstance(features, th.Tensor)
    return features
