"""
The fast path: what SB3's ``collect_rollouts`` does, in a fraction of the time.

For small policies SB3 spends more time around each step than in the simulation: on distribution objects, on values and
log-probabilities of one state at a time, on deep copies. Here only the actor is evaluated at each step. Values and
log-probabilities, also the values that truncated episodes are bootstrapped with, are computed for the whole rollout at
once. Actions and random numbers are SB3's bit for bit, and so are observations, rewards and episodes. Values and
log-probabilities agree to rounding, for a matrix product of many rows may sum in another order than one of few.

A callback that reads a step's tensors (``obs_tensor``, ``values``, ``log_probs``) or infos gets them: they are computed
when they are read (``sb3_trpo.rollouts.shown_locals``).
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.networks.mlp import PlainMlp
from sb3_trpo.networks.plain_policy import extract_features, plain_actor, plain_critic, why_not_plain
from sb3_trpo.networks.untouched import is_untouched
from sb3_trpo.rollouts.advantages import compute_returns_and_advantage
from sb3_trpo.rollouts.checks import Observations, count_states, last_observation
from sb3_trpo.rollouts.guard import StepGuard
from sb3_trpo.rollouts.noise import CorrelatedNoise
from sb3_trpo.rollouts.samplers import SAMPLERS, make_sampler
from sb3_trpo.rollouts.shown_locals import ShowingCallback, ShownLocals
from sb3_trpo.rollouts.step_on_demand import StepOnDemand

# Observations evaluated at a time: hidden layers of a long rollout would take more memory than the rollout itself.
MAX_ROWS = 8192


def why_not_fast(algorithm: OnPolicyAlgorithm, buffer: RolloutBuffer, n_rollout_steps: int) -> str:
    """
    Say why a rollout has to be collected by SB3's own loop.

    :param algorithm: the algorithm that collects it
    :param buffer: the buffer to fill
    :param n_rollout_steps: the number of steps of each environment
    :return: the reason, as the end of a sentence; empty if the fast path does the same
    """
    policy = algorithm.policy
    if not is_untouched(buffer, RolloutBuffer, DictRolloutBuffer):
        return (
            f"the rollout buffer is of a class of its own or has a method that was replaced ({type(buffer).__name__})"
        )
    if n_rollout_steps != buffer.buffer_size:
        return f"the rollout has {n_rollout_steps} steps, but the buffer has room for {buffer.buffer_size}"
    if type(policy.action_dist) not in SAMPLERS:
        return f"actions come from a {type(policy.action_dist).__name__}"
    return why_not_plain(policy)


class FastRollout:
    """
    One rollout of a plain policy.

    :param algorithm: the algorithm whose policy acts
    :param guard: the environments
    :param callback: the callback, called at each step, and at the beginning and end of the rollout
    :param buffer: the buffer to fill
    :param noise: the noise of Gaussian actions; None for independent noise
    """

    def __init__(
        self,
        algorithm: OnPolicyAlgorithm,
        guard: StepGuard,
        callback: BaseCallback,
        buffer: RolloutBuffer,
        noise: CorrelatedNoise | None,
    ) -> None:
        self.algorithm = algorithm
        self.policy = algorithm.policy
        self.guard = guard
        self.callback = callback
        self.buffer = buffer
        actor, critic = plain_actor(self.policy), plain_critic(self.policy)
        assert actor is not None
        assert critic is not None
        self.actor: PlainMlp = actor
        self.critic: PlainMlp = critic
        self.n_envs = guard.num_envs
        self.sample = make_sampler(self.policy, self.n_envs, noise)
        # Where SB3's preprocessing and a FlattenExtractor are nothing but a conversion, it is made in place.
        space = algorithm.observation_space
        self.obs_are_features = (
            isinstance(space, spaces.Box)
            and self.policy.device.type == "cpu"
            and type(self.policy.pi_features_extractor) is FlattenExtractor
            and not is_image_space(space, check_channels=False)
        )
        self.features_array = np.empty((self.n_envs, self.policy.features_dim), dtype=np.float32)
        self.features = th.from_numpy(self.features_array)
        # The actor's outputs and the actions at each step, for the log-probabilities.
        self.outputs: list[th.Tensor] = []
        # What entered the network's last layer, where the noise depends on it (gSDE).
        self.latents: list[th.Tensor] = []
        self.is_noise_of_state = isinstance(self.policy.action_dist, StateDependentNoiseDistribution)
        self.actions: list[th.Tensor] = []
        # Step, environment and last observation of truncated episodes.
        self.truncations: list[tuple[int, int, Observations]] = []
        self.on_demand = StepOnDemand(self.policy)
        self.action_shape = (self.n_envs, *(algorithm.action_space.shape or ()))

    def collect(self) -> bool:
        """
        Collect the rollout.

        Only the policy works without gradients: environments and callbacks may compute some of their own.

        :return: whether it is complete, rather than ended by the callback
        """
        algorithm, buffer, callback, guard = self.algorithm, self.buffer, self.callback, self.guard
        self.policy.set_training_mode(False)
        buffer.reset()
        if algorithm.use_sde:
            self._reset_noise()
        callback.on_rollout_start()
        to_env = _make_action_converter(algorithm.action_space, self.policy)
        scope, on_demand = self._scope(), self.on_demand
        constants = self._constants()
        obs: Observations = algorithm._last_obs
        dones = np.zeros(self.n_envs, dtype=bool)
        for n_steps in range(buffer.buffer_size):
            if algorithm.use_sde and algorithm.sde_sample_freq > 0 and n_steps % algorithm.sde_sample_freq == 0:
                self._reset_noise()
            actions = self._act(obs)
            clipped_actions = to_env(actions)
            new_obs, rewards, dones, infos = guard.step(clipped_actions)
            algorithm.num_timesteps += self.n_envs

            on_demand.begin_step(n_steps, obs, self.actions[-1], infos)
            # All of them at each step, whatever a callback has made of the dictionary.
            scope.show(
                **constants,
                obs_tensor=on_demand.obs_tensor,
                values=on_demand.values,
                log_probs=on_demand.log_probs,
                n_steps=n_steps,
                actions=actions,
                clipped_actions=clipped_actions,
                new_obs=new_obs,
                rewards=rewards,
                dones=dones,
                infos=on_demand.infos if guard.shares_infos else infos,
            )
            callback.update_locals(scope)
            if not callback.on_step():
                self._fill_in(n_steps)
                return False
            if on_demand.infos.is_read:
                # A callback may have written into them.
                infos = on_demand.infos.read()
            algorithm._update_info_buffer(infos, dones)

            self._store(n_steps, obs, actions, rewards)
            if np.count_nonzero(dones):
                self._note_truncations(n_steps, dones, infos)
            # SB3's type of the attribute lacks the tuples that environments may give by their type.
            obs = algorithm._last_obs = new_obs  # type: ignore[assignment]
            algorithm._last_episode_starts = dones

        self._finish(scope, obs, dones, actions)
        return True

    @th.no_grad()
    def _reset_noise(self) -> None:
        self.policy.reset_noise(self.n_envs)

    def _scope(self) -> ShownLocals:
        """Return the dictionary in which callbacks find the local variables."""
        known = self.callback.locals
        scope = known if isinstance(known, ShownLocals) else ShownLocals()
        scope.update(self._constants())
        return scope

    def _constants(self) -> dict[str, Any]:
        """Return the local variables that stay as they are."""
        callback = self.callback
        return {
            "self": self.algorithm,
            "env": self.guard.venv,
            "callback": callback.callbacks[0] if isinstance(callback, ShowingCallback) else callback,
            "rollout_buffer": self.buffer,
            "n_rollout_steps": self.buffer.buffer_size,
        }

    @th.no_grad()
    def _act(self, obs: Observations) -> np.ndarray:
        """
        Sample actions, and keep them with the network's outputs.

        :param obs: the observations, (n_envs, ...)
        :return: the actions, (n_envs, ...)
        """
        if self.obs_are_features:
            self.features_array[:] = obs.reshape(self.features_array.shape)
            features = self.features
        else:
            features = self._extract(obs, self.policy.pi_features_extractor)
        latent = self.actor.latent(features)
        outputs = self.actor.outputs(latent)
        try:
            actions = self.sample(outputs, latent)
        except (RuntimeError, ValueError):
            finite = outputs.isfinite().all(dim=1)
            if not bool(finite.all()):
                self.guard.refuse_actions(int(finite.int().argmin()))
            raise
        self.outputs.append(outputs)
        if self.is_noise_of_state:
            # Without hidden layers the latent is the features, whose place is used again at the next step.
            self.latents.append(latent.clone() if latent is features else latent)
        self.actions.append(actions)
        return actions.cpu().numpy().reshape(self.action_shape)

    def _store(self, step: int, obs: Observations, actions: np.ndarray, rewards: np.ndarray) -> None:
        buffer = self.buffer
        if isinstance(obs, dict):
            for key, part in obs.items():
                # As DictRolloutBuffer.add has it, for observations of a Discrete.
                buffer.observations[key][step] = part.reshape(buffer.observations[key][step].shape)
        else:
            rows = buffer.observations
            rows[step] = obs if obs.shape == rows.shape[1:] else obs.reshape(rows.shape[1:])
        buffer.actions[step] = actions.reshape(self.n_envs, buffer.action_dim)
        buffer.rewards[step] = rewards
        buffer.episode_starts[step] = self.algorithm._last_episode_starts
        buffer.pos = step + 1

    def _note_truncations(self, step: int, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        for i in dones.nonzero()[0]:
            obs = last_observation(infos[i])
            if obs is not None:
                self.truncations.append((step, int(i), copy.deepcopy(obs)))

    def _finish(self, scope: ShownLocals, last_obs: Observations, dones: np.ndarray, actions: np.ndarray) -> None:
        """
        Compute what was left out, returns and advantages, and show callbacks the end.

        :param scope: the local variables that callbacks see
        :param last_obs: the observations after the last step, (n_envs, ...)
        :param dones: whether the last step ended episodes, (n_envs,)
        :param actions: the actions of the last step, (n_envs, ...)
        """
        # What a callback reads later belongs to this policy.
        log_probs, obs_tensor = self.on_demand.log_probs.read(), self.on_demand.obs_tensor.read()
        buffer, callback = self.buffer, self.callback
        self._fill_in(buffer.buffer_size)
        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(last_obs, self.algorithm.device))
        compute_returns_and_advantage(buffer, values, dones)
        if isinstance(self.algorithm.action_space, spaces.Discrete):
            actions = actions.reshape(-1, 1)
        scope.update(
            **self._constants(),
            obs_tensor=obs_tensor,
            values=values,
            log_probs=log_probs,
            n_steps=buffer.buffer_size,
            actions=actions,
            rewards=buffer.rewards[-1],
        )
        callback.update_locals(scope)
        callback.on_rollout_end()

    @th.no_grad()
    def _fill_in(self, n_steps: int) -> None:
        """
        Compute what was left out during the steps.

        :param n_steps: the number of steps in the buffer
        """
        buffer = self.buffer
        buffer.pos = n_steps
        buffer.full = n_steps == buffer.buffer_size
        if n_steps == 0:
            return
        log_probs = self._log_probs(n_steps)
        buffer.values[:n_steps] = self._values(_rows(buffer.observations, n_steps)).reshape(n_steps, -1)
        buffer.log_probs[:n_steps] = log_probs.cpu().numpy().reshape(n_steps, -1)
        for rows, read in (
            (buffer.values, self.on_demand.read_values),
            (buffer.log_probs, self.on_demand.read_log_probs),
        ):
            for step, tensor in read.items():
                rows[step] = tensor.cpu().numpy().flatten()
        if self.truncations:
            steps, envs, terminal_obs = zip(*self.truncations, strict=True)
            # The rest of a truncated episode's return is what the critic expects of it (SB3 issue #633).
            buffer.rewards[steps, envs] += self.algorithm.gamma * self._values(_batch(terminal_obs))

    def _values(self, obs: Observations) -> np.ndarray:
        """
        Evaluate the critic, at most ``MAX_ROWS`` states at a time.

        :param obs: the observations of N states
        :return: the values, (N,)
        """
        extractor = self.policy.vf_features_extractor
        n = count_states(obs)
        values = []
        for start in range(0, n, MAX_ROWS):
            rows = slice(start, start + MAX_ROWS)
            part = {key: array[rows] for key, array in obs.items()} if isinstance(obs, dict) else obs[rows]
            values.append(self.critic.forward(self._extract(part, extractor)))
        return th.cat(values).flatten().cpu().numpy()

    def _extract(self, obs: Observations, extractor: BaseFeaturesExtractor) -> th.Tensor:
        return extract_features(self.policy, obs_as_tensor(obs, self.algorithm.device), extractor)

    def _log_probs(self, n_steps: int) -> th.Tensor:
        """
        Compute ln π(a|s).

        :param n_steps: the number of steps in the buffer
        :return: the logarithms, (n_steps · n_envs,)
        """
        distribution, outputs = self.policy.action_dist, th.cat(self.outputs[:n_steps])
        if isinstance(distribution, StateDependentNoiseDistribution):
            latents = th.cat(self.latents[:n_steps])
            distribution = distribution.proba_distribution(outputs, self.policy.log_std, latents)
        elif isinstance(distribution, DiagGaussianDistribution):
            distribution = distribution.proba_distribution(outputs, self.policy.log_std)
        else:
            distribution = distribution.proba_distribution(outputs)
        return distribution.log_prob(th.cat(self.actions[:n_steps]))


def _rows(observations: Observations, n_steps: int) -> Observations:
    """
    Put the steps and environments of a buffer's observations into rows.

    :param observations: arrays of shape (buffer size, n_envs, ...)
    :param n_steps: the number of steps to take
    :return: arrays of shape (n_steps · n_envs, ...)
    """
    if isinstance(observations, dict):
        return {key: _rows(part, n_steps) for key, part in observations.items()}
    return observations[:n_steps].reshape(-1, *observations.shape[2:])


def _batch(observations: tuple[Observations, ...]) -> Observations:
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


def _make_action_converter(
    action_space: spaces.Space[Any], policy: ActorCriticPolicy
) -> Callable[[np.ndarray], np.ndarray]:
    """
    Make the function that turns actions as sampled into actions for the environments.

    :param action_space: the algorithm's action space
    :param policy: the policy that acts
    :return: the function, of arrays of shape (n_envs, ...)
    """
    shape = (-1, *(action_space.shape or ()))
    if not isinstance(action_space, spaces.Box):
        return lambda actions: actions.reshape(shape)
    if policy.squash_output:
        return lambda actions: policy.unscale_action(actions.reshape(shape))
    low, high = action_space.low, action_space.high

    def clip(actions: np.ndarray) -> np.ndarray:
        clipped: np.ndarray = np.maximum(actions.reshape(shape), low)
        np.minimum(clipped, high, out=clipped)
        return clipped

    return clip
