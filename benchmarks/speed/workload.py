"""
The work that is handed to every algorithm alike: a policy in the course of training, and the rollout that it collected.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_trpo
from speed.measure import Contender

TASK = "HalfCheetah-v5"
ARRAYS = ("observations", "actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")
EVALUATION_CHUNK = 4096


@dataclass(frozen=True)
class Setting:
    """
    What a workload is made of.

    :param hyperparameters: of every TRPO, ours and the peers'
    :param n_envs: environments
    :param normalize: whether they are wrapped in ``VecNormalize``
    :param policy: its alias
    :param make_env: makes one environment; None is ``TASK``
    :param make_batch: makes all of them, in a ``VecEnv`` of its own, of their number and a seed; None is SB3's
    :param device: of torch
    """

    hyperparameters: dict[str, Any] = field(default_factory=dict)
    n_envs: int = 1
    normalize: bool = False
    policy: str = "MlpPolicy"
    make_env: Callable[[], Any] | None = None
    make_batch: Callable[[int, int], VecEnv] | None = None
    device: str = "cpu"

    def make_envs(self, seed: int = 0) -> VecEnv:
        if self.make_batch is not None:
            env = self.make_batch(self.n_envs, seed)
        else:
            env = make_vec_env(self.make_env or TASK, n_envs=self.n_envs, seed=seed)
        return VecNormalize(env) if self.normalize else env

    def make_model(self, algorithm: type[OnPolicyAlgorithm], env: VecEnv, **changes: Any) -> OnPolicyAlgorithm:
        """
        Make a model of the setting.

        :param algorithm: its class
        :param env: from ``make_envs``
        :param changes: of the hyperparameters
        :return: a model that logs to nowhere
        """
        model = algorithm(self.policy, env, **{**self.hyperparameters, **changes}, seed=0, device=self.device)
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model


@dataclass(frozen=True)
class Workload:
    """
    The same work for all contenders: a policy in the middle of training, and a rollout.

    :param setting: what it was made with
    :param env: its environments
    :param policy_state: parameters and buffers of the policy
    :param optimizer_state: of the critic's optimizer
    :param rollout: arrays by their names in the rollout buffer, each (n_steps, n_envs, ...)
    """

    setting: Setting
    env: VecEnv
    policy_state: dict[str, th.Tensor]
    optimizer_state: dict[str, Any]
    rollout: dict[str, np.ndarray]

    @property
    def n_samples(self) -> int:
        return self.rollout["returns"].size

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self.rollout.values())

    def update(self, algorithm: type[OnPolicyAlgorithm], **changes: Any) -> "Update":
        """
        Make an algorithm's update on this workload.

        :param algorithm: its class
        :param changes: of the hyperparameters
        :return: the algorithm's update from this policy on this rollout
        """
        return Update(self.setting.make_model(algorithm, self.env, **changes), self)


class Update:
    """
    ``model.train()`` from the same state each time.

    :param model: whose
    :param workload: policy and rollout
    """

    def __init__(self, model: OnPolicyAlgorithm, workload: Workload) -> None:
        self.model = model
        self._workload = workload
        self.n_bytes = workload.n_bytes
        # Mean squared error of the critic over the rollout, after each update.
        self.critic_losses: list[float] = []

    @property
    def contender(self) -> Contender:
        return Contender(lambda: self.model.train(), self.prepare, self._note_critic_loss)

    def prepare(self) -> None:
        model, buffer = self.model, self.model.rollout_buffer
        model.policy.load_state_dict(self._workload.policy_state)
        # Loaded as they are, the moments would be those of the workload, and every step would move them.
        model.policy.optimizer.load_state_dict(copy.deepcopy(self._workload.optimizer_state))
        buffer.reset()
        for name, array in self._workload.rollout.items():
            getattr(buffer, name)[:] = array
        buffer.pos, buffer.full = buffer.buffer_size, True

    def release(self) -> None:
        """
        Forget the rollout, whose copy in the model's buffer is then the only one; there is no other ``prepare`` then.
        """
        self._workload.rollout.clear()

    def _note_critic_loss(self) -> None:
        self.critic_losses.append(self.critic_loss())

    @th.no_grad()
    def critic_loss(self) -> float:
        """Return the mean squared error of the critic over the rollout."""
        rollout = self._workload.rollout
        observations = rollout["observations"].reshape(-1, *self.model.observation_space.shape)  # type: ignore[misc]
        returns = rollout["returns"].reshape(-1)
        self.model.policy.set_training_mode(False)
        total = 0.0
        for start in range(0, len(returns), EVALUATION_CHUNK):
            part = slice(start, start + EVALUATION_CHUNK)
            states = th.as_tensor(observations[part], device=self.model.device)
            values = self.model.policy.predict_values(states).flatten().cpu().numpy()
            total += float(np.square(values - returns[part]).sum())
        return total / len(returns)


def make_workload(setting: Setting, n_updates: int) -> Workload:
    """
    Train a little, and keep the policy and its next rollout.

    :param setting: of the work
    :param n_updates: how many updates the policy has seen
    :return: the policy after them, and its next rollout
    """
    env = setting.make_envs()
    model = setting.make_model(sb3_trpo.TRPO, env)
    if n_updates > 0:
        model.learn(n_updates * model.n_steps * setting.n_envs)
    _, callback = model._setup_learn(1, None, reset_num_timesteps=n_updates == 0)
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    rollout = {name: getattr(model.rollout_buffer, name).copy() for name in ARRAYS}
    policy_state = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    return Workload(setting, env, policy_state, copy.deepcopy(model.policy.optimizer.state_dict()), rollout)


def resized(workload: Workload, n_steps: int, noise: float = 0.0) -> Workload:
    """
    Make a rollout of another size.

    :param workload: of one environment
    :param n_steps: any number
    :param noise: standard deviation of what is added to the observations, so that no two of them are the same
    :return: the same policy with so many samples, the rollout's again and again
    """
    rollout = {name: np.resize(array, (n_steps, *array.shape[1:])) for name, array in workload.rollout.items()}
    if noise > 0:
        observations = rollout["observations"]
        normal = np.random.default_rng(0).normal(size=observations.shape)
        observations += noise * np.asarray(normal, observations.dtype)
    setting = workload.setting
    larger = replace(setting, hyperparameters={**setting.hyperparameters, "n_steps": n_steps})
    return replace(workload, setting=larger, rollout=rollout)
