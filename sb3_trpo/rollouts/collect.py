"""
Collection of rollouts: by the fast path where nobody can tell it from SB3's loop, and by SB3's loop elsewhere.
"""

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.ranks.callbacks import callbacks_of_rank
from sb3_trpo.rollouts.checks import Observations, OutputChecks, innermost
from sb3_trpo.rollouts.failures import Failures, WaitingWatch, limit_waiting
from sb3_trpo.rollouts.fast_rollout import FastRollout, why_not_fast
from sb3_trpo.rollouts.guard import CopyingGuard, PausingCallback, StepGuard
from sb3_trpo.rollouts.noise import check_noise, keep_noise, noise_of_rollout, use_noise
from sb3_trpo.rollouts.on_ranks import RankedCallback
from sb3_trpo.rollouts.pooled_statistics import PooledStatistics
from sb3_trpo.rollouts.shown_locals import ShowingCallback
from sb3_trpo.rollouts.statistics import MIB, EpisodeEnds, drop_unreadable, resident_memory, rollout_statistics
from sb3_trpo.trust_region.families import family_and_z, keep_distribution
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks
from sb3_trpo.validation.algorithm import check_changes, settings_of
from sb3_trpo.validation.trials import check_precision
from sb3_trpo.validation.values import UserError, warn_user


class RolloutCollector(OnPolicyAlgorithm):
    """
    An algorithm that collects rollouts: by the fast path where it may, checked and watched everywhere.

    It is a guest in the user's pipeline: neither environments nor buffers nor callbacks are changed. A subclass with a
    loop of its own overrides ``_run_loop`` and keeps checks, limits and noise.
    """

    # The processes that train together; alone until ``learn`` has found others.
    ranks: Ranks = ALONE
    # What their environments are normalised with.
    _statistics: PooledStatistics | None = None
    # The id of the model that is being trained; None if it is not.
    _learns_as: int | None = None
    # The hyperparameters that were checked last.
    _known_settings: Mapping[str, object] = MappingProxyType({})
    min_std: float | Schedule
    max_std: float | Schedule | None
    noise_correlation: float
    env_timeout: float | None
    check_env_outputs: bool
    # The noise in the last actions, (n_envs, n_actions), where it is correlated.
    _last_noise: np.ndarray | None
    # The environments of the last rollout, and why they were not stepped by the fast path; None before the first.
    _stepped_env: VecEnv | None
    _why_not_fast: str | None
    # The warnings that were given in this training.
    _said: set[str]
    # What the last rollout told, by its keys in the log.
    _rollout_numbers: dict[str, float]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with steps of the current policy.

        :param env: the training environments
        :param callback: the callback, called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: the number of steps of each environment
        :return: whether the rollout is complete, rather than ended by the callback
        :raises UserError: if an observation, a reward or an action is not finite
        :raises RuntimeError: if an environment's process has ended or does not answer
        """
        if self._last_obs is None or (self._stepped_env is not None and self._stepped_env is not env):
            # A callback has given the model other environments (set_env).
            self._begin_episodes(env)
        self._stepped_env = env
        why_not = self._choose_path(rollout_buffer, n_rollout_steps)
        guard = (CopyingGuard if why_not else StepGuard)(
            env, lambda: self.num_timesteps, self._can_handle, self.check_env_outputs, self._said
        )
        noise = noise_of_rollout(self, env.num_envs)
        try:
            with guard.watch(self.env_timeout, self._last_obs), keep_noise(noise, self):
                if not why_not:
                    is_complete = FastRollout(self, guard, callback, rollout_buffer, noise).collect()
                else:
                    pausing = PausingCallback(callback, guard, self)
                    with use_noise(noise, self.policy, lambda: guard.is_acting):
                        is_complete = self._run_loop(guard, pausing, rollout_buffer, n_rollout_steps)
        except BaseException as error:
            if guard.is_stepping:
                # An environment may have ended its episode and not begun the next: only a reset helps.
                self._last_obs = None
            elif guard.is_acting and isinstance(error, ValueError) and not isinstance(error, UserError):
                self._explain_distribution(guard)
            raise
        if is_complete:
            self._log_rollout(rollout_buffer, guard.ends)
        return is_complete

    def _log_rollout(self, buffer: RolloutBuffer, ends: EpisodeEnds) -> None:
        """
        Log what a rollout tells of its environments and actions.

        :param buffer: the buffer, full
        :param ends: the episodes that have ended
        """
        for unreadable in drop_unreadable(self.ep_info_buffer, self.ep_success_buffer):
            if "episode" not in self._said:
                self._said.add("episode")
                warn_user(f"{unreadable}{ends.unreadable}: it is left out of the log. (This is said once.)")
        space, dones = self.action_space, self._last_episode_starts
        clipping = space if isinstance(space, spaces.Box) and not self.policy.squash_output else None
        assert dones is not None
        self._rollout_numbers = numbers = rollout_statistics(buffer, self.observation_space, clipping, ends, dones)
        memory = resident_memory()
        if memory is not None:
            numbers["time/memory_mib"] = memory
        if self.device.type == "cuda":
            numbers["time/gpu_memory_mib"] = th.cuda.memory_allocated(self.device) / MIB
        for key, value in numbers.items():
            # What the critic is compared with is logged beside the critic.
            if self._logger is not None and not key.startswith("train/"):
                # Where the log is written less often, no end of an episode goes missing.
                self.logger.record_mean(key, value)

    def _run_loop(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect a rollout step by step: the extension point for a loop of one's own.

        :param env: the environments behind their guard
        :param callback: the callback
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: the number of steps of each environment
        :return: whether the rollout is complete
        """
        return OnPolicyAlgorithm.collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps)

    def _choose_path(self, buffer: RolloutBuffer, n_rollout_steps: int) -> str:
        """
        Choose how to collect a rollout, and say so when the choice is another than before.

        :param buffer: the buffer to fill
        :param n_rollout_steps: the number of steps of each environment
        :return: the reason for SB3's loop; empty for the fast path
        """
        if "_run_loop" in vars(self) or type(self)._run_loop is not RolloutCollector._run_loop:
            reason = f"{type(self).__name__} has a loop of its own"
        else:
            reason = why_not_fast(self, buffer, n_rollout_steps)
        if reason != self._why_not_fast:
            self._why_not_fast = reason
            if self._logger is not None:
                way = f"by SB3's own loop, because {reason}" if reason else "by the fast path"
                self.logger.info(f"Rollouts are collected {way}.")
        return reason

    def _can_handle(self, obs: Observations) -> bool:
        """
        Tell whether the policy can act on, and learn from, observations that are not finite.

        :param obs: the observations of N states
        :return: whether the policy makes finite actions and values of them, with finite gradients
        """
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        try:
            with keep_distribution(self.policy), th.enable_grad():
                tensor = obs_as_tensor(obs, self.device)
                distribution, values = self._evaluate_policy(tensor)
                actions = distribution.get_actions(deterministic=True).detach()
                total = distribution.log_prob(actions).sum() + values.sum()
            # An infinity that an activation has swallowed comes back in the gradient.
            gradients = th.autograd.grad(total, parameters, allow_unused=True)
        except Exception:
            # A network may raise anything at numbers that it is not made for.
            return False
        return all(bool(x.isfinite().all()) for x in (actions, total, *gradients) if x is not None)

    def _evaluate_policy(self, obs: PyTorchObs) -> tuple[Distribution, th.Tensor]:
        """
        Evaluate actor and critic on observations alone, to see whether they can.

        :param obs: observations of N states
        :return: action distributions, and values, (N, 1)
        """
        return self.policy.get_distribution(obs), self.policy.predict_values(obs)

    def _check_changes(self) -> None:
        """
        Check what a callback may have changed since the last look.

        :raises UserError: if a hyperparameter is not allowed, or the policy is of another precision or elsewhere
        """
        check_precision(self.policy, self.device, self._try_policy)
        algorithm: Any = self  # Some of the hyperparameters are the subclass's.
        if check_changes(algorithm, self._known_settings):
            check_noise(self.policy, self.min_std, self.max_std, self.noise_correlation)
            self._known_settings = settings_of(algorithm)

    @contextlib.contextmanager
    def _learn_once(self) -> Iterator[None]:
        """
        Refuse, in the block, another training of this model: it has one rollout buffer.

        :raises UserError: if it is in such a block already
        """
        # A copy that a callback makes is another model.
        if self._learns_as == id(self):
            raise UserError(
                "learn() was called while this model is being trained already, by a callback or in another thread: "
                "call it afterwards, or train a copy (copy.deepcopy(model))."
            )
        self._learns_as = id(self)
        try:
            yield
        finally:
            self._learns_as = None

    def _explain_distribution(self, guard: StepGuard) -> None:
        """
        Say for which environment the policy has no finite action, where torch's distributions refuse them all.

        :param guard: the environments
        :raises UserError: if there is one
        """
        try:
            with keep_distribution(self.policy), skip_distribution_checks(), th.no_grad():
                # By SB3's types, environments may give tuples, which policies do not take.
                distribution, _ = self._evaluate_policy(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
                _, z = family_and_z(distribution)
        except Exception:
            # Something else is wrong, which the first error tells.
            return
        are_finite = th.stack([part.flatten(1).isfinite().all(dim=1) for part in z]).all(dim=0)
        if len(are_finite) == guard.num_envs and not bool(are_finite.all()):
            guard.refuse_actions(int(are_finite.int().argmin()))

    def _try_policy(self, obs: PyTorchObs) -> DistributionParameters:
        """
        Evaluate actor and critic, to see whether they can, and leave nothing of it behind.

        :param obs: observations of N states
        :return: the parameters of the action distributions
        """
        with keep_distribution(self.policy):
            distribution, _ = self._evaluate_policy(obs)
            return family_and_z(distribution)[1]

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if self.ranks.is_alone:
            return ShowingCallback(super()._init_callback(callback, progress_bar), self)
        progress_bar = progress_bar and self.ranks.is_first
        callback = super()._init_callback(callbacks_of_rank(callback, self.ranks), progress_bar)
        assert self._statistics is not None
        return RankedCallback(callback, self, self.ranks, self._statistics)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise UserError(
                f"{type(self).__name__}.learn needs an environment, but this model has none: give it one with "
                "set_env(env), or load it with env=."
            )
        self._stepped_env = self._why_not_fast = None
        self._said = set()
        with self._explain_reset(self.env):
            return super()._setup_learn(*args, **kwargs)

    def _begin_episodes(self, env: VecEnv) -> None:
        """
        Reset the environments.

        :param env: the training environments
        """
        with self._explain_reset(env):
            # SB3's type of the attribute lacks the tuples that environments may give by their type.
            self._last_obs = env.reset()  # type: ignore[assignment]
        self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)

    @contextlib.contextmanager
    def _explain_reset(self, env: VecEnv) -> Iterator[None]:
        """
        Limit waiting in a block that resets the environments, and name the one that fails.

        :param env: the training environments
        """

        def when() -> str:
            return "in the reset before the first step"

        failures = Failures(innermost(env), when)
        checks = OutputChecks(env, when, self._can_handle, is_on=False)
        checks.remember_statistics()
        watch = WaitingWatch(innermost(env), when, self._said)
        watch.n_begun = 1
        with limit_waiting(innermost(env), self.env_timeout), watch:
            try:
                yield
            except Exception as error:
                failures.explain(error)
                raise
        checks.keep_statistics_finite()
        if self.check_env_outputs:
            checks.check_shape(self._last_obs)
