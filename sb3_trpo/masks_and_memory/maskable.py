"""
TRPO with action masks: what ``MaskablePPO`` of sb3-contrib is to PPO.

A masked action has probability 0, so that KL, F and the surrogate are those of the choices that are left.
"""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extension_points import BufferClasses
from sb3_trpo.rollouts.checks import count_states
from sb3_trpo.rollouts.mask_guard import MaskGuard, check_masks, mask_sizes
from sb3_trpo.saved_models.objects import allow_in_files
from sb3_trpo.trpo import TRPO
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.samples import whole_rollout
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError

try:
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.buffers import (
        MaskableDictRolloutBuffer,
        MaskableDictRolloutBufferSamples,
        MaskableRolloutBuffer,
        MaskableRolloutBufferSamples,
    )
    from sb3_contrib.common.maskable.distributions import (
        MaskableBernoulliDistribution,
        MaskableCategoricalDistribution,
        MaskableMultiCategoricalDistribution,
    )
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"MaskableTRPO needs sb3-contrib ({error}): install it with {how_to_install('contrib')}.", name=error.name
    ) from error

SelfMaskableTRPO = TypeVar("SelfMaskableTRPO", bound="MaskableTRPO")
MaskedSamples = MaskableRolloutBufferSamples | MaskableDictRolloutBufferSamples

# The logit of a masked choice, as sb3-contrib has it: its probability is 0, and nothing becomes infinite.
MASKED_LOGIT = -1e8
# Distributions that logits determine.
_OF_LOGITS = (MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution, MaskableBernoulliDistribution)


class MaskableTRPO(TRPO):
    """
    Trust region policy optimization with action masks.

    The environments say which choices are allowed: they have a method ``action_masks()``, or are wrapped in
    sb3-contrib's ``ActionMasker``. The arguments are those of TRPO, the interface is that of sb3-contrib's
    ``MaskablePPO``; its ``evaluate_policy`` and ``MaskableEvalCallback`` take this class as they take that.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = MaskablePPO.policy_aliases
    rollout_buffer_classes: ClassVar[BufferClasses] = (MaskableRolloutBuffer, MaskableDictRolloutBuffer)
    log_name: ClassVar[str] = "MaskableTRPO"
    supported_action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = (
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    # Whether rollouts ask for masks, as ``learn`` was told last.
    _use_masking = True

    def learn(  # type: ignore[override]
        self: SelfMaskableTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableTRPO:
        """
        Train, as ``TRPO.learn`` does.

        :param total_timesteps: the number of steps, in all environments together
        :param callback: the callback, or a list of them
        :param log_interval: the number of updates between two entries of the log
        :param tb_log_name: the run's name for TensorBoard; None is the class's ``log_name``
        :param reset_num_timesteps: whether to count steps from 0
        :param use_masking: whether to ask the environments for masks; without, every choice is allowed
        :param progress_bar: whether to show a progress bar
        :return: the algorithm
        """
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions, as ``MaskablePPO.predict`` does.

        :param observation: the observations, one or several
        :param state: the policy's memory, if it has one
        :param episode_start: whether episodes begin, for a policy with memory
        :param deterministic: whether to take the most probable action
        :param action_masks: the allowed choices of each action; None allows all
        :return: the actions, and the policy's memory
        :raises UserError: if the masks are of the wrong shape or type, or leave no choice
        """
        if action_masks is not None:
            obs, _ = self.policy.obs_to_tensor(observation)
            sizes = mask_sizes(self.action_space)
            action_masks = check_masks(action_masks, sizes, count_states(obs), "The masks given to predict()")
        predict: Any = MaskablePPO.predict
        actions, state = predict(self, observation, state, episode_start, deterministic, action_masks)
        return self._as_in_space(actions), state

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool | None = None,
    ) -> bool:
        """
        Fill the buffer with steps of the current policy, as ``TRPO.collect_rollouts`` does.

        :param env: the training environments
        :param callback: the callback, called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: steps of each environment
        :param use_masking: whether to ask the environments for masks in this rollout; None does as ``learn`` was told
        :return: whether the rollout is complete, rather than ended by the callback
        """
        as_told = self._use_masking
        self._use_masking = as_told if use_masking is None else use_masking
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            self._use_masking = as_told

    def _run_loop(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        guard = MaskGuard(env, lambda: f"after {self.num_timesteps} steps")
        if self._use_masking:
            guard.check_support()
        # sb3-contrib's loop, which reads of an algorithm nothing that this one does not have.
        collect: Any = MaskablePPO.collect_rollouts
        return bool(collect(self, guard, callback, rollout_buffer, n_rollout_steps, self._use_masking))

    def _rollout_samples(self) -> MaskedSamples:  # type: ignore[override]
        samples = whole_rollout(self.rollout_buffer, self.rollout_buffer_classes)
        masks = samples.action_masks.bool()
        # Without a masked choice the update is TRPO's own, bit for bit.
        masked: MaskedSamples = samples._replace(action_masks=None if masks.all() else masks)
        return masked

    def _action_distribution(self, samples: MaskedSamples) -> Distribution:  # type: ignore[override]
        policy: Any = self.policy
        distribution: Distribution = policy.get_distribution(samples.observations, samples.action_masks)
        return distribution

    def _make_actor(self) -> Actor[Any]:
        is_builtin = self._is_builtin("_action_distribution", MaskableTRPO)
        is_known = type(self.policy.action_dist) in _OF_LOGITS
        return Actor(self.policy, self._action_distribution, is_builtin and is_known, self._distribution_from_logits)

    def _distribution_from_logits(self, logits: th.Tensor, samples: MaskedSamples) -> Distribution:
        """
        Do what ``_action_distribution`` does, from the network's outputs.

        sb3-contrib's distributions normalise before they mask and after; with SB3's own, which normalise once, an
        update takes no longer than without masks, and is the same where nothing is masked.

        :param logits: the network's outputs, (N, number of choices)
        :param samples: rollout samples of the same N states
        :return: π(· | s) for each of them
        """
        if samples.action_masks is not None:
            logits = mask_logits(logits, samples.action_masks)
        if isinstance(self.action_space, spaces.Discrete):
            return CategoricalDistribution(int(self.action_space.n)).proba_distribution(logits)
        return MultiCategoricalDistribution(list(mask_sizes(self.action_space))).proba_distribution(logits)

    def _make_policy(self) -> Any:
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        if not isinstance(policy, MaskableActorCriticPolicy):
            raise UserError(
                f"policy is {type(policy).__name__}, but must be 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy', or a "
                "subclass of sb3_contrib's MaskableActorCriticPolicy."
            )
        return policy

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_use_masking"]


allow_in_files(*MaskableTRPO.policy_aliases.values(), MaskableRolloutBuffer, MaskableDictRolloutBuffer)


def mask_logits(logits: th.Tensor, masks: th.Tensor) -> th.Tensor:
    """
    Give forbidden choices the probability 0.

    :param logits: the logits of the choices, (N, number of choices)
    :param masks: whether each choice is allowed, of the same shape
    :return: the logits; those of forbidden choices depend on nothing
    """
    return logits.masked_fill(~masks, MASKED_LOGIT)
