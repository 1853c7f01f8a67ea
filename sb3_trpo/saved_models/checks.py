"""
Checks of what a stranger's model is made of.

Attributes have to be of their kinds. Weights and the optimizer's moments have to be of exactly the shapes and types of
the policy that the attributes describe.
"""

import math
from collections import deque
from types import NoneType
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape

from sb3_trpo.saved_models.budget import check_integer_size
from sb3_trpo.saved_models.refused import RefusedModelError
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks
from sb3_trpo.validation.values import check_real

REQUIRED = ("policy_class", "policy_kwargs", "observation_space", "action_space", "lr_schedule", "n_steps", "n_envs")
INTEGERS = ("verbose", "num_timesteps", "n_steps", "n_envs", "_n_updates", "_stats_window_size", "_episode_num")
QUEUES = ("ep_info_buffer", "ep_success_buffer")
NOT_SAVED = ("env", "policy", "device", "rollout_buffer", "_logger", "_custom_logger", "_vec_normalize_env")
# The largest rollout buffer of a model. Its memory is taken from the system page by page as it is filled.
MAX_BUFFER_BYTES = 2**33
BYTES_PER_NUMBER = 4

State = dict[str, Any]


def check_attributes(algorithm_class: type, attributes: State) -> None:
    """
    Check that a model's attributes are of their kinds.

    The constructor's arguments are checked by ``validation``, too.

    :param algorithm_class: the class of the model
    :param attributes: the attributes, by their names
    :raises RefusedModelError: if one is not of its kind
    """
    for name in REQUIRED:
        if name not in attributes:
            raise RefusedModelError(f"it has no {name}")
    for name in NOT_SAVED:
        if name in attributes:
            raise RefusedModelError(f"it has an attribute {name!r}, which no model saves")
    if not isinstance(attributes["policy_kwargs"], dict) or not callable(attributes["lr_schedule"]):
        raise RefusedModelError("its policy_kwargs are no dictionary, or its lr_schedule is no schedule")
    for name in INTEGERS:
        # A bool is a whole number as well: verbose may be one.
        if name in attributes and (not isinstance(attributes[name], int) or check_integer_size(attributes[name]) < 0):
            raise RefusedModelError(f"its {name} is no whole number")
    for name in (*QUEUES, "action_noise"):
        # Action noise is for algorithms that learn off the policy.
        if not isinstance(attributes.get(name), (deque, NoneType) if name in QUEUES else NoneType):
            raise RefusedModelError(f"its {name} is {'no queue' if name in QUEUES else 'not None'}")
    check_real("kl_scale", attributes.get("kl_scale", 1.0), "above 0", lambda x: x > 0)
    _check_classes(algorithm_class, attributes)
    _check_direction(attributes.get("cg_direction"))


def _check_classes(algorithm_class: type, attributes: State) -> None:
    aliases = getattr(algorithm_class, "policy_aliases", {}).values()
    for name, kinds in {
        "policy_class": (ActorCriticPolicy, *aliases),
        "rollout_buffer_class": (RolloutBuffer,),
    }.items():
        value = attributes.get(name)
        if value is not None and not (isinstance(value, type) and issubclass(value, kinds)):
            raise RefusedModelError(f"its {name} is no {kinds[0].__name__}")


def _check_direction(direction: object) -> None:
    if direction is None:
        return
    if not (isinstance(direction, np.ndarray) and direction.ndim == 1 and direction.dtype.kind == "f"):
        raise RefusedModelError("its cg_direction is no vector")


def check_policy(attributes: State, policy_state: Any, optimizer_state: Any) -> None:
    """
    Compare the policy that the attributes describe with the file's weights, without taking memory for the policy.

    :param attributes: the model's attributes, checked
    :param policy_state: the file's weights
    :param optimizer_state: the file's state of the optimizer
    :raises RefusedModelError: if they do not fit
    """
    if not isinstance(policy_state, dict) or not isinstance(optimizer_state, dict):
        raise RefusedModelError("its weights are no dictionaries")
    if _count(attributes["policy_kwargs"]) > 1000 + len(policy_state):
        raise RefusedModelError("its policy_kwargs describe more layers than there are weights")
    policy = _make_without_memory(attributes)
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in policy.state_dict().items()}
    found = {name: _kind(tensor) for name, tensor in policy_state.items()}
    if found != expected:
        raise RefusedModelError("its weights are not those of the policy that it describes")
    check_optimizer(policy, attributes["policy_kwargs"], optimizer_state)


def _kind(value: object) -> tuple[th.Size, th.dtype] | None:
    return (value.shape, value.dtype) if isinstance(value, th.Tensor) else None


def _count(node: object) -> int:
    """
    Count the parts of ``policy_kwargs``, and refuse what they never hold.

    :param node: the arguments, or a part of them
    :return: the number of parts
    :raises RefusedModelError: if there are bytes or arrays, each byte of which might become a layer
    """
    if isinstance(node, dict):
        return sum(map(_count, node.keys())) + sum(map(_count, node.values()))
    if isinstance(node, (list, tuple)):
        return sum(map(_count, node))
    if node is None or isinstance(node, (int, float, type)):
        return 1
    if isinstance(node, str):
        return len(node)
    raise RefusedModelError(f"its policy_kwargs hold a {type(node).__name__}")


def check_buffer(attributes: State) -> None:
    """
    Check that the rollout buffer which the attributes describe is not too large.

    :param attributes: the model's attributes, checked
    :raises RefusedModelError: if it is
    """
    shapes = get_obs_shape(attributes["observation_space"])
    n_numbers = sum(map(math.prod, shapes.values())) if isinstance(shapes, dict) else math.prod(shapes)
    # Actions; rewards, returns, episode starts, values, log-probabilities, advantages.
    n_numbers += get_action_dim(attributes["action_space"]) + 6
    n_bytes = int(n_numbers) * attributes["n_steps"] * attributes["n_envs"] * BYTES_PER_NUMBER
    if n_bytes > MAX_BUFFER_BYTES:
        raise RefusedModelError(f"its rollout buffer would take {n_bytes:.3g} bytes")


def _make_without_memory(attributes: State) -> ActorCriticPolicy:
    policy_class = type("Shapes", (attributes["policy_class"],), {"device": property(lambda _: th.device("meta"))})
    # Policies for masked actions do not know the argument.
    sde = {"use_sde": True} if attributes.get("use_sde") else {}
    with th.device("meta"), skip_distribution_checks():
        policy: ActorCriticPolicy = policy_class(
            attributes["observation_space"],
            attributes["action_space"],
            attributes["lr_schedule"],
            **sde,
            **{name: value for name, value in attributes["policy_kwargs"].items() if name != "device"},
        )
    return policy


def check_optimizer(policy: ActorCriticPolicy, policy_kwargs: State, state: State) -> None:
    """
    Compare an optimizer's state with the one that such an optimizer has after a step: names, shapes and types.

    torch's fused optimizers take moments as they are, so that short ones are read and written beyond their end.

    :param policy: a policy of the same shapes, which needs no data
    :param policy_kwargs: the arguments that this policy was made with
    :param state: the optimizer's state from a file
    :raises RefusedModelError: if they do not fit
    """
    example = _state_after_a_step(policy, policy_kwargs)
    if state.keys() != {"state", "param_groups"} or not isinstance(state["state"], dict):
        raise RefusedModelError("its optimizer's state is not of torch's form")
    _check_groups(state["param_groups"], example["param_groups"])
    n = len(list(policy.parameters()))
    for i, moments in state["state"].items():
        if type(i) is not int or not 0 <= i < n or not isinstance(moments, dict):
            raise RefusedModelError("its optimizer's state is not that of its policy")
        expected = example["state"].get(i, {})
        if moments.keys() != expected.keys() or not all(_fits(moments[key], expected[key]) for key in expected):
            raise RefusedModelError("its optimizer's state is not that of its policy")


def _state_after_a_step(policy: ActorCriticPolicy, policy_kwargs: State) -> State:
    """
    Take a step with an optimizer of the policy's kind, to see what its state is made of.

    :param policy: a policy of the same shapes and types
    :param policy_kwargs: the arguments that this policy was made with
    :return: the optimizer's state
    """
    parameters = [th.zeros(p.shape, dtype=p.dtype, device="cpu").requires_grad_() for p in policy.parameters()]
    for parameter in parameters:
        parameter.grad = th.zeros_like(parameter)
    make: Any = type(policy.optimizer)
    optimizer: th.optim.Optimizer = make(parameters, lr=1e-3, **(policy_kwargs.get("optimizer_kwargs") or {}))
    try:
        optimizer.step()
    except (TypeError, RuntimeError):
        # The optimizer wants to evaluate the loss by itself, or sparse gradients: no state of it is taken from a file.
        return {**optimizer.state_dict(), "state": {}}
    return optimizer.state_dict()


def _fits(found: Any, expected: Any) -> bool:
    if isinstance(expected, th.Tensor):
        # Counts of steps were numbers before torch 1.12.
        return _kind(found) == _kind(expected) or (expected.dim() == 0 and isinstance(found, (int, float)))
    if isinstance(expected, (list, tuple)):
        is_alike = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return is_alike and all(map(_fits, found, expected))
    if isinstance(expected, (int, float)):
        return isinstance(found, (int, float)) and math.isfinite(found)
    return found is None or isinstance(found, bool)


def _check_groups(groups: Any, expected: list[State]) -> None:
    """
    Check the optimizer's settings: as many groups, the same names, values of the same kinds.

    :param groups: the groups from a file
    :param expected: the groups of a new optimizer
    :raises RefusedModelError: if they do not fit
    """
    if not (isinstance(groups, list) and len(groups) == len(expected) and all(isinstance(g, dict) for g in groups)):
        raise RefusedModelError("its optimizer has other groups of parameters")
    for group, example in zip(groups, expected, strict=True):
        if group.get("params") != example["params"] or group.keys() - example.keys():
            raise RefusedModelError("its optimizer has other groups of parameters")
        if not all(_fits(value, example[name]) for name, value in group.items()):
            raise RefusedModelError("its optimizer's settings are not of their kinds")
