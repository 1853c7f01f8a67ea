"""
Single updates, seen from the outside: a rollout, the state before and after, and torch's own KL divergence.
"""

from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

from sb3_trpo import TRPO


def pendulum(algorithm: type[OnPolicyAlgorithm] = TRPO, /, **kwargs: Any) -> Any:
    """
    :param algorithm: its class
    :param kwargs: of the algorithm
    :return: a model for Pendulum-v1, small enough for an update to take milliseconds, with a rollout
    """
    kwargs = {"n_steps": 256, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu", **kwargs}
    kwargs = {"policy": "MlpPolicy", "env": "Pendulum-v1", "policy_kwargs": {"net_arch": [16, 16]}, **kwargs}
    return with_rollout(algorithm(**kwargs))


def with_rollout(model: Any) -> Any:
    """
    :param model: an on-policy algorithm
    :return: the same, ready for ``train()``
    """
    _, callback = model._setup_learn(10**6, None)
    collect(model, callback)
    return model


def collect(model: Any, callback: Any = None) -> None:
    """
    :param model: after ``with_rollout``
    :param callback: None is one that does nothing
    """
    callback = callback or model._init_callback(None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def observations(model: Any) -> Any:
    """
    :param model: with a rollout
    :return: all of its observations, as tensors
    """
    return next(iter(model.rollout_buffer.get(batch_size=None))).observations


def log(model: Any) -> dict[str, Any]:
    """
    :param model: after ``train()``
    :return: what it recorded
    """
    return model.logger.name_to_value


@th.no_grad()
def action_distributions(policy: ActorCriticPolicy, obs: Any) -> list[Distribution]:
    """
    :param policy: a policy; it may be changed afterwards
    :param obs: observations of N states
    :return: π(·|s) in evaluation mode and float64, one for each sub-action if it is a MultiDiscrete
    """
    was_training = policy.training
    policy.set_training_mode(False)
    inner = policy.get_distribution(obs).distribution
    policy.set_training_mode(was_training)
    return [_in_float64(item) for item in (inner if isinstance(inner, list) else [inner])]


def mean_kl(old: list[Distribution], policy: ActorCriticPolicy, obs: Any) -> float:
    """
    :param old: as ``action_distributions`` gives them
    :param policy: the policy now
    :param obs: the same observations
    :return: E[KL(old ‖ new)] by torch's formula, summed over action dimensions
    """
    total: Any = 0.0
    for p, q in zip(old, action_distributions(policy, obs), strict=True):
        total = total + kl_divergence(p, q).flatten(1).sum(dim=1)
    return float(total.mean())


def _in_float64(distribution: Any) -> Distribution:
    if isinstance(distribution, Normal):
        return Normal(distribution.loc.double(), distribution.scale.double())
    if isinstance(distribution, Categorical):
        # One column, as the others have one for each dimension.
        return Categorical(logits=distribution.logits.double().unsqueeze(1))
    assert isinstance(distribution, Bernoulli)
    return Bernoulli(logits=distribution.logits.double())


def state(model: Any) -> dict[str, th.Tensor]:
    """
    :param model: with a policy
    :return: copies of the policy's parameters and buffers and of the optimizer's state, on the CPU
    """
    tensors = {name: tensor.cpu().clone() for name, tensor in model.policy.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    for parameter, values in model.policy.optimizer.state.items():
        for key, value in values.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = th.as_tensor(value).cpu().clone()
    return tensors


def actor_state(model: Any) -> dict[str, th.Tensor]:
    """
    :param model: with SB3's MlpPolicy
    :return: copies of the parameters that its actions depend on
    """
    critic = ("mlp_extractor.value_net.", "value_net.", "optimizer.")
    return {name: tensor for name, tensor in state(model).items() if not name.startswith(critic)}


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    """
    :param before: as ``state`` gives it
    :param after: likewise
    :return: the names of those that are not the same, bit for bit
    """
    return {
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not _is_same(before[name], after[name])
    }


def _is_same(a: th.Tensor, b: th.Tensor) -> bool:
    # Unlike torch's, this comparison tells 0 from -0, and a NaN is the same as itself.
    return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def data_pointers(model: Any) -> list[int]:
    """
    :param model: with a policy
    :return: where each parameter lies in memory
    """
    return [parameter.data_ptr() for parameter in model.policy.parameters()]


class Crash(BaseCallback):
    """
    :param at: step at which training ends with an error
    """

    reads_values = False

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise InterruptedError
        return True
