"""
Generalised advantage estimation.
"""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer


def compute_returns_and_advantage(buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
    """
    Do what ``buffer.compute_returns_and_advantage`` does, bit for bit.

    The operations are the same, on all steps at once but for the recursion itself (Schulman et al. 2016,
    https://arxiv.org/abs/1506.02438, eq. 16).

    :param buffer: the buffer, full
    :param last_values: the values of the observations after the last step, (n_envs,)
    :param dones: whether the last step ended an episode, (n_envs,)
    """
    next_values = np.concatenate([buffer.values[1:], last_values.cpu().numpy().reshape(1, -1)])
    next_non_terminal = 1.0 - np.concatenate([buffer.episode_starts[1:], dones.astype(np.float32)[None]])
    deltas = buffer.rewards + buffer.gamma * next_values * next_non_terminal - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * next_non_terminal
    advantages = buffer.advantages
    advantages[-1] = deltas[-1]
    for step in range(len(deltas) - 2, -1, -1):
        np.multiply(decays[step], advantages[step + 1], out=advantages[step])
        advantages[step] += deltas[step]
    buffer.returns = advantages + buffer.values
