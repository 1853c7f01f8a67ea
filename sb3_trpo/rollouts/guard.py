"""
The environments as a rollout sees them: stepped, checked and watched.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_trpo.rollouts.checks import Observations, OutputChecks, innermost
from sb3_trpo.rollouts.failures import Failures, WaitingWatch, limit_waiting
from sb3_trpo.rollouts.loop_env import LoopEnv
from sb3_trpo.rollouts.shown_locals import ShowingCallback
from sb3_trpo.rollouts.statistics import EpisodeEnds
from sb3_trpo.rollouts.steps import make_step
from sb3_trpo.validation.values import UserError


class StepGuard(LoopEnv):
    """
    The user's environments for the duration of a rollout: stepped, checked, watched, and not changed.

    :param env: the training environments, with their wrappers
    :param count_steps: a function that gives the number of finished steps
    :param can_handle: a function that tells whether the policy makes finite actions and values of observations that are
        not finite
    :param checks_outputs: whether observations and rewards that are not finite are an error
    :param said: the warnings that were given already in this training
    """

    def __init__(
        self,
        env: VecEnv,
        count_steps: Callable[[], int],
        can_handle: Callable[[Observations], bool],
        checks_outputs: bool,
        said: set[str],
    ) -> None:
        super().__init__(env)
        # Whether the policy is at work, because the loop is neither in a step nor in a callback.
        self.is_acting = True
        # Whether a step has begun and not ended; if it failed, it never will.
        self.is_stepping = False
        # The episodes that have ended in this rollout.
        self.ends = EpisodeEnds()
        self._count_steps = count_steps
        self._failures = Failures(innermost(env), self._in_this_step)
        self._watch = WaitingWatch(innermost(env), self._in_this_step, said)
        self._checks = OutputChecks(env, self._after_steps, can_handle, checks_outputs)
        self._step, self.shares_infos = make_step(env, self._failures.blame, self._watch)
        # SB3's policies give choices as int64; a space of another type does not contain them.
        space = env.action_space
        has_choices = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
        self._type_of_choices = space.dtype if has_choices and space.dtype != np.int64 else None

    def _after_steps(self) -> str:
        return f"after {self._count_steps() + (self.num_envs if self.is_stepping else 0)} steps"

    def _in_this_step(self) -> str:
        return f"after {self._count_steps() + self.num_envs} steps"

    @contextlib.contextmanager
    def watch(self, timeout: float | None, obs: Observations) -> Iterator[None]:
        """
        Check the first observations, and limit and watch the waiting in the block.

        :param timeout: the seconds that an environment in another process may take; None for no limit
        :param obs: the observations that the rollout begins with
        """
        self._checks.check_reset(obs)
        with limit_waiting(innermost(self.venv), timeout), self._watch:
            yield

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        """
        Step the environments.

        :param actions: the actions, (n_envs, ...)
        :return: what ``env.step`` gives; the infos may belong to the environments (``shares_infos``)
        :raises UserError: if an action, an observation or a reward is not finite
        """
        if actions.dtype.kind == "f" and not math.isfinite(np.vdot(actions, actions)):
            self._check_actions(actions)
        elif self._type_of_choices is not None:
            actions = actions.astype(self._type_of_choices)
        self._checks.remember_statistics()
        self.is_stepping, self.is_acting = True, False
        self._watch.n_begun += 1
        try:
            obs, rewards, dones, infos = self._step(actions)
        except Exception as error:
            self._failures.explain(error)
            raise
        self._watch.n_done += 1
        self._checks.check_step(obs, rewards)
        if np.count_nonzero(dones):
            self._checks.check_ends(dones, infos)
            self.ends.note(self._watch.n_done - 1, rewards, dones, infos, self._after_steps)
        self.is_stepping, self.is_acting = False, True
        return obs, rewards, dones, infos

    def _check_actions(self, actions: np.ndarray) -> None:
        finite = np.isfinite(actions.reshape(len(actions), -1)).all(axis=1)
        if not finite.all():
            self.refuse_actions(int(np.argmin(finite)))

    def refuse_actions(self, index: int) -> NoReturn:
        """
        Raise the error that the policy makes no finite action of an environment's observation.

        :param index: the environment's number
        :raises UserError: always
        """
        raise UserError(
            f"The policy's action for environment {index} is not finite {self._after_steps()}: its observation is "
            "beyond what the network can stand. Observations of ordinary size (VecNormalize) help."
        )


class CopyingGuard(StepGuard):
    """A ``StepGuard`` for a loop that shows the infos to callbacks as they come."""

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        """
        Step the environments, and copy infos that belong to them.

        :param actions: the actions, (n_envs, ...)
        :return: what ``env.step`` gives
        """
        obs, rewards, dones, infos = super().step(actions)
        return obs, rewards, dones, copy.deepcopy(infos) if self.shares_infos else infos


class PausingCallback(BaseCallback):
    """
    A callback that shows the others the user's environments in place of the guard.

    It also tells the guard when callbacks are at work.

    :param callback: the callback that was given to ``learn``
    :param guard: the environments that the loop steps
    :param algorithm: the algorithm that collects the rollout
    """

    def __init__(self, callback: BaseCallback, guard: StepGuard, algorithm: OnPolicyAlgorithm) -> None:
        super().__init__()
        self.callback = callback
        self.algorithm = algorithm
        self.guard = guard
        self._shown = callback.callbacks[0] if isinstance(callback, ShowingCallback) else callback

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self.guard.is_acting = False
        try:
            yield
        finally:
            self.guard.is_acting = True

    def on_rollout_start(self) -> None:
        """Begin the rollout."""
        with self._pause():
            self.callback.on_rollout_start()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Show the loop's local variables."""
        with self._pause():
            self.callback.update_locals({**locals_, "env": self.guard.venv, "callback": self._shown})

    def on_step(self) -> bool:
        """Finish a step."""
        last_obs = self.algorithm._last_obs
        with self._pause():
            goes_on = self.callback.on_step()
        if self.algorithm._last_obs is None:
            # A callback has given the model other environments (set_env); SB3's loop has yet to store this step.
            self.algorithm._last_obs = last_obs
        return goes_on

    def on_rollout_end(self) -> None:
        """Finish the rollout."""
        with self._pause():
            self.callback.on_rollout_end()

    def _on_step(self) -> bool:
        return True
