"""
Collection of rollouts: what SB3's ``collect_rollouts`` does, in a fraction of the time.

For small policies SB3 spends more time around each step than in the simulation: distribution objects, values and
log-probabilities of one state at a time, deep copies. Here only the actor is evaluated at each step; values,
log-probabilities and the values that truncated episodes are bootstrapped with are computed for the whole rollout at
once. Actions and random numbers are SB3's bit for bit, and so are observations, rewards and episodes; values and
log-probabilities agree to rounding, for a matrix product of many rows may sum in another order than one of few.

Policies, buffers and options that this does not cover are left to SB3's own loop. A callback that is not one of SB3's
or RL Zoo's might read each step's tensors (``obs_tensor``, ``values``, ``log_probs``): they are then computed at each
step, unless the callback has the attribute ``reads_values = False``.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.callbacks.tree import leaves
from sb3_trpo.networks.mlp import PlainMlp
from sb3_trpo.networks.plain_policy import extract_features, plain_actor, plain_critic
from sb3_trpo.rollouts.advantages import compute_returns_and_advantage
from sb3_trpo.rollouts.noise import CorrelatedNoise, explored_with, noise_of_rollout
from sb3_trpo.rollouts.steps import Step, check_finite, last_observation, watched_steps

# Observations evaluated at a time: hidden layers of a long rollout would take more memory than the rollout itself.
MAX_ROWS = 8192

Sampler = Callable[[th.Tensor], th.Tensor]


def collect(
    algorithm: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> bool:
    """
    :param algorithm: whose policy acts
    :param env: the training environments
    :param callback: called at each step, and at the beginning and end of the rollout
    :param rollout_buffer: to be filled
    :param n_rollout_steps: steps of each environment
    :return: whether the rollout is complete, rather than ended by the callback
    :raises ValueError: if an observation or reward is not finite
    """
    assert algorithm._last_obs is not None, "No previous observation was provided"
    _check_first_observations(algorithm)
    is_lean = _is_lean(algorithm, rollout_buffer, n_rollout_steps)
    reads_values = any(map(_reads_values, leaves(callback)))
    noise = noise_of_rollout(algorithm, env.num_envs)
    with watched_steps(env, lambda: algorithm.num_timesteps + env.num_envs, not is_lean or reads_values) as step:
        if is_lean:
            fill = _Rollout(
                algorithm, env, callback, rollout_buffer, n_rollout_steps, step, reads_values, noise
            ).collect
        else:
            watched: Any = _WatchedCallback(callback, algorithm)
            sb3s_loop = OnPolicyAlgorithm.collect_rollouts
            fill = functools.partial(sb3s_loop, algorithm, env, watched, rollout_buffer, n_rollout_steps)
        with explored_with(noise, algorithm):
            return fill()


def _check_first_observations(algorithm: OnPolicyAlgorithm) -> None:
    """
    :param algorithm: about to collect a rollout
    :raises ValueError: if an observation that it starts with is not finite
    """
    normalization = algorithm.get_vec_normalize_env()
    if normalization is not None:
        # The normalised ones are all bad if one of these is.
        check_finite(getattr(normalization, "old_obs", {}), None, algorithm.num_timesteps)
    check_finite(algorithm._last_obs, None, algorithm.num_timesteps)


def _is_lean(algorithm: OnPolicyAlgorithm, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
    policy = algorithm.policy
    return (
        isinstance(algorithm.observation_space, spaces.Box)
        and type(rollout_buffer) is RolloutBuffer
        and n_rollout_steps == rollout_buffer.buffer_size
        and type(policy).forward is ActorCriticPolicy.forward
        and type(policy.action_dist) in _SAMPLERS
        and plain_actor(policy) is not None
        and plain_critic(policy) is not None
    )


class _WatchedCallback:
    """
    A callback that is not told of a step before it has been checked.

    :param callback: to be called
    :param algorithm: that collects the rollout
    """

    def __init__(self, callback: BaseCallback, algorithm: OnPolicyAlgorithm) -> None:
        self.callback = callback
        self.algorithm = algorithm
        self.on_rollout_start, self.on_rollout_end = callback.on_rollout_start, callback.on_rollout_end
        self.on_step = callback.on_step

    def update_locals(self, local_variables: dict[str, Any]) -> None:
        check_finite(local_variables["new_obs"], local_variables["rewards"], self.algorithm.num_timesteps)
        self.callback.update_locals({**local_variables, "callback": self.callback})


class _Rollout:
    """
    One rollout of a plain policy.

    :param algorithm: whose policy acts
    :param env: the training environments
    :param callback: called at each step, and at the beginning and end of the rollout
    :param rollout_buffer: to be filled
    :param n_rollout_steps: steps of each environment
    :param step: does the work of ``env.step``
    :param reads_values: whether the callback may read each step's tensors
    :param noise: of Gaussian actions; None for independent noise
    """

    def __init__(
        self,
        algorithm: OnPolicyAlgorithm,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        step: Step,
        reads_values: bool,
        noise: CorrelatedNoise | None,
    ) -> None:
        self.algorithm = algorithm
        self.policy = algorithm.policy
        self.env = env
        self.callback = callback
        self.buffer = rollout_buffer
        self.n_rollout_steps = n_rollout_steps
        actor, critic = plain_actor(self.policy), plain_critic(self.policy)
        assert actor is not None
        assert critic is not None
        self.actor: PlainMlp = actor
        self.critic: PlainMlp = critic
        self.step = step
        self.reads_values = reads_values
        self.sample = _SAMPLERS[type(self.policy.action_dist)](self.policy, env.num_envs, noise)
        # Where SB3's preprocessing and a FlattenExtractor come to a conversion, it is made in place.
        self.obs_are_features = (
            self.policy.device.type == "cpu"
            and type(self.policy.pi_features_extractor) is FlattenExtractor
            and not is_image_space(algorithm.observation_space, check_channels=False)
        )
        self.features_array = np.empty((env.num_envs, self.policy.features_dim), dtype=np.float32)
        self.features = th.from_numpy(self.features_array)
        # The actor's outputs and the actions at each step, for the log-probabilities.
        self.outputs: list[th.Tensor] = []
        self.actions: list[th.Tensor] = []
        # Step, environment and last observation of truncated episodes.
        self.truncations: list[tuple[int, int, np.ndarray]] = []

    @th.no_grad()
    def collect(self) -> bool:
        """
        :return: whether the rollout is complete
        """
        algorithm, buffer, callback, env = self.algorithm, self.buffer, self.callback, self.env
        self.policy.set_training_mode(False)
        buffer.reset()
        callback.on_rollout_start()
        act = self._act_as_sb3 if self.reads_values else self._act
        to_env = _action_converter(algorithm.action_space)
        # Without wrappers, what comes back has been checked where it came in.
        is_wrapped = env is not env.unwrapped
        scope = {
            "self": algorithm,
            "env": env,
            "callback": callback,
            "rollout_buffer": buffer,
            "n_rollout_steps": self.n_rollout_steps,
        }
        obs: Any = algorithm._last_obs
        for n_steps in range(self.n_rollout_steps):
            actions, step_tensors = act(n_steps, obs)
            clipped_actions = to_env(actions)
            new_obs, rewards, dones, infos = self.step(clipped_actions)
            algorithm.num_timesteps += env.num_envs
            if is_wrapped:
                check_finite(new_obs, rewards, algorithm.num_timesteps)

            scope.update(
                step_tensors,
                n_steps=n_steps,
                actions=actions,
                clipped_actions=clipped_actions,
                new_obs=new_obs,
                rewards=rewards,
                dones=dones,
                infos=infos,
            )
            callback.update_locals(scope)
            if not callback.on_step():
                self._fill_in(n_steps)
                return False
            algorithm._update_info_buffer(infos, dones)

            buffer.observations[n_steps] = obs
            buffer.actions[n_steps] = actions.reshape(env.num_envs, buffer.action_dim)
            buffer.rewards[n_steps] = rewards
            buffer.episode_starts[n_steps] = algorithm._last_episode_starts
            if np.count_nonzero(dones):
                self._note_truncations(n_steps, dones, infos)
            obs = new_obs
            algorithm._last_obs = obs
            algorithm._last_episode_starts = dones

        self._fill_in(self.n_rollout_steps)
        values = self.policy.predict_values(th.as_tensor(new_obs, device=algorithm.device))
        compute_returns_and_advantage(buffer, values, dones)
        if isinstance(algorithm.action_space, spaces.Discrete):
            actions = actions.reshape(-1, 1)
        scope.update(values=values, n_steps=self.n_rollout_steps, actions=actions, rewards=buffer.rewards[-1])
        callback.update_locals(scope)
        callback.on_rollout_end()
        return True

    def _act(self, _: int, obs: np.ndarray) -> tuple[np.ndarray, dict[str, th.Tensor]]:
        """
        :param obs: observations, (n_envs, ...)
        :return: actions, (n_envs, ...), and nothing else
        """
        if self.obs_are_features:
            self.features_array[:] = obs.reshape(self.features_array.shape)
            features = self.features
        else:
            features = self._features(obs, self.policy.pi_features_extractor)
        outputs = self.actor.forward(features)
        actions = self.sample(outputs)
        self.outputs.append(outputs)
        self.actions.append(actions)
        return actions.cpu().numpy(), {}

    def _act_as_sb3(self, step: int, obs: np.ndarray) -> tuple[np.ndarray, dict[str, th.Tensor]]:
        """
        :param step: number of the step
        :param obs: observations, (n_envs, ...)
        :return: actions, and each step's tensors by their names in SB3's loop
        """
        obs_tensor = th.as_tensor(obs, device=self.algorithm.device)
        actions, values, log_probs = self.policy(obs_tensor)
        self.buffer.values[step] = values.cpu().numpy().flatten()
        self.buffer.log_probs[step] = log_probs.cpu().numpy()
        return actions.cpu().numpy(), {"obs_tensor": obs_tensor, "values": values, "log_probs": log_probs}

    def _features(self, obs: np.ndarray, extractor: th.nn.Module) -> th.Tensor:
        return extract_features(self.policy, th.as_tensor(obs, device=self.algorithm.device), extractor)

    def _note_truncations(self, step: int, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        for i in dones.nonzero()[0]:
            obs = last_observation(infos[i])
            if obs is not None:
                # The environment may go on to use its array.
                self.truncations.append((step, int(i), np.array(obs)))

    def _fill_in(self, n_steps: int) -> None:
        """
        Compute what was left out during the steps.

        :param n_steps: steps in the buffer
        """
        buffer = self.buffer
        buffer.pos = n_steps
        buffer.full = n_steps == buffer.buffer_size
        if n_steps == 0:
            return
        if not self.reads_values:
            obs = buffer.observations[:n_steps].reshape(n_steps * buffer.n_envs, *buffer.obs_shape)
            log_probs = self._log_probs(th.cat(self.outputs[:n_steps]), th.cat(self.actions[:n_steps]))
            buffer.values[:n_steps] = self._values(obs).reshape(n_steps, -1)
            buffer.log_probs[:n_steps] = log_probs.cpu().numpy().reshape(n_steps, -1)
        if self.truncations:
            steps, envs, terminal_obs = zip(*self.truncations, strict=True)
            # The rest of a truncated episode's return is what the critic expects of it (SB3 issue #633).
            buffer.rewards[steps, envs] += self.algorithm.gamma * self._values(np.stack(terminal_obs))

    def _values(self, obs: np.ndarray) -> np.ndarray:
        """
        :param obs: (N, ...)
        :return: (N,)
        """
        extractor = self.policy.vf_features_extractor
        parts = (obs[start : start + MAX_ROWS] for start in range(0, len(obs), MAX_ROWS))
        return th.cat([self.critic.forward(self._features(part, extractor)) for part in parts]).flatten().cpu().numpy()

    def _log_probs(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param outputs: of the actor's network, (N, ·)
        :param actions: as sampled
        :return: (N,)
        """
        distribution = self.policy.action_dist
        if isinstance(distribution, DiagGaussianDistribution):
            return distribution.proba_distribution(outputs, self.policy.log_std).log_prob(actions)
        return distribution.proba_distribution(outputs).log_prob(actions)


def _gaussian(policy: ActorCriticPolicy, n_envs: int, noise: CorrelatedNoise | None) -> Sampler:
    std = policy.log_std.detach().exp().expand(n_envs, -1)
    if noise is not None:
        return lambda mean: mean + noise() * std
    fresh = th.empty_like(std, memory_format=th.contiguous_format)
    # What torch's Normal.rsample does.
    return lambda mean: mean + fresh.normal_() * std


def _categorical(*_: Any) -> Sampler:
    return _sample_category


def _sample_category(logits: th.Tensor) -> th.Tensor:
    # What torch's Categorical does: its logits are normalised first.
    probs = (logits - logits.logsumexp(dim=-1, keepdim=True)).softmax(dim=-1)
    return th.multinomial(probs, 1, replacement=True).flatten()


def _multi_categorical(policy: ActorCriticPolicy, *_: Any) -> Sampler:
    sizes = policy.action_dist.action_dims  # type: ignore[attr-defined]
    return lambda logits: th.stack([_sample_category(part) for part in logits.split(list(sizes), dim=1)], dim=1)


def _bernoulli(*_: Any) -> Sampler:
    return lambda logits: th.bernoulli(logits.sigmoid())


_SAMPLERS: dict[type, Callable[[ActorCriticPolicy, int, CorrelatedNoise | None], Sampler]] = {
    DiagGaussianDistribution: _gaussian,
    CategoricalDistribution: _categorical,
    MultiCategoricalDistribution: _multi_categorical,
    BernoulliDistribution: _bernoulli,
}


def _action_converter(action_space: spaces.Space) -> Callable[[np.ndarray], np.ndarray]:
    """
    :param action_space: the algorithm's
    :return: what is done to actions before the environment gets them
    """
    shape = (-1, *(action_space.shape or ()))
    if not isinstance(action_space, spaces.Box):
        return lambda actions: actions.reshape(shape)
    low, high = action_space.low, action_space.high

    def clip(actions: np.ndarray) -> np.ndarray:
        clipped = np.maximum(actions.reshape(shape), low)
        return np.minimum(clipped, high, out=clipped)

    return clip


def _reads_values(callback: BaseCallback) -> bool:
    if isinstance(callback, ConvertCallback):
        return callback.callback is not None
    if type(callback).__module__ in (BaseCallback.__module__, "rl_zoo3.callbacks"):
        return False
    return bool(getattr(callback, "reads_values", True))
