"""
Beta policies: actions within the bounds, densities that are densities, and training within the trust region.
"""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch as th
from gymnasium import spaces
from small_models import OBSERVATION_SPACES, SpacesEnv
from stable_baselines3 import PPO
from torch.distributions import Beta, kl_divergence

from sb3_trpo import TRPO, BetaCnnPolicy, BetaMultiInputPolicy, BetaPolicy
from sb3_trpo.policies.distributions import BetaDistribution
from sb3_trpo.validation.values import UserError

BOUNDS = spaces.Box(np.array([-1.0, 5.0], np.float32), np.array([3.0, 6.0], np.float32))


class Target(gym.Env[np.ndarray, np.ndarray]):
    """The best action is near a corner of a space that is not centred."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = BOUNDS

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(action)
        reward = -float(np.square(action - [2.5, 5.1]).sum())
        return np.zeros(2, np.float32), reward, False, len(self.actions) % 20 == 0, {}


def model_of(**kwargs: Any) -> TRPO:
    return TRPO(BetaPolicy, Target(), n_steps=200, batch_size=100, seed=0, device="cpu", **kwargs)


def test_trains_within_bounds_and_trust_region() -> None:
    env = Target()
    model = TRPO("BetaPolicy", env, n_steps=200, n_critic_updates=2, seed=0, device="cpu", target_kl=0.05)
    rewards = []
    for _ in range(12):
        obs = th.as_tensor(np.zeros((1, 2), np.float32))
        before = model.policy.get_distribution(obs).distribution
        before = Beta(before.concentration1.detach(), before.concentration0.detach())
        model.learn(200, reset_num_timesteps=False)
        after = model.policy.get_distribution(obs).distribution
        kl = float(kl_divergence(before, after).sum().detach())
        assert kl <= 0.05 * (1 + 1e-3)
        assert kl == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], rel=1e-2)
        rewards.append(model.rollout_buffer.rewards.mean())
    assert rewards[-1] > 0.5 * rewards[0]
    actions = np.stack(env.actions)
    assert all(map(BOUNDS.contains, env.actions))
    # They use the space: none is piled up on a bound, as clipped ones are.
    assert len(np.unique(actions)) > 0.9 * actions.size


def test_loaded_policy_is_the_saved_one() -> None:
    model = model_of().learn(200)
    obs = np.array([0.5, -0.5], np.float32)
    action, _ = model.predict(obs, deterministic=True)
    assert BOUNDS.contains(action)
    file = io.BytesIO()
    model.save(file)
    for trusted in (True, False):
        file.seek(0)
        loaded = TRPO.load(file, env=Target(), device="cpu", trusted=trusted)
        assert type(loaded.policy) is BetaPolicy
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], action)
        loaded.learn(200)


def test_other_algorithms_take_it() -> None:
    PPO(BetaPolicy, Target(), n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(128)


@pytest.mark.parametrize(("name", "policy"), [("image", BetaCnnPolicy), ("Dict", BetaMultiInputPolicy)])
def test_images_and_dictionaries(name: str, policy: type[Any]) -> None:
    env = SpacesEnv(OBSERVATION_SPACES[name], BOUNDS)
    TRPO(policy, env, n_steps=64, batch_size=32, n_critic_updates=1, device="cpu").learn(128)


def test_density_and_entropy_are_those_on_the_interval_from_minus_one_to_one() -> None:
    distribution = BetaDistribution(1).proba_distribution(th.tensor([[0.3, -0.7]], dtype=th.float64))
    alpha, beta = (
        float(x) for x in (distribution.distribution.concentration1, distribution.distribution.concentration0)
    )
    expected = scipy.stats.beta(alpha, beta, loc=-1.0, scale=2.0)
    for action in (-0.9, 0.0, 0.6):
        log_prob = float(distribution.log_prob(th.tensor([[action]], dtype=th.float64)))
        assert log_prob == pytest.approx(expected.logpdf(action))
    assert float(distribution.entropy()) == pytest.approx(expected.entropy())
    mode = float(distribution.mode())
    assert expected.logpdf(mode) >= max(expected.logpdf(mode + 1e-3), expected.logpdf(mode - 1e-3))


def test_several_dimensions_are_independent() -> None:
    outputs = th.tensor([[0.3, 1.0, -0.7, 2.0]])
    both = BetaDistribution(2).proba_distribution(outputs)
    each = [BetaDistribution(1).proba_distribution(outputs[:, i::2]) for i in range(2)]
    actions = th.tensor([[0.2, -0.4]])
    th.testing.assert_close(both.log_prob(actions), sum(d.log_prob(actions[:, i : i + 1]) for i, d in enumerate(each)))
    th.testing.assert_close(both.entropy(), sum(d.entropy() for d in each))


@pytest.mark.parametrize("output", [-200.0, -30.0, 30.0, 1e4])
def test_extreme_outputs_give_finite_numbers(output: float) -> None:
    distribution = BetaDistribution(1).proba_distribution(th.tensor([[output, output]], requires_grad=True))
    assert float(distribution.mode()) == pytest.approx(0.0, abs=1e-6)
    for action in (-1.0, 0.0, 1.0):
        log_prob = distribution.log_prob(th.tensor([[action]]))
        assert log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), {}, "finite bounds"),
        (spaces.Discrete(3), {}, "finite bounds"),
        (spaces.Box(0, 9, (2,), np.int64), {}, "real numbers"),
        (BOUNDS, {"use_sde": True}, "use_sde is True"),
    ],
)
def test_what_has_no_beta_distribution_is_refused(space: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BetaPolicy(OBSERVATION_SPACES["float32"], space, lambda _: 1e-3, **kwargs)
