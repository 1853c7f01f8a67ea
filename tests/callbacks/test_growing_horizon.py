"""
A discount factor that grows: from where to where, by what steps, and that it is the one that advantages are made with.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from updates import changed, state

from sb3_trpo import TRPO
from sb3_trpo.callbacks.growing_horizon import GrowingHorizon
from sb3_trpo.checkpoints import Checkpoint

N_STEPS = 64
KWARGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 64, "seed": 0, "device": "cpu"}


def make_model(algorithm: Any = TRPO, **kwargs: Any) -> Any:
    return algorithm("MlpPolicy", make_vec_env("Pendulum-v1", 1, seed=0), **KWARGS, **kwargs)


class Recorder(BaseCallback):
    """Keeps each rollout's discount factor, and whether its advantages are those that this factor gives."""

    def __init__(self) -> None:
        super().__init__()
        self.gammas: list[float] = []
        self.residuals: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = model.rollout_buffer
        self.gammas.append(model.gamma)
        # With λ = 0 an advantage is a temporal-difference error. No episode ends here within the first 64 steps.
        values = buffer.values[:, 0]
        errors = buffer.rewards[:-1, 0] + model.gamma * values[1:] - values[:-1]
        self.residuals.append(float(np.abs(buffer.advantages[:-1, 0] - errors).max()))


@pytest.mark.parametrize("algorithm", [TRPO, PPO])
def test_the_horizon_grows_by_the_same_factor_at_each_update(algorithm: Any) -> None:
    model, recorder = make_model(algorithm), Recorder()
    model.learn(10 * N_STEPS, [GrowingHorizon(0.9, 0.99), recorder])
    horizons = 1.0 / (1.0 - np.array(recorder.gammas))
    # The tenth rollout begins when a tenth is left.
    np.testing.assert_allclose(horizons, 10.0 * 10.0 ** np.linspace(0.0, 0.9, 10), rtol=1e-6)


def test_advantages_are_made_with_it() -> None:
    model, recorder = make_model(gae_lambda=0.0), Recorder()
    model.learn(3 * N_STEPS, [GrowingHorizon(0.5, 0.99), recorder])
    assert len(set(recorder.gammas)) == 3
    assert max(recorder.residuals) < 1e-4


def test_one_that_does_not_grow_is_a_constant() -> None:
    plain = make_model(gamma=0.97).learn(3 * N_STEPS)
    constant = make_model(gamma=0.5).learn(3 * N_STEPS, GrowingHorizon(0.97, 0.97))
    assert constant.gamma == pytest.approx(0.97)
    for a, b in zip(plain.policy.parameters(), constant.policy.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-4, atol=1e-6)


def test_steps_beyond_those_asked_for_have_the_last_value() -> None:
    model = make_model()
    callback = GrowingHorizon(0.9, 0.99)
    model.learn(N_STEPS, callback)
    model._current_progress_remaining = -0.5
    callback.on_rollout_start()
    assert model.gamma == pytest.approx(0.99)


def test_it_is_logged() -> None:
    model = make_model()
    callback = GrowingHorizon(0.9, 0.99)
    model.learn(N_STEPS, callback)
    callback.on_rollout_start()
    assert model.logger.name_to_value["train/gamma"] == model.gamma


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole = make_model()
    whole.learn(6 * N_STEPS, GrowingHorizon(0.9, 0.99))
    stopped = make_model()
    # An episode of Pendulum ends after 200 steps, within the fourth rollout.
    checkpoint, stopper = Checkpoint(tmp_path / "checkpoint.zip", every=1), StopTrainingOnMaxEpisodes(1)
    stopped.learn(6 * N_STEPS, [GrowingHorizon(0.9, 0.99), checkpoint, stopper])
    assert stopped.num_timesteps < 6 * N_STEPS
    checkpoint = Checkpoint(tmp_path / "checkpoint.zip", every=1)
    resumed = checkpoint.load(make_vec_env("Pendulum-v1", 1, seed=0))
    resumed.learn(6 * N_STEPS, [GrowingHorizon(0.9, 0.99), checkpoint])
    assert resumed.gamma == whole.gamma
    assert not changed(state(whole), state(resumed))


def test_an_algorithm_without_rollouts_is_refused() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=1, buffer_size=100)
    with pytest.raises(ValueError, match=r"for on-policy algorithms, .* but was given to a DQN"):
        model.learn(10, GrowingHorizon())


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_what_is_no_discount_factor_below_1_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"start is {value}, but must be at least 0 and below 1"):
        GrowingHorizon(start=value)


@pytest.mark.parametrize("value", [0.89, 1.0, float("nan")])
def test_a_horizon_that_shrinks_or_has_no_end_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"end is {value}, but must be at least start \(0\.9\) and below 1"):
        GrowingHorizon(start=0.9, end=value)
