"""
TRPO with action masks and with memory at once.

An LSTM's policy masks the logits that it makes; which masks are in force is told for the duration of a block. The rest
is ``MaskableTRPO`` and ``RecurrentTRPO``.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extension_points import BufferClasses
from sb3_trpo.masks_and_memory.maskable import MaskableTRPO, mask_logits
from sb3_trpo.masks_and_memory.recurrent import RecurrentTRPO
from sb3_trpo.rollouts.mask_guard import METHOD, MaskGuard, mask_sizes
from sb3_trpo.saved_models.objects import allow_in_files
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.sequences import SequenceSamples
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError

try:
    from sb3_contrib import RecurrentPPO

    from sb3_trpo.masks_and_memory.lstm_policies import CnnLstmPolicy, LstmPolicy, MultiInputLstmPolicy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"MaskableRecurrentTRPO needs sb3-contrib ({error}): install it with {how_to_install('contrib')}.",
        name=error.name,
    ) from error

AskMasks = Callable[[], np.ndarray | th.Tensor]


class MaskableLstmPolicy(LstmPolicy):
    """``LstmPolicy``, which obeys the masks that are in force."""

    # Gives the masks of the states that the policy is evaluated on; None where every choice is allowed.
    _ask_masks: AskMasks | None = None

    @contextlib.contextmanager
    def use_masks(self, ask_masks: AskMasks | None) -> Iterator[None]:
        """
        Obey masks in the block.

        :param ask_masks: a function that gives the allowed choices of N states, N rows of booleans; None allows all
        """
        before, self._ask_masks = self._ask_masks, ask_masks
        try:
            yield
        finally:
            self._ask_masks = before

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions.

        :param observation: an observation, or one of each environment
        :param state: the LSTM's state; None is 0
        :param episode_start: whether an episode starts in each environment
        :param deterministic: whether to take the most probable action
        :param action_masks: the allowed choices; None allows all
        :return: the action, and the LSTM's state after it
        """
        with self.use_masks(None if action_masks is None else lambda: action_masks):
            return super().predict(observation, state, episode_start, deterministic)

    def _build(self, lr_schedule: Schedule) -> None:
        if isinstance(self.action_space, spaces.MultiBinary):
            # As in sb3-contrib's maskable policies, each bit is a choice of two, either of which can be masked.
            self.action_dist = MultiCategoricalDistribution(list(mask_sizes(self.action_space)))
        super()._build(lr_schedule)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi)
        if self._ask_masks is not None:
            masks = th.as_tensor(self._ask_masks(), dtype=th.bool, device=logits.device).view(-1, logits.shape[1])
            logits = mask_logits(logits, masks)
        action_dist: Any = self.action_dist
        distribution: Distribution = action_dist.proba_distribution(logits)
        return distribution

    def __getstate__(self) -> dict[str, Any]:
        # A copy that is made during a rollout is asked nothing of the environments.
        return {**vars(self), "_ask_masks": None}


class MaskableCnnLstmPolicy(MaskableLstmPolicy, CnnLstmPolicy):
    """``MaskableLstmPolicy`` for images."""


class MaskableMultiInputLstmPolicy(MaskableLstmPolicy, MultiInputLstmPolicy):
    """``MaskableLstmPolicy`` for dictionary observations."""


class MaskRecorder(MaskGuard):
    """
    The environments, of which each step's masks are asked once, and kept for the whole rollout.

    :param env: the environments behind their guard
    :param when: a function that gives the moment in words
    """

    def __init__(self, env: VecEnv, when: Callable[[], str]) -> None:
        super().__init__(env, when)
        # Of each step, (n_envs, number of choices); the last are in force if the step has not been taken yet.
        self.masks: list[np.ndarray] = []
        self._n_steps = 0

    def ask(self) -> np.ndarray:
        """
        Ask the environments for masks, once for each step.

        :return: the masks in force, (n_envs, number of choices)
        """
        if len(self.masks) == self._n_steps:
            self.masks.append(np.stack(self.env_method(METHOD)))
        return self.masks[-1]

    def step(self, actions: np.ndarray) -> Any:
        """
        Step the environments.

        :param actions: the actions, (n_envs, ...)
        :return: what the environments give
        """
        self._n_steps += 1
        return super().step(actions)


class MaskableRecurrentTRPO(MaskableTRPO, RecurrentTRPO):
    """
    Trust region policy optimization with action masks and with an LSTM in the policy.

    The arguments are those of TRPO; ``predict`` takes ``state``, ``episode_start`` and ``action_masks``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MaskableLstmPolicy,
        "CnnLstmPolicy": MaskableCnnLstmPolicy,
        "MultiInputLstmPolicy": MaskableMultiInputLstmPolicy,
    }
    rollout_buffer_classes: ClassVar[BufferClasses] = RecurrentTRPO.rollout_buffer_classes
    log_name: ClassVar[str] = "MaskableRecurrentTRPO"
    # Of the last rollout, (n_steps, n_envs, number of choices); None if it was without.
    _rollout_masks: np.ndarray | None = None

    def _run_loop(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._rollout_masks = None
        if not self._use_masking:
            return RecurrentTRPO._run_loop(self, env, callback, rollout_buffer, n_rollout_steps)
        recorder = MaskRecorder(env, lambda: f"after {self.num_timesteps} steps")
        recorder.check_support()
        collect: Any = RecurrentPPO.collect_rollouts
        with self._maskable_policy.use_masks(recorder.ask):
            is_complete = bool(collect(self, recorder, callback, rollout_buffer, n_rollout_steps))
        self._rollout_masks = np.stack(recorder.masks) if is_complete else None
        return is_complete

    @property
    def _maskable_policy(self) -> MaskableLstmPolicy:
        assert isinstance(self.policy, MaskableLstmPolicy)
        return self.policy

    def _rollout_samples(self) -> SequenceSamples:  # type: ignore[override]
        samples = RecurrentTRPO._rollout_samples(self)
        masks = self._rollout_masks
        if masks is None or masks.all():
            return samples
        rows = self.rollout_buffer.swap_and_flatten(masks)
        return samples._replace(action_masks=th.as_tensor(rows, device=self.device))

    def _action_distribution(self, samples: SequenceSamples) -> Distribution:  # type: ignore[override]
        masks = samples.action_masks
        with self._maskable_policy.use_masks(None if masks is None else lambda: masks):
            return RecurrentTRPO._action_distribution(self, samples)

    def _make_actor(self) -> Actor[Any]:
        return RecurrentTRPO._make_actor(self)

    def _make_policy(self) -> Any:
        policy = RecurrentTRPO._make_policy(self)
        if not isinstance(policy, MaskableLstmPolicy):
            raise UserError(
                f"policy is {type(policy).__name__}, but must be 'MlpLstmPolicy', 'CnnLstmPolicy', "
                "'MultiInputLstmPolicy', or a subclass of one of these."
            )
        return policy

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rollout_masks"]


allow_in_files(*MaskableRecurrentTRPO.policy_aliases.values())
