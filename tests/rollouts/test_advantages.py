"""
Advantages against SB3's own, bit for bit, and against their definition.
"""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.rollouts.advantages import compute_returns_and_advantage


def make_buffer(n_steps: int, n_envs: int, gamma: float, gae_lambda: float, seed: int, share_of_ends: float):
    """Return a full buffer, the values after it, and whether its last steps ended their episodes."""
    box = spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(n_steps, box, box, n_envs=n_envs, gamma=gamma, gae_lambda=gae_lambda)
    random = np.random.default_rng(seed)
    buffer.rewards[:] = 10 * random.normal(size=buffer.rewards.shape)
    buffer.values[:] = 100 * random.normal(size=buffer.values.shape)
    buffer.episode_starts[:] = random.random(buffer.episode_starts.shape) < share_of_ends
    last_values = th.from_numpy(random.normal(size=(n_envs, 1)).astype(np.float32))
    return buffer, last_values, random.random(n_envs) < share_of_ends


@settings(deadline=None, max_examples=50)
@given(
    n_steps=st.integers(1, 40),
    n_envs=st.integers(1, 5),
    gamma=st.sampled_from([0.0, 0.9, 0.99, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 1000),
    share_of_ends=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_same_as_in_sb3_bit_for_bit(n_steps, n_envs, gamma, gae_lambda, seed, share_of_ends) -> None:
    arguments = (n_steps, n_envs, gamma, gae_lambda, seed, share_of_ends)
    (ours, last_values, dones), (theirs, *_) = make_buffer(*arguments), make_buffer(*arguments)
    compute_returns_and_advantage(ours, last_values, dones)
    theirs.compute_returns_and_advantage(last_values, dones)
    np.testing.assert_array_equal(ours.advantages, theirs.advantages)
    np.testing.assert_array_equal(ours.returns, theirs.returns)
    assert ours.advantages.dtype == ours.returns.dtype == np.float32


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_the_definition(gae_lambda) -> None:
    """Σ (γλ)^k δ_{t+k} to the end of the episode."""
    gamma = 0.9
    buffer, last_values, _ = make_buffer(12, 1, gamma, gae_lambda, 0, 0.0)
    buffer.episode_starts[5] = 1.0
    compute_returns_and_advantage(buffer, last_values, np.array([False]))
    values = np.append(buffer.values[:, 0], last_values.numpy())
    values_after = np.where(np.arange(1, 13) == 5, 0.0, values[1:])
    deltas = buffer.rewards[:, 0] + gamma * values_after - values[:-1]
    for start, stop in ((0, 5), (5, 12)):
        for t in range(start, stop):
            expected = sum((gamma * gae_lambda) ** k * deltas[t + k] for k in range(stop - t))
            assert buffer.advantages[t, 0] == pytest.approx(expected, rel=1e-4)
