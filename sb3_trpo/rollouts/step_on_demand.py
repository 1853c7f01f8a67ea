"""
What costs time of a step, computed when a callback reads it.
"""

import copy
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.rollouts.checks import Observations
from sb3_trpo.rollouts.shown_locals import Lazy


class StepOnDemand:
    """
    The tensors and infos of a step by their names in SB3's loop, computed when they are read.

    One object serves all steps of a rollout: to make new ones takes a noticeable part of a step.

    :param policy: the policy that acts
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._policy = policy
        self.obs_tensor = Lazy(lambda: obs_as_tensor(self._obs, policy.device))
        self.values = Lazy(self._read_values)
        self.log_probs = Lazy(self._read_log_probs)
        # A copy, for callbacks may keep it, and environments use their dictionaries again.
        self.infos = Lazy(lambda: copy.deepcopy(self._infos))
        # What callbacks have read, by the step: the buffer gets the same.
        self.read_values: dict[int, th.Tensor] = {}
        self.read_log_probs: dict[int, th.Tensor] = {}

    def begin_step(self, step: int, obs: Observations, actions: th.Tensor, infos: list[dict[str, Any]]) -> None:
        """
        Give what the next step's tensors are computed from, and forget those of the last one.

        :param step: the number of the step
        :param obs: the observations, (n_envs, ...)
        :param actions: the actions as sampled, (n_envs, ...)
        :param infos: the step's infos
        """
        self._step, self._obs, self._actions, self._infos = step, obs, actions, infos
        self.obs_tensor.forget()
        self.values.forget()
        self.log_probs.forget()
        self.infos.forget()

    @th.no_grad()
    def _read_values(self) -> th.Tensor:
        self.read_values[self._step] = values = self._policy.predict_values(self.obs_tensor.read())
        return values

    @th.no_grad()
    def _read_log_probs(self) -> th.Tensor:
        distribution = self._policy.get_distribution(self.obs_tensor.read())
        self.read_log_probs[self._step] = log_probs = distribution.log_prob(self._actions)
        return log_probs
