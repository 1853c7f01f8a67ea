"""
Checks of a policy by trying it on a few observations, where what is wrong with it shows nowhere else.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from traceback import walk_tb
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch.nn.parameter import is_lazy

from sb3_trpo.validation.values import UserError, short, warn_user

# A function that evaluates actor and critic on observations, and gives the parameters of the action distributions.
Evaluate = Callable[[Any], Sequence[th.Tensor]]
_N_TRIED = 2


def some_observations(space: spaces.Space[Any], n: int) -> Any:
    """
    Sample observations, and leave the space's own random generator as it is.

    :param space: the observation space
    :param n: the number of observations
    :return: an array with n rows, or a dictionary of such
    """
    space = copy.deepcopy(space)
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def explain_features_dim(error: Exception, space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]) -> None:
    """
    Name the features extractor that can't be made, or be followed by a layer, for its number of features is none.

    :param error: the exception that was raised while the policy was made
    :param space: the observation space
    :param policy_kwargs: the arguments of the policy
    :raises UserError: if that is the reason
    """
    kind = policy_kwargs.get("features_extractor_class")
    if kind is None or error.__traceback__ is None:
        return
    *_, (frame, _) = walk_tb(error.__traceback__)
    if frame.f_code is BaseFeaturesExtractor.__init__.__code__:
        # The base class has refused its argument, and keeps it nowhere.
        declared = frame.f_locals["features_dim"]
    else:
        try:
            declared = kind(space, **(policy_kwargs.get("features_extractor_kwargs") or {})).features_dim
        except Exception:
            # It can't be made for another reason, which the error tells.
            return
    if not isinstance(declared, Integral) or declared < 1:
        raise UserError(
            f"policy_kwargs['features_extractor_class'] is {kind.__name__}, whose features_dim is {short(declared)}, "
            "but must be a whole number of at least 1."
        ) from error


def check_by_trial(policy: ActorCriticPolicy, evaluate: Evaluate) -> None:
    """
    Check that networks of the user's give as many features as they say, and leave their observations as they are.

    Where they do not give so many, but the policy can be evaluated all the same, that is the user's affair. A warning
    names networks that answer the same observations in another way each time.

    :param policy: the policy, new
    :param evaluate: the function that evaluates it
    :raises UserError: if they do not
    """
    extractors = {id(each): each for each in (policy.pi_features_extractor, policy.vf_features_extractor)}
    users = [each for each in extractors.values() if not _is_known(each)]
    is_known = not users and _is_known(policy) and _is_known(policy.mlp_extractor)
    if is_known or any(map(is_lazy, [*policy.parameters(), *policy.buffers()])):
        return
    buffers = [(buffer, buffer.detach().clone()) for buffer in policy.buffers()]
    obs = obs_as_tensor(some_observations(policy.observation_space, _N_TRIED), policy.device)
    before = copy.deepcopy(obs)
    with th.random.fork_rng(devices=[]):
        error = _error_of(policy, evaluate, obs)
        if error is None:
            _check_same(policy, evaluate, obs, before)
            _check_repeatable(policy, evaluate, obs)
        # With a network of the user's, other errors may come of what the trial lacks.
        elif isinstance(error, RuntimeError) or type(policy.mlp_extractor) is MlpExtractor:
            for extractor in users:
                _compare_features(policy, extractor, obs)
    with th.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)


def _is_known(module: th.nn.Module) -> bool:
    return type(module).__module__.startswith(("stable_baselines3.", "sb3_contrib.", "sb3_trpo."))


def _check_same(policy: ActorCriticPolicy, evaluate: Evaluate, obs: Any, before: Any) -> None:
    """
    Check that a policy does not change its observations, for an update evaluates them many times.

    :param policy: the policy
    :param evaluate: the function that evaluates it
    :param obs: the observations that it was evaluated on
    :param before: the observations as they were
    :raises UserError: if they are others after each evaluation
    """
    if _are_equal(obs, before):
        return
    # What is clipped once stays as it is.
    once = copy.deepcopy(obs)
    _error_of(policy, evaluate, obs)
    if not _are_equal(obs, once):
        raise UserError(
            f"policy is {type(policy).__name__}, which changes its observations in place (look at "
            f"{_names_of_users(policy)}), but must leave them as they are, for an update evaluates them many times: "
            "write x = x / 2, and not x /= 2."
        )


def _check_repeatable(policy: ActorCriticPolicy, evaluate: Evaluate, obs: Any) -> None:
    """
    Warn of a policy whose action distributions are others each time, for KL is then measured on one of them.

    :param policy: the policy
    :param evaluate: the function that evaluates it
    :param obs: a few observations, as tensors
    """
    answers: list[Any] = []
    for _ in range(2):
        if _error_of(policy, lambda obs: answers.append(evaluate(obs)), obs) is not None:
            return
    first, second = answers
    # A GPU may sum in any order.
    pairs = zip(first, second, strict=True)
    if not all(th.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True) for one, other in pairs):
        warn_user(
            f"policy is {type(policy).__name__}, which gives other action distributions each time that it is asked "
            f"about the same observations, in evaluation mode, too (look at {_names_of_users(policy)}: random numbers, "
            "or a state that moves with each call). KL is measured on one evaluation, and may be larger in another."
        )


def _names_of_users(policy: ActorCriticPolicy) -> str:
    modules = (policy, policy.pi_features_extractor, policy.mlp_extractor)
    return ", ".join(dict.fromkeys(type(each).__name__ for each in modules if not _is_known(each)))


def _are_equal(obs: Any, others: Any) -> bool:
    if isinstance(obs, dict):
        return all(_are_equal(part, others[key]) for key, part in obs.items())
    return th.equal(obs, others)


def _compare_features(policy: ActorCriticPolicy, extractor: BaseFeaturesExtractor, obs: Any) -> None:
    """
    Compare the features of a few observations with what their extractor says.

    :param policy: the policy
    :param extractor: one of its features extractors
    :param obs: a few observations, as tensors
    :raises UserError: if they are others
    """
    found: list[Any] = []
    error = _error_of(policy, lambda obs: found.append(BasePolicy.extract_features(policy, obs, extractor)), obs)
    if error is not None:
        # It can't be evaluated, and a rollout will tell why.
        return
    features, declared = found[0], extractor.features_dim
    if not isinstance(features, th.Tensor):
        given = f"gives {short(type(features).__name__)}, no tensor"
    elif features.dtype != th.float32:
        given = f"gives them as {features.dtype}, but must give torch.float32"
    elif features.shape != (_N_TRIED, declared):
        size = features.shape[1] if features.dim() == 2 else f"an array of shape {tuple(features.shape[1:])}"
        given = f"gives {size} for each observation"
    else:
        return
    name = type(extractor).__name__
    raise UserError(
        f"policy_kwargs['features_extractor_class'] is {name}, which says that it gives {short(declared)} features "
        f"(features_dim), but it {given}."
    )


def check_precision(policy: ActorCriticPolicy, device: th.device, evaluate: Evaluate) -> None:
    """
    Check that a policy can still take what the algorithm gives it: observations in float32, on the algorithm's device.

    :param policy: the policy
    :param device: the algorithm's device
    :param evaluate: the function that evaluates the policy
    :raises UserError: if parameters are of another type or elsewhere, and the policy does not reckon with it
    """
    odd = [(name, each) for name, each in policy.named_parameters() if not _is_usual(each, device)]
    if not odd:
        return
    name, parameter = odd[0]
    obs = obs_as_tensor(some_observations(policy.observation_space, _N_TRIED), device)
    error = _error_of(policy, evaluate, obs)
    if error is not None:
        raise UserError(
            f"The policy's {name} is of type {parameter.dtype} on the device {parameter.device}, but must be of type "
            f"torch.float32 on {device}, as the observations are (policy.float().to({str(device)!r}) makes it so): "
            f"{str(error).rstrip('.')}."
        ) from error


def _is_usual(parameter: th.Tensor, device: th.device) -> bool:
    is_of_type = parameter.dtype == th.float32 or not parameter.is_floating_point()
    return is_lazy(parameter) or (is_of_type and parameter.device.type == device.type)


def _error_of(policy: ActorCriticPolicy, evaluate: Callable[[Any], object], obs: Any) -> Exception | None:
    """
    Evaluate a policy, to see whether that fails.

    :param policy: the policy
    :param evaluate: the function that evaluates it, or a part of it
    :param obs: a few observations, as tensors
    :return: the exception; None if there is none
    """
    was_training = policy.training
    policy.set_training_mode(False)
    try:
        with th.no_grad():
            evaluate(obs)
    except Exception as error:
        # Networks may raise anything.
        return error
    finally:
        policy.set_training_mode(was_training)
    return None
