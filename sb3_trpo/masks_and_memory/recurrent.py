"""
TRPO with memory: what ``RecurrentPPO`` of sb3-contrib is to PPO.

The policy's action depends on all that its LSTM has seen in the episode. F and the surrogate are those of whole
sequences: gradients and curvature go through time, from a sequence's first step to its last.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extension_points import BufferClasses
from sb3_trpo.networks.plain_policy import extract_features
from sb3_trpo.rollouts.checks import count_states
from sb3_trpo.saved_models.objects import allow_in_files
from sb3_trpo.trpo import TRPO
from sb3_trpo.trust_region.graph_linearization import use_twice_differentiable_kernels
from sb3_trpo.update.samples import chunk_size
from sb3_trpo.update.sequences import (
    SequenceSamples,
    every_sequence,
    run_lstm,
    sequence_chunks,
    shuffle_sequences,
)
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError, short

try:
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    from sb3_trpo.masks_and_memory.lstm_policies import CnnLstmPolicy, LstmPolicy, MultiInputLstmPolicy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"RecurrentTRPO needs sb3-contrib ({error}): install it with {how_to_install('contrib')}.",
        name=error.name,
    ) from error


class SharedLstmError(UserError, AssertionError):
    """An LSTM that is to be shared and the critic's own at once: sb3-contrib raises an AssertionError."""


class RecurrentTRPO(TRPO):
    """
    Trust region policy optimization with an LSTM in the policy.

    The arguments are those of TRPO, the interface is that of sb3-contrib's ``RecurrentPPO``: ``predict`` takes and
    gives ``state``, and starts anew where ``episode_start`` says so. Chunks (``fisher_chunk_size``), the thinned Fisher
    product (``sub_sampling_factor``) and the critic's minibatches take whole sequences.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": LstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }
    rollout_buffer_classes: ClassVar[BufferClasses] = (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer)
    log_name: ClassVar[str] = "RecurrentTRPO"
    # What the LSTMs remember, before the next step of the training environments.
    _last_lstm_states: RNNStates | None = None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions, as ``RecurrentPPO.predict`` does.

        :param observation: the observations, one or several
        :param state: the LSTMs' state, from the last call; None is 0
        :param episode_start: whether episodes begin
        :param deterministic: whether to take the most probable action
        :return: the actions, and the state for the next call
        :raises UserError: if state or episode starts are not those of so many observations
        """
        if state is not None or episode_start is not None:
            self._check_memory(observation, state, episode_start)
        return super().predict(observation, state, episode_start, deterministic)

    def _check_memory(self, observation: np.ndarray | dict[str, np.ndarray], state: Any, starts: Any) -> None:
        """
        Check what ``predict`` is given beside observations.

        :param observation: the observations
        :param state: the LSTMs' state
        :param starts: whether episodes begin
        :raises UserError: if they are not those of so many observations
        """
        obs, _ = self.policy.obs_to_tensor(observation)
        n = count_states(obs)
        layers, _, hidden_units = self._recurrent_policy.lstm_hidden_state_shape
        shapes = [np.shape(part) for part in state] if isinstance(state, (tuple, list)) else None
        if state is not None and (shapes is None or shapes != 2 * [(layers, n, hidden_units)]):
            what = type(state).__name__ if shapes is None else f"a {type(state).__name__} of shapes {shapes}"
            raise UserError(
                f"state is {what}, but must be what predict() gave last, two arrays of shape (layers, "
                f"observations, units) = {(layers, n, hidden_units)}, or None where episodes begin."
            )
        if state is not None and not all(map(_is_finite, state)):
            raise UserError("state has numbers that are not finite, but must be what predict() gave last.")
        if starts is not None and np.size(starts) != n:
            raise UserError(f"episode_start has {np.size(starts)} values, but must have {n}: one per observation.")
        if starts is not None and not np.isin(starts, (0, 1)).all():
            raise UserError(f"episode_start is {short(starts)}, but must be true or false for each observation.")

    def get_checkpoint_state(self) -> dict[str, Any]:
        """
        Give what TRPO gives, and what the LSTMs remember.

        :return: the state, by name
        """
        states = self._last_lstm_states
        return {**super().get_checkpoint_state(), "lstm_states": None if states is None else states._asdict()}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state.

        :param state: the state, from ``get_checkpoint_state``
        """
        super().set_checkpoint_state(state)
        assert self._last_lstm_states is not None
        for name, parts in self._last_lstm_states._asdict().items():
            for part, saved in zip(parts, state["lstm_states"][name], strict=True):
                part.copy_(th.as_tensor(saved))

    def _setup_model(self) -> None:
        if self.n_steps < 2:
            raise UserError(
                f"n_steps is {self.n_steps}, but must be at least 2: what an LSTM remembers is learned from the steps "
                "that follow each other in one rollout."
            )
        super()._setup_model()
        self._last_lstm_states = self._zero_states(self.n_envs)

    def _zero_states(self, n: int) -> RNNStates:
        layers, _, hidden_units = self._recurrent_policy.lstm_hidden_state_shape
        parts = [th.zeros(layers, n, hidden_units, device=self.device) for _ in range(4)]
        return RNNStates(pi=tuple(parts[:2]), vf=tuple(parts[2:]))

    @property
    def _recurrent_policy(self) -> RecurrentActorCriticPolicy:
        assert isinstance(self.policy, RecurrentActorCriticPolicy)
        return self.policy

    def _run_loop(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        # sb3-contrib's loop, which reads of an algorithm nothing that this one does not have.
        collect: Any = RecurrentPPO.collect_rollouts
        return bool(collect(self, env, callback, rollout_buffer, n_rollout_steps))

    def _evaluate_policy(self, obs: PyTorchObs) -> tuple[Distribution, th.Tensor]:
        policy: Any = self.policy
        n = count_states(obs)
        states, starts = self._zero_states(n), th.ones(n, device=self.device)
        with use_twice_differentiable_kernels(policy):
            distribution, _ = policy.get_distribution(obs, states.pi, starts)
            return distribution, policy.predict_values(obs, states.vf, starts)

    def _rollout_samples(self) -> SequenceSamples:  # type: ignore[override]
        buffer: Any = self.rollout_buffer
        # Brings the arrays into rows, environment by environment. What it gives is cut at a random place, and not used.
        next(iter(buffer.get(batch_size=1)))
        starts = buffer.episode_starts.reshape(-1) > 0
        goes_on = buffer.to_torch(~starts).view(-1, 1, 1, 1)
        starts[:: buffer.buffer_size] = True

        def lstm_states(name: str) -> th.Tensor:
            parts = [buffer.to_torch(getattr(buffer, f"{part}_states_{name}")) for part in ("hidden", "cell")]
            states: th.Tensor = goes_on * th.stack(parts, dim=1)
            return states

        observations = buffer.observations
        return SequenceSamples(
            observations={key: buffer.to_torch(value) for key, value in observations.items()}
            if isinstance(observations, dict)
            else buffer.to_torch(observations),
            # As SB3's own buffers give them.
            actions=buffer.to_torch(buffer.actions.astype(np.float32, copy=False)),
            old_values=buffer.to_torch(buffer.values).flatten(),
            old_log_prob=buffer.to_torch(buffer.log_probs).flatten(),
            advantages=buffer.to_torch(buffer.advantages).flatten(),
            returns=buffer.to_torch(buffer.returns).flatten(),
            starts=buffer.to_torch(starts),
            states={name: lstm_states(name) for name in RNNStates._fields},
        )

    def _action_distribution(self, samples: SequenceSamples) -> Distribution:  # type: ignore[override]
        policy = self._recurrent_policy
        features = extract_features(policy, samples.observations, policy.pi_features_extractor)
        latent = run_lstm(policy.lstm_actor, features, samples.starts, samples.states["pi"])
        # sb3-contrib's ``get_distribution`` goes on in the same way.
        return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(latent))

    def _values(self, samples: SequenceSamples) -> th.Tensor:  # type: ignore[override]
        policy = self._recurrent_policy
        features = extract_features(policy, samples.observations, policy.vf_features_extractor)
        if policy.lstm_critic is not None:
            latent = run_lstm(policy.lstm_critic, features, samples.starts, samples.states["vf"])
        elif policy.shared_lstm:
            latent = run_lstm(policy.lstm_actor, features, samples.starts, samples.states["pi"]).detach()
        else:
            assert policy.critic is not None
            latent = policy.critic(features)
        values: th.Tensor = policy.value_net(policy.mlp_extractor.forward_critic(latent))
        return values

    def _chunks(self, samples: SequenceSamples) -> Sequence[SequenceSamples]:  # type: ignore[override]
        return sequence_chunks(samples, self.fisher_chunk_size or chunk_size(samples.observations))

    def _thin(self, samples: SequenceSamples, step: int) -> SequenceSamples:  # type: ignore[override]
        return every_sequence(samples, step, self.ranks)

    def _draw_minibatches(self, samples: SequenceSamples, batch_size: int) -> Sequence[th.Tensor]:  # type: ignore[override]
        return shuffle_sequences(samples, batch_size, self.ranks)

    def _make_policy(self) -> ActorCriticPolicy:
        try:
            policy = super()._make_policy()
        except AssertionError as error:
            if self.policy_kwargs.get("shared_lstm"):
                raise SharedLstmError(
                    "policy_kwargs['shared_lstm'] is True, but must be False beside an LSTM of the critic's own: give "
                    f"'enable_critic_lstm': False, too ({error})"
                ) from error
            raise
        if not isinstance(policy, RecurrentActorCriticPolicy):
            raise UserError(
                f"policy is {type(policy).__name__}, but must be 'MlpLstmPolicy', 'CnnLstmPolicy', "
                "'MultiInputLstmPolicy', or a subclass of sb3_contrib's RecurrentActorCriticPolicy."
            )
        for name in ("bidirectional", "batch_first", "proj_size"):
            if getattr(policy.lstm_actor, name, False):
                raise UserError(
                    f"policy_kwargs['lstm_kwargs'] has {name!r}, but sb3_contrib's policies feed one step after the "
                    "other into an LSTM without it."
                )
        return policy

    def _make_rollout_buffer(self) -> RolloutBuffer:
        layers, _, hidden_units = self._recurrent_policy.lstm_hidden_state_shape
        shape = {"hidden_state_shape": (self.n_steps, layers, self.n_envs, hidden_units)}
        given, self.rollout_buffer_kwargs = self.rollout_buffer_kwargs, {**self.rollout_buffer_kwargs, **shape}
        try:
            return super()._make_rollout_buffer()
        finally:
            self.rollout_buffer_kwargs = given

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_lstm_states"]


def _is_finite(part: Any) -> bool:
    numbers = np.asarray(part)
    return numbers.dtype.kind in "biuf" and bool(np.isfinite(numbers).all())


allow_in_files(
    *RecurrentTRPO.policy_aliases.values(),
    *RecurrentPPO.policy_aliases.values(),
    RecurrentRolloutBuffer,
    RecurrentDictRolloutBuffer,
)
