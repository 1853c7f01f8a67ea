"""
A lower bound on the noise: it holds, within the trust region, and moves nothing else. Noise that is correlated from
step to step: each action is as it would be without, actions of neighbouring steps are alike.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from updates import action_distributions, actor_state, changed, collect, mean_kl, observations, pendulum, state

from sb3_trpo.exploration import CorrelatedNoise

DELTA = 0.2


def loud_pendulum(**kwargs: Any) -> Any:
    """
    :return: a model for which σ = 1 is far too much: the closer to the mean an action was, the better
    """
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
    for min_std in (0.0, 0.1):
        model = pendulum(min_std=min_std)
        model.train()
        states.append(state(model))
    assert not changed(*states)


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
@pytest.mark.parametrize("name", ["min_std", "noise_correlation"])
def test_what_is_said_of_noise_is_refused_where_actions_have_none(env: str, kwargs: Any, kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 0\.5, but must be 0 .* \(they come from a {kind}\)"):
        pendulum(env=env, **{name: 0.5}, **kwargs)
