"""
Collection of rollouts.
"""

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv


def collect(
    algorithm: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> bool:
    """
    :param algorithm: whose policy acts
    :param env: the training environments
    :param callback: called at each step, and at the beginning and end of the rollout
    :param rollout_buffer: to be filled
    :param n_rollout_steps: steps of each environment
    :return: whether the rollout is complete, rather than ended by the callback
    """
    return OnPolicyAlgorithm.collect_rollouts(algorithm, env, callback, rollout_buffer, n_rollout_steps)
