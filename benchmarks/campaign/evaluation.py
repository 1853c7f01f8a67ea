"""
Undiscounted returns of a policy, measured on environments of its own.

One forward pass serves all environments, and an environment whose episode is over starts the next one of the list at
once; none is stepped beyond its episodes, as a vectorized environment with automatic resets would be. Every episode
has a seed of its own, so that each evaluation of each policy starts from the same states.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

# Training environments count up from the run's seed; these start far from all of them.
FIRST_EVALUATION_SEED = 1_000_000

# Observations (n, *obs_shape), the episodes' numbers (n,) and the steps they are at (n,) -> actions (n, *action_shape).
Act = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def run_episodes(envs: Sequence[gym.Env], act: Act, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """
    Run one episode for each seed.

    :param envs: stepped together; any number
    :param act: the policy
    :param seeds: one for each episode
    :return: undiscounted return (n_episodes,) and length in steps (n_episodes,) of each episode
    """
    returns = np.zeros(len(seeds))
    lengths = np.zeros(len(seeds), dtype=np.int64)
    waiting = iter(range(len(seeds)))
    # Slot i: the episode and the last observation of envs[i].
    slots = {
        i: (episode, envs[i].reset(seed=seeds[episode])[0]) for i, episode in enumerate(islice(waiting, len(envs)))
    }
    while slots:
        episodes = np.array([episode for episode, _ in slots.values()])
        actions = act(np.stack([observation for _, observation in slots.values()]), episodes, lengths[episodes])
        for i, episode, action in zip(list(slots), episodes, actions, strict=True):
            observation, reward, terminated, truncated, _ = envs[i].step(action)
            returns[episode] += float(reward)
            lengths[episode] += 1
            if not (terminated or truncated):
                slots[i] = (episode, observation)
                continue
            following = next(waiting, None)
            if following is None:
                del slots[i]
            else:
                slots[i] = (following, envs[i].reset(seed=seeds[following])[0])
    return returns, lengths


def deterministic_policy(model: BaseAlgorithm) -> Act:
    """
    Make a policy of a model's most probable actions.

    :param model: acts by the mode of its distribution, on observations normalized as in training
    :return: the policy, with the normalisation's statistics as they are at each call
    """
    normalize = _normalizer(model)

    def act(observations: np.ndarray, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return model.predict(normalize(observations), deterministic=True)[0]

    return act


class GaussianNoise:
    """
    The same noise for the same step of the same episode, whatever the policy: common random numbers.

    :param n_episodes: how many episodes
    :param n_steps: the longest episode
    :param n_actions: dimension of the action space
    :param seed: another seed, other noise
    """

    def __init__(self, n_episodes: int, n_steps: int, n_actions: int, seed: int) -> None:
        shape = (n_episodes, n_steps, n_actions)
        self.values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def stochastic_policy(model: OnPolicyAlgorithm, noise: GaussianNoise) -> Act:
    """
    Make a policy of a model's actions with noise that is given.

    :param model: acts by a sample of its diagonal Gaussian, on observations normalized as in training
    :param noise: what the samples are made of, in place of a random number generator
    :return: the policy, with the normalisation's statistics as they are at each call
    """
    normalize = _normalizer(model)
    policy = model.policy
    if type(policy.action_dist) is not DiagGaussianDistribution:
        raise ValueError(f"action_dist={type(policy.action_dist).__name__} must be DiagGaussianDistribution.")
    low, high = policy.action_space.low, policy.action_space.high  # type: ignore[attr-defined]

    def act(observations: np.ndarray, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        policy.set_training_mode(False)
        with th.no_grad():
            distribution: Any = policy.get_distribution(policy.obs_to_tensor(normalize(observations))[0]).distribution
        mean, std = distribution.mean.numpy(), distribution.stddev.numpy()
        return np.clip(mean + std * noise.values[episodes, steps], low, high)

    return act


def _normalizer(model: BaseAlgorithm) -> Callable[[np.ndarray], np.ndarray]:
    normalization = model.get_vec_normalize_env()
    if normalization is None:
        return lambda observations: observations
    return normalization.normalize_obs  # type: ignore[return-value]
