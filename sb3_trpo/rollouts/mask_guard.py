"""
Action masks as the environments give them, checked: which environment, at what step, is wrong in which way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_trpo.rollouts.checks import innermost
from sb3_trpo.rollouts.failures import Failures
from sb3_trpo.rollouts.loop_env import LoopEnv
from sb3_trpo.validation.values import UserError, short

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
        if method_name != METHOD:
            return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        try:
            results = self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        except Exception as error:
            Failures(innermost(self.venv), self._when).explain(error)
            raise
        # SB3 has no public way to read what stands for environments.
        numbers = self.venv._get_indices(indices)
        return [self._checked(i, masks) for i, masks in zip(numbers, results, strict=True)]

    def _checked(self, index: int, masks: Any) -> np.ndarray:
        whose = f"The action masks of environment {index} of {self.num_envs} {self._when()}"
        return check_masks(masks, self._sizes, 1, whose).reshape(-1)


def check_masks(masks: Any, sizes: Sequence[int], n: int, whose: str) -> np.ndarray:
    """
    Check masks.

    :param masks: the masks of n actions
    :param sizes: the number of choices of each sub-action, from ``mask_sizes``
    :param n: the number of actions
    :param whose: whose they are, as the beginning of a sentence
    :return: the masks, (n, number of choices), boolean
    :raises UserError: if they are of the wrong shape or type, or leave no choice
    """
    try:
        array = np.asarray(masks)
    except ValueError:
        # Lists of different lengths, as one for each sub-action.
        raise UserError(f"{whose} are {short(masks)}, but must be one row of booleans: np.concatenate them.") from None
    if array.size != n * sum(sizes) or array.dtype.kind not in "biuf":
        what = f"of shape {array.shape} and type {array.dtype}"
        each = "one for each choice of an action"
        raise UserError(f"{whose} are {what}, but must be {n * sum(sizes)} booleans, {each}.")
    rows = array.reshape(n, -1)
    if rows.dtype != np.bool_ and not ((rows == 0) | (rows == 1)).all():
        shown = np.array2string(rows.reshape(-1), threshold=8, max_line_width=10_000)
        raise UserError(f"{whose} are {shown}, but must be booleans, or 0 and 1.")
    rows = rows.astype(np.bool_)
    if not np.logical_or.reduceat(rows, np.cumsum([0, *sizes[:-1]]), axis=1).all():
        part = "" if len(sizes) == 1 else " of a sub-action"
        raise UserError(f"{whose} are all false: every choice{part} is forbidden, but one at least must be allowed.")
    return rows


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
