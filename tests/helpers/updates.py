"""
Single updates, seen from the outside: a rollout, the state before and after, and torch's own KL divergence.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

from sb3_trpo import TRPO


def pendulum(algorithm: type[OnPolicyAlgorithm] = TRPO, /, **kwargs: Any) -> Any:
    """
    Make a model for Pendulum-v1 that has a rollout, and is small enough for an update to take milliseconds.

    :param algorithm: the class of the model
    :param kwargs: arguments for the class
    :return: the model
    """
    kwargs = {"n_steps": 256, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu", **kwargs}
    kwargs = {"policy": "MlpPolicy", "env": "Pendulum-v1", "policy_kwargs": {"net_arch": [16, 16]}, **kwargs}
    return with_rollout(algorithm(**kwargs))


def with_rollout(model: Any) -> Any:
    """
    Collect a model's first rollout, so that it is ready for ``train()``.

    :param model: an on-policy algorithm
    :return: the same model
    """
    _, callback = model._setup_learn(10**6, None)
    collect(model, callback)
    return model


def collect(model: Any, callback: Any = None) -> None:
    """
    Collect a further rollout.

    :param model: a model after ``with_rollout``
    :param callback: the callback to use; None uses one that does nothing
    """
    callback = callback or model._init_callback(None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def observations(model: Any) -> Any:
    """
    Read the observations of a rollout.

    :param model: a model with a rollout
    :return: all observations, as tensors
    """
    return next(iter(model.rollout_buffer.get(batch_size=None))).observations


def log(model: Any) -> dict[str, Any]:
    """
    Read what the last update has logged.

    :param model: a model after ``train()``
    :return: the value of each key
    """
    return model.logger.name_to_value


@th.no_grad()
def action_distributions(policy: ActorCriticPolicy, obs: Any) -> list[Distribution]:
    """
    Copy the action distributions π(·|s) of a policy in evaluation mode, in float64.

    :param policy: the policy, which may be changed afterwards
    :param obs: observations of N states
    :return: one distribution; for MultiDiscrete actions, one for each sub-action
    """
    was_training = policy.training
    policy.set_training_mode(False)
    inner = policy.get_distribution(obs).distribution
    policy.set_training_mode(was_training)
    return [_in_float64(item) for item in (inner if isinstance(inner, list) else [inner])]


def mean_kl(old: list[Distribution], policy: ActorCriticPolicy, obs: Any) -> float:
    """
    Compute E[KL(old ‖ new)] by torch's formula, summed over action dimensions.

    :param old: the distributions before, as ``action_distributions`` gives them
    :param policy: the policy now
    :param obs: the same observations
    :return: the mean over states, in nats
    """
    total: Any = 0.0
    for p, q in zip(old, action_distributions(policy, obs), strict=True):
        total = total + kl_divergence(p, q).flatten(1).sum(dim=1)
    return float(total.mean())


def measure_kl(model: Any) -> float:
    """
    Make one update, and measure its KL divergence from the outside.

    :param model: an on-policy algorithm with a rollout
    :return: E[KL(old ‖ new)]
    """
    obs = observations(model)
    old = action_distributions(model.policy, obs)
    model.train()
    return mean_kl(old, model.policy, obs)


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
    Copy the policy's parameters and buffers and the optimizer's state to the CPU.

    :param model: a model with a policy
    :return: the copies by name
    """
    tensors = {name: tensor.cpu().clone() for name, tensor in model.policy.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    for parameter, values in model.policy.optimizer.state.items():
        for key, value in values.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = th.as_tensor(value).cpu().clone()
    return tensors


def actor_state(model: Any) -> dict[str, th.Tensor]:
    """
    Copy the parameters that the actions depend on.

    :param model: a model with SB3's MlpPolicy
    :return: the copies by name
    """
    critic = ("mlp_extractor.value_net.", "value_net.", "optimizer.")
    return {name: tensor for name, tensor in state(model).items() if not name.startswith(critic)}


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    """
    Name the tensors that are not the same, bit for bit.

    :param before: tensors by name, as ``state`` gives them
    :param after: the tensors later
    :return: the names
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
    Tell where each parameter lies in memory.

    :param model: a model with a policy
    :return: the addresses
    """
    return [parameter.data_ptr() for parameter in model.policy.parameters()]


class Crash(BaseCallback):
    """
    End training with an error.

    :param at: the step at which to do so
    """

    reads_values = False

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise InterruptedError
        return True


class Change(BaseCallback):
    """
    Change the model once, in the middle of a training.

    :param when: the method of callbacks in which to do so
    :param after: the steps after which to do so
    :param change: the function that does it
    """

    def __init__(self, when: str, after: int, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.when, self.after, self.change = when, after, change

    def _maybe(self, when: str) -> None:
        if when == self.when and self.num_timesteps >= self.after:
            self.when = ""
            self.change(self.model)

    def _on_rollout_start(self) -> None:
        self.num_timesteps = self.model.num_timesteps
        self._maybe("on_rollout_start")

    def _on_step(self) -> bool:
        self._maybe("on_step")
        return True

    def _on_rollout_end(self) -> None:
        self._maybe("on_rollout_end")
