"""
What surrounds the algorithm: how TRPO is set up in Stable-Baselines3, and what a subclass can say in other words.

A policy with masks or memory, a buffer or a loop of one's own, data from several machines: each overrides one of the
small methods below, and inherits the algorithm itself, its checks, its limits, its files.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import (
    DictRolloutBufferSamples,
    GymEnv,
    MaybeCallback,
    RolloutBufferSamples,
    Schedule,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.diagnosis.advice import Advice
from sb3_trpo.diagnosis.set_up_rules import actions_out_of_reach
from sb3_trpo.ranks.alone import ALONE
from sb3_trpo.ranks.joining import join
from sb3_trpo.ranks.start import check_start, describe, seed_by_rank, start_alike, warn_of_twins
from sb3_trpo.rollouts.collect import RolloutCollector
from sb3_trpo.rollouts.noise import check_noise
from sb3_trpo.rollouts.on_ranks import RankedCallback
from sb3_trpo.rollouts.orphans import end_workers_with_training
from sb3_trpo.rollouts.pooled_statistics import PooledStatistics
from sb3_trpo.saved_models.algorithm import SafelySaved
from sb3_trpo.saved_models.portable import undo_portable
from sb3_trpo.trust_region.families import check_family
from sb3_trpo.trust_region.surrogate import LogProb, PolicyBatch
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.clipped_actions import log_prob_of_executed
from sb3_trpo.update.critic import shuffle_rows
from sb3_trpo.update.samples import chunk_size, chunks, n_rows, select, whole_rollout
from sb3_trpo.update.transaction import check_before_rollout
from sb3_trpo.validation.algorithm import settings_of
from sb3_trpo.validation.base_arguments import check_learn_arguments
from sb3_trpo.validation.policies import check_policy_arguments
from sb3_trpo.validation.spaces import SUPPORTED_SPACES, check_observation_encoding, check_spaces
from sb3_trpo.validation.trials import check_by_trial, explain_features_dim
from sb3_trpo.validation.values import UserError

# What the rollout buffers give: named tuples of tensors with a row for each state.
Samples: TypeAlias = RolloutBufferSamples | DictRolloutBufferSamples
BufferClasses: TypeAlias = tuple[type[RolloutBuffer], type[RolloutBuffer]]

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="ExtensibleTRPO")


class ExtensibleTRPO(SafelySaved, RolloutCollector):
    """
    The extension points of ``TRPO``.

    A method that is set on the instance counts like one in a subclass. Where an extension point is overridden, what is
    written out for SB3's own policies is not used in its place.
    """

    # The action spaces that the algorithm takes; a subclass may take fewer.
    supported_action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = SUPPORTED_SPACES
    # The rollout buffers that it can use, or subclasses of them: of observations, and of dictionaries.
    rollout_buffer_classes: ClassVar[BufferClasses] = (RolloutBuffer, DictRolloutBuffer)
    # What TensorBoard calls a run that ``learn`` is given no name for.
    log_name: ClassVar[str] = "TRPO"

    target_kl: float | Schedule
    min_std: float | Schedule
    max_std: float | Schedule | None
    fisher_chunk_size: int | None
    distributed: bool
    cg_direction: th.Tensor
    # Whether environments and random numbers have got seeds of this rank's own.
    _is_seeded_by_rank = False
    _advice: Advice

    # ---- The policy, as the update sees it ----

    def _action_distribution(self, samples: Samples) -> Distribution:
        """
        Evaluate the policy: the only thing that the policy step asks of it.

        :param samples: rollout samples of N states
        :return: π(· | s) for each of them
        """
        return self.policy.get_distribution(samples.observations)

    def _make_actor(self) -> Actor[Any]:
        """
        Make what linearises the policy.

        A policy whose action distribution depends on more than observations keeps the fast path if it says here how
        its network's outputs become a distribution.

        :return: the actor, for one update
        """
        return Actor(self.policy, self._action_distribution, self._is_builtin("_action_distribution"))

    def _log_prob(self) -> LogProb:
        """
        Make what gives ln π(a|s) to the surrogate.

        :return: the function from action distributions and actions
        """
        return log_prob_of_executed(self.policy)

    def _values(self, samples: Samples) -> th.Tensor:
        """
        Evaluate the critic.

        :param samples: rollout samples of N states
        :return: V(s), (N, 1)
        """
        return self.policy.predict_values(samples.observations)

    def _rollout_samples(self) -> Samples:
        """
        Read the rollout buffer.

        :return: the whole rollout, as tensors
        """
        samples: Samples = whole_rollout(self.rollout_buffer)
        return samples

    def _chunks(self, samples: Samples) -> Sequence[Samples]:
        """
        Split samples into chunks, which are evaluated one after the other to bound the memory.

        :param samples: rollout samples
        :return: chunks of about ``fisher_chunk_size`` states
        """
        return chunks(samples, self.fisher_chunk_size)

    def _thin(self, samples: Samples, step: int) -> Samples:
        """
        Take a part of the samples that stands for all.

        :param samples: rollout samples
        :param step: k
        :return: every k-th of them; on several ranks this rank's part of every k-th of all
        """
        return select(samples, self.ranks.share(n_rows(samples)).every(step))

    def _representative(self, samples: Samples) -> Samples | None:
        """
        Choose the samples that the preconditioner is made of.

        :param samples: the rollout, or a thinned one
        :return: as many as one process with all environments would have in its first chunk, from all ranks; None if
            that is the first chunk of this rank
        """
        if self.ranks.is_alone:
            return None
        counts = [count for (count,) in self.ranks.counts([n_rows(samples)])]
        size = self.fisher_chunk_size or chunk_size(samples.observations)
        step = min(-(-sum(counts) // size), min(counts))
        return self._thin(samples, step) if step > 1 else None

    def _draw_minibatches(self, samples: Samples, batch_size: int) -> Sequence[th.Tensor]:
        """
        Draw the critic's minibatches for one epoch.

        :param samples: the rollout
        :param batch_size: samples of a minibatch
        :return: for each minibatch the rows of the samples that are in it, in order
        """
        return shuffle_rows(samples, batch_size)

    def _policy_batch(self, chunk: Samples) -> PolicyBatch[Samples]:
        """
        Say which actions were taken in a chunk's states, and how good they were.

        :param chunk: rollout samples of which ``_action_distribution`` makes N distributions
        :return: the chunk with N actions and N advantages
        """
        actions = chunk.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        return PolicyBatch(chunk, actions, chunk.advantages)

    def _make_policy(self) -> ActorCriticPolicy:
        """
        Make the policy.

        :return: the policy, new
        """
        return self.policy_class(  # type: ignore[return-value]
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )

    def _make_rollout_buffer(self) -> RolloutBuffer:
        """
        Make the rollout buffer.

        :return: the buffer, empty
        :raises UserError: if the class that the user has given keeps less than is needed
        """
        known = self.rollout_buffer_classes
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = known[isinstance(self.observation_space, spaces.Dict)]
        if not issubclass(self.rollout_buffer_class, known):
            raise UserError(
                f"rollout_buffer_class is {self.rollout_buffer_class.__name__}, but must be a subclass of "
                f"{' or '.join(f'{each.__module__}.{each.__name__}' for each in known)}."
            )
        return self.rollout_buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def _is_builtin(self, method: str, owner: "type[ExtensibleTRPO] | None" = None) -> bool:
        """
        Tell whether an extension point is as a class of ours has it: neither a subclass's nor set on the instance.

        :param method: its name
        :param owner: the class; None for this one
        :return: whether it is
        """
        return method not in vars(self) and getattr(type(self), method) is getattr(owner or ExtensibleTRPO, method)

    # ---- Setting up, training, saving ----

    def _setup_model(self) -> None:
        self.policy_kwargs = check_policy_arguments(self.policy_class, self.policy_kwargs)
        if self.use_sde and not isinstance(self.action_space, spaces.Box):
            # SB3 asks in the constructor alone, which a model that is loaded does not come by.
            raise UserError(
                f"use_sde is {self.use_sde}, but must be False for actions that are "
                f"{type(self.action_space).__name__}: gSDE is noise of continuous actions."
            )
        undo_portable(self)
        check_observation_encoding(self)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        try:
            self.policy = self._make_policy().to(self.device)
        except (AssertionError, TypeError) as error:
            explain_features_dim(error, self.observation_space, self.policy_kwargs)
            raise
        check_family(self.policy)
        check_by_trial(self.policy, self._try_policy)
        # After the policy, which knows the shape of its memory.
        self.rollout_buffer = self._make_rollout_buffer()
        self._maybe_recommend_cpu()
        self._advice.give(actions_out_of_reach(self.policy))
        check_noise(self.policy, self.min_std, self.max_std, self.noise_correlation)
        algorithm: Any = self  # Some of the hyperparameters are the subclass's.
        self._known_settings = settings_of(algorithm)

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """
        Train.

        :param total_timesteps: the steps to train for, over all environments; the last rollout is finished
        :param callback: the callback, or a list of them
        :param log_interval: the number of updates between two entries of the log
        :param tb_log_name: the run's name for TensorBoard; None is the class's ``log_name``
        :param reset_num_timesteps: whether to count steps from 0, rather than go on
        :param progress_bar: whether to show a progress bar
        :return: the algorithm
        :raises UserError: if an argument is not allowed, there is no environment, one gives what can't be learned from,
            or this model is being trained already
        """
        check_learn_arguments(total_timesteps, callback, log_interval, tb_log_name)
        with self._learn_once(), end_workers_with_training(self.env), self._join_ranks(total_timesteps):
            return super().learn(
                total_timesteps,
                callback,
                log_interval,
                self.log_name if tb_log_name is None else tb_log_name,
                reset_num_timesteps,
                progress_bar,
            )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions, as in SB3; choices come in the type that the action space has.

        :param observation: the observations, one or several
        :param state: the policy's memory, if it has one
        :param episode_start: whether episodes begin, for a policy with memory
        :param deterministic: whether to take the most probable action
        :return: the actions, and the policy's memory, if it has one
        """
        actions, state = super().predict(observation, state, episode_start, deterministic)
        return self._as_in_space(actions), state

    def _as_in_space(self, actions: np.ndarray) -> np.ndarray:
        """
        Give choices, which SB3's policies have as int64, the type that the action space has.

        :param actions: actions, one or several
        :return: the actions that the space contains
        """
        if isinstance(self.action_space, (spaces.Discrete, spaces.MultiDiscrete)):
            return actions.astype(self.action_space.dtype, copy=False)
        return actions

    @contextlib.contextmanager
    def _join_ranks(self, total_timesteps: int) -> Iterator[None]:
        """
        Train together with the other ranks in the block, if this process was launched as one of several.

        :param total_timesteps: the steps to train for
        :raises UserError: if the ranks are not about to do the same
        :raises LostRankError: if one of them ends, or does not answer
        """
        self.ranks = join(self.device) if self.distributed else ALONE
        if self.ranks.is_alone:
            yield
            return
        try:
            check_start(describe(self, total_timesteps), self.ranks)
            start_alike(self, {"cg_direction": self.cg_direction}, self.ranks)
            self._statistics = PooledStatistics(self, self.ranks)
            if not self._is_seeded_by_rank:
                seed_by_rank(self, self.ranks)
                self._is_seeded_by_rank = True
            self._advice.is_quiet = not self.ranks.is_first
            if not self.ranks.is_first:
                self.set_logger(Logger(folder=None, output_formats=[]))
            # From each rank, for who does not expect this sees a program that runs several times.
            line = f"{type(self).__name__}: rank {self.ranks.rank} of {self.ranks.size}, {self.n_envs} environments"
            print(line, file=sys.stderr, flush=True)
            yield
        except BaseException as error:
            self.ranks.leave(error)
            raise
        finally:
            self.ranks, self._statistics = ALONE, None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(*args, **kwargs)
        if not self.ranks.is_alone:
            warn_of_twins(self._last_obs, self.ranks)
        return result

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with steps of the current policy (see ``sb3_trpo.rollouts``).

        :param env: the training environments
        :param callback: the callback, called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: steps of each environment
        :return: whether the rollout is complete, rather than ended by the callback
        :raises NonFiniteError: if the policy's weights are not finite
        :raises UserError: if a callback has made something of the algorithm that is not allowed
        """
        self._check_changes()
        check_before_rollout(self.policy)
        try:
            is_complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except Exception:
            # A callback may have changed something since.
            self._check_changes()
            check_before_rollout(self.policy)
            raise
        return callback.end_rollout(is_complete) if isinstance(callback, RankedCallback) else is_complete

    @classmethod
    def _wrap_env(cls, env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # An environment of the old Gym has spaces of another kind, which SB3 converts.
        if isinstance(env, (gym.Env, VecEnv)):
            check_spaces(env.observation_space, env.action_space, cls.supported_action_spaces)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def get_checkpoint_state(self) -> dict[str, Any]:
        """
        Give what goes on in a training and is in no saved model; ``Checkpoint`` keeps it.

        A subclass with more (the states of an LSTM) adds it here: numbers, arrays, tensors, containers of these.

        :return: the state, by name
        """
        return {"last_noise": self._last_noise}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state.

        :param state: what ``get_checkpoint_state`` has returned
        """
        self._last_noise = state["last_noise"]

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_advice",
            "_is_seeded_by_rank",
            "_known_settings",
            "_learns_as",
            "_statistics",
            "ranks",
            "_last_noise",
            "_stepped_env",
            "_why_not_fast",
            "_said",
            "_rollout_numbers",
            "_knows_statistics",
        ]
