"""
Bounds on the noise: they hold, within the trust region, and move nothing else. Noise that is correlated from
step to step: each action is as it would be without, actions of neighbouring steps are alike.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from updates import action_distributions, actor_state, changed, collect, mean_kl, observations, pendulum, state

from sb3_trpo.rollouts.noise import CorrelatedNoise

DELTA = 0.2


def loud_pendulum(**kwargs: Any) -> Any:
    """Return a model for which σ = 1 is far too much: the closer to the mean an action was, the better."""
    model = pendulum(target_kl=DELTA, **kwargs)
    with th.no_grad():
        (distribution,) = action_distributions(model.policy, th.as_tensor(model.rollout_buffer.observations[:, 0]))
    actions = th.as_tensor(model.rollout_buffer.actions[:, 0])
    model.rollout_buffer.advantages[:] = -(actions - distribution.mean).square().numpy()
    return model


@pytest.mark.parametrize("min_std", [0.95, LinearSchedule(0.95, 0.5, 1.0), 1.0, 2.0])
def test_std_stays_above_its_bound_within_the_trust_region(min_std: Any) -> None:
    free = loud_pendulum()
    free.train()
    assert free.policy.log_std.exp().item() < 0.9
    bounded = loud_pendulum(min_std=min_std)
    mean = {name: value for name, value in actor_state(bounded).items() if name != "log_std"}
    obs = observations(bounded)
    old = action_distributions(bounded.policy, obs)
    bounded.train()
    assert 0.0 < mean_kl(old, bounded.policy, obs) <= DELTA
    assert changed(mean, actor_state(bounded)) >= mean.keys() - {"log_std"}
    # A bound above what σ is does not lift it, which might lead out of the trust region.
    bound = min(min_std(1.0) if callable(min_std) else min_std, 1.0)
    assert bounded.policy.log_std.exp().item() == pytest.approx(bound)


def test_a_bound_that_is_not_reached_changes_nothing() -> None:
    states = []
    for kwargs in ({}, {"min_std": 0.1}, {"max_std": 1.5}, {"min_std": 0.1, "max_std": 1.5}):
        model = pendulum(**kwargs)
        model.train()
        states.append(state(model))
    assert not any(changed(states[0], other) for other in states[1:])


@pytest.mark.parametrize("max_std", [0.9, LinearSchedule(0.9, 0.5, 1.0), 1e-3])
@pytest.mark.parametrize("min_std", [0.0, 0.95])
def test_std_comes_down_to_its_bound_in_steps_that_leave_room_in_the_trust_region(min_std: float, max_std: Any) -> None:
    model = loud_pendulum(min_std=min_std, max_std=max_std)
    # The farther from the mean an action was, the better: σ is to grow.
    model.rollout_buffer.advantages *= -1.0
    obs, bound = observations(model), max_std(1.0) if callable(max_std) else max_std
    for n_updates in range(1, 6):
        old, before = action_distributions(model.policy, obs), actor_state(model)
        model.train()
        assert 0.0 < mean_kl(old, model.policy, obs) <= DELTA
        assert changed(before, actor_state(model)) >= before.keys() - {"log_std"}
        # KL of the way down alone: (ln q)² = δ / 16.
        descent = np.exp(-n_updates * np.sqrt(DELTA / 16))
        assert model.policy.log_std.exp().item() == pytest.approx(max(bound, descent))


@pytest.mark.parametrize("delta", [2.0, 200.0])
def test_the_way_down_leaves_room_in_a_trust_region_of_any_size(delta: float) -> None:
    model = pendulum(target_kl=delta, max_std=1e-3)
    obs = observations(model)
    old = action_distributions(model.policy, obs)
    model.train()
    assert 0.0 < mean_kl(old, model.policy, obs) <= delta
    # ln σ falls by a quarter at most: by √(δ / 16), the way down alone would have a KL of 585 where δ is 200.
    assert model.policy.log_std.item() == pytest.approx(-0.25)


def test_a_std_that_is_frozen_stays_where_it_is() -> None:
    model = pendulum(max_std=0.5)
    model.policy.log_std.requires_grad_(False)
    model.train()
    assert model.policy.log_std.exp().item() == 1.0


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.5, 0.9])
def test_noise_is_standard_gaussian_with_the_correlation_asked_for(correlation: float) -> None:
    th.manual_seed(0)
    noise = CorrelatedNoise(correlation, lambda: th.randn(500, 2))
    z = np.stack([noise().numpy().copy() for _ in range(200)])
    assert z.mean() == pytest.approx(0.0, abs=0.03)
    assert z.std() == pytest.approx(1.0, abs=0.01)
    for lag in (1, 2, 5):
        assert (z[lag:] * z[:-lag]).mean() == pytest.approx(correlation**lag, abs=0.02)
    # Actions and environments are independent of each other.
    assert (z[..., 0] * z[..., 1]).mean() == pytest.approx(0.0, abs=0.02)
    assert (z[:, 1:] * z[:, :-1]).mean() == pytest.approx(0.0, abs=0.02)


def noise_of(model: Any) -> np.ndarray:
    """
    Compute the noise of a rollout's actions.

    :param model: with a rollout
    :return: (action - mean) / σ of its actions, (n_steps,)
    """
    obs = th.as_tensor(model.rollout_buffer.observations[:, 0])
    with th.no_grad():
        (distribution,) = action_distributions(model.policy, obs)
    return ((th.as_tensor(model.rollout_buffer.actions[:, 0]) - distribution.mean) / distribution.stddev).numpy()[:, 0]


def test_noise_goes_on_from_rollout_to_rollout() -> None:
    model = pendulum(noise_correlation=0.999)
    first = noise_of(model)
    collect(model)
    second = noise_of(model)
    assert np.abs(np.diff(first)).max() < 0.2
    assert abs(second[0] - first[-1]) < 0.2
    assert np.ptp(np.concatenate([first, second])) > 0.5


class Predictions(BaseCallback):
    """Samples actions for the same state at each step, for more environments than there are."""

    def _on_step(self) -> bool:
        self.actions = [*getattr(self, "actions", []), self.model.predict(np.zeros((2, 3), dtype=np.float32))[0]]
        return True


def test_predict_samples_independently_during_a_rollout_too() -> None:
    model = pendulum(noise_correlation=0.999)
    callback = Predictions()
    callback.init_callback(model)
    collect(model, callback)
    actions = np.stack(callback.actions)
    assert np.abs(np.diff(actions[..., 0], axis=0)).mean() > 0.3
    noise = noise_of(model)
    assert np.abs(np.diff(noise)).max() < 0.2


@pytest.mark.parametrize(
    ("env", "kwargs", "kind"),
    [
        ("CartPole-v1", {}, "CategoricalDistribution"),
        ("Pendulum-v1", {"use_sde": True}, "StateDependentNoiseDistribution"),
    ],
)
@pytest.mark.parametrize(("name", "none"), [("min_std", 0), ("max_std", None), ("noise_correlation", 0)])
def test_what_is_said_of_noise_is_refused_where_actions_have_none(
    env: str, kwargs: Any, kind: str, name: str, none: Any
) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 0\.5, but must be {none} .* \(they come from a {kind}\)"):
        pendulum(env=env, **{name: 0.5}, **kwargs)
