"""
Action masks as the environments give them, checked: which environment, at what step, is wrong in which way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_trpo.rollouts.loop_env import LoopEnv
from sb3_trpo.validation.values import UserError

# The environments' method, as sb3-contrib has it.
METHOD = "action_masks"


class MaskGuard(LoopEnv):
    """
    The environments as a loop sees them that asks them for masks, which are checked.

    :param env: the environments behind their guard
    :param when: a function that gives the moment in words, such as "after 10 steps"
    """

    def __init__(self, env: VecEnv, when: Callable[[], str]) -> None:
        super().__init__(env)
        self._sizes = mask_sizes(env.action_space)
        self._when = when

    def check_support(self) -> None:
        """
        Check that there are masks.

        :raises UserError: if an environment has none
        """
        if not self.venv.has_attr(METHOD):
            raise UserError(
                f"{self._who_lacks_masks()} {METHOD}() {self._when()}: add it to the environment, wrap the environment "
                "in sb3_contrib.common.wrappers.ActionMasker, or train with learn(use_masking=False)."
            )

    def _who_lacks_masks(self) -> str:
        try:
            # Not ``get_attr``: a process of SubprocVecEnv ends if its environment has no such attribute.
            has_masks = self.venv.env_method("has_wrapper_attr", METHOD)
            return f"Environment {has_masks.index(False)} of {self.num_envs} has no method"
        except Exception:
            # Environments that are not Gymnasium's may answer with anything.
            return f"One of the {self.num_envs} environments has no method"

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the environments.

        :param method_name: the method's name
        :param method_args: the method's arguments
        :param indices: the numbers of the environments; None for all
        :param method_kwargs: the method's arguments by name
        :return: the method's results; masks are checked, and come as rows of booleans
        :raises UserError: if an environment's masks are of the wrong shape, or leave no choice
        """
        results = self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        if method_name != METHOD:
            return results
        # SB3 has no public way to read what stands for environments.
        numbers = self.venv._get_indices(indices)
        return [self._checked(i, masks) for i, masks in zip(numbers, results, strict=True)]

    def _checked(self, index: int, masks: Any) -> np.ndarray:
        """
        Check the masks of an environment.

        :param index: the environment's number
        :param masks: the masks as it gave them
        :return: the masks, (number of choices,), boolean
        :raises UserError: if they are of the wrong shape or type, or leave no choice
        """
        array = np.asarray(masks)
        if array.size != sum(self._sizes) or array.dtype.kind not in "biuf":
            what = f"of shape {array.shape} and type {array.dtype}"
            self._refuse(index, f"{what}, but must be {sum(self._sizes)} booleans, one for each choice of an action")
        row = array.reshape(-1)
        if row.dtype != np.bool_ and not ((row == 0) | (row == 1)).all():
            self._refuse(index, f"{_short(row)}, but must be booleans, or 0 and 1")
        row = row.astype(np.bool_)
        if not np.logical_or.reduceat(row, np.cumsum([0, *self._sizes[:-1]])).all():
            part = "" if len(self._sizes) == 1 else " of a sub-action"
            self._refuse(index, f"all false: every choice{part} is forbidden, but one at least must be allowed")
        return row

    def _refuse(self, index: int, what: str) -> None:
        raise UserError(f"The action masks of environment {index} of {self.num_envs} {self._when()} are {what}.")


def mask_sizes(action_space: spaces.Space[Any]) -> Sequence[int]:
    """
    Count the choices of each sub-action.

    :param action_space: the action space: Discrete, MultiDiscrete or MultiBinary
    :return: the numbers of choices, in the order of the masks
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(n) for n in action_space.nvec]
    assert isinstance(action_space, spaces.MultiBinary)
    return [2] * int(np.prod(action_space.shape))


def _short(row: np.ndarray) -> str:
    return np.array2string(row, threshold=8, max_line_width=10_000)
