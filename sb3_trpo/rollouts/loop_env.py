"""
What a loop that collects a rollout gets in place of the environments.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class LoopEnv(VecEnvWrapper):
    """
    The environments for the duration of a rollout: the loop gets it in their place, and nobody else sees it.

    :param env: the environments, or what stands for them already
    """

    def __init__(self, env: VecEnv) -> None:
        # Not ``VecEnvWrapper.__init__``, which asks the environments for attributes: some answer with an error.
        self.venv = env
        self.num_envs = env.num_envs
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.render_mode = getattr(env, "render_mode", None)
        self.class_attributes: dict[str, Any] = {}

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        """
        Step the environments by their own ``step``.

        :param actions: the actions, (n_envs, ...)
        :return: what they give
        """
        return self.venv.step(actions)

    def reset(self) -> VecEnvObs:
        """Reset the environments."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the environments' step."""
        return self.venv.step_wait()
