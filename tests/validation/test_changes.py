"""
What callbacks change in the middle of a training: allowed changes work, all others are named in one sentence.
"""

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import LinearSchedule
from updates import Change, changed, pendulum, state

from sb3_trpo import TRPO, GrowingHorizon
from sb3_trpo.validation.values import UserError

SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "device": "cpu", "seed": 0}
SPOILED: list[tuple[str, Any, str]] = [
    ("batch_size", 0, "an integer of at least 1"),
    ("batch_size", "a", "an integer of at least 1"),
    ("batch_size", None, "an integer of at least 1"),
    ("n_steps", 128, "must stay 64"),
    ("n_steps", 32, "must stay 64"),
    ("n_steps", 0, "an integer of at least 1"),
    ("n_steps", 2.5, "an integer of at least 1"),
    ("n_critic_updates", "x", "an integer of at least 0"),
    ("n_critic_updates", -1, "an integer of at least 0"),
    ("cg_max_steps", 0, "an integer of at least 1"),
    ("cg_damping", -1, "at least 0"),
    ("line_search_max_iter", 0, "an integer of at least 1"),
    ("line_search_shrinking_factor", 2, "above 0 and below 1"),
    ("sub_sampling_factor", 0, "an integer of at least 1"),
    ("sub_sampling_factor", 65, "at most n_steps * n_envs = 64"),
    ("fisher_chunk_size", 0, "an integer of at least 1"),
    ("normalize_advantage", None, "one of True, False"),
    ("preconditioner", "jacobi", "one of 'kfac', None"),
    ("gamma", 2, "between 0 and 1"),
    ("gae_lambda", "x", "between 0 and 1"),
    ("ent_coef", None, "at least 0"),
    ("max_grad_norm", math.nan, "above 0, or None"),
    ("target_kl", -1, "at least 0 throughout training"),
    ("target_kl", "abc", "lin_START"),
    ("target_kl", np.array([0.01, 0.02]), "at least 0 throughout training"),
    ("learning_rate", math.nan, "at least 0 throughout training"),
    ("lr_schedule", 1e-3, "a function of the remaining progress"),
    ("lr_schedule", None, "a function of the remaining progress"),
    ("use_sde", True, "must stay False"),
    ("noise_correlation", 1.0, "above -1 and below 1"),
    ("env_timeout", -1, "a number of seconds above 0"),
    ("check_env_outputs", "no", "one of True, False"),
    ("kl_scale", math.nan, "above 0"),
    ("num_timesteps", "x", "an integer"),
]


def spoil(name: str, value: Any) -> Any:
    return lambda model: setattr(model, name, value)


MOMENTS = ("on_rollout_start", "on_step", "on_rollout_end")


# One moment for each value, and all for the first.
@pytest.mark.parametrize(
    ("name", "value", "allowed", "when"),
    [
        *((*SPOILED[0], when) for when in MOMENTS),
        *((*spoiled, MOMENTS[i % 3]) for i, spoiled in enumerate(SPOILED[1:])),
    ],
)
def test_what_a_callback_spoils_is_named(name: str, value: Any, allowed: str, when: str) -> None:
    if name == "num_timesteps":
        # At the end of a rollout, SB3's loop is the next that reads it.
        when = "on_step"
    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    with pytest.raises(UserError, match=f"^{name} is .*{re.escape(allowed)}") as error:
        model.learn(256, Change(when, 65, spoil(name, value)))
    assert str(error.value).count(".\n") == 0


def test_the_policy_stays_as_it_was_and_trains_on_when_the_setting_is_mended() -> None:
    model = pendulum()
    model.train()
    before = state(model)
    model.batch_size = 0
    with pytest.raises(UserError, match=r"^batch_size is 0, but must be"):
        model.train()
    assert changed(before, state(model)) == set()
    model.batch_size = 32
    model.train()
    assert changed(before, state(model))


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("batch_size", 16, 16),
        ("batch_size", 16.0, 16),
        ("n_critic_updates", np.int64(3), 3),
        ("n_critic_updates", 0, 0),
        ("target_kl", 0, 0),
        ("target_kl", np.float32(0.5), 0.5),
        ("max_std", 0.5, 0.5),
        ("max_std", None, None),
        ("noise_correlation", 0.5, 0.5),
        ("fisher_chunk_size", 16, 16),
        ("preconditioner", None, None),
        ("gamma", 0.9, 0.9),
    ],
)
def test_allowed_changes_work(name: str, value: Any, taken: Any) -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS).learn(192, Change("on_step", 64, spoil(name, value)))
    assert getattr(model, name) == taken
    assert type(getattr(model, name)) is type(taken)
    assert model.num_timesteps == 192


def test_a_text_becomes_a_schedule() -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    model.learn(128, Change("on_step", 64, spoil("target_kl", "lin_0.02_0.01")))
    assert isinstance(model.target_kl, LinearSchedule)


def test_a_rollout_of_another_length_comes_with_its_buffer() -> None:
    def lengthen(model: TRPO) -> None:
        model.n_steps = 96
        model.rollout_buffer = RolloutBuffer(96, model.observation_space, model.action_space, device="cpu")

    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    model.learn(64 + 96 + 1, Change("on_rollout_end", 64, lambda model: None))
    lengthen(model)
    model.learn(97)
    assert model.num_timesteps == 192


def test_a_schedule_is_called_by_updates_alone() -> None:
    calls: list[float] = []

    def schedule(progress: float) -> float:
        calls.append(progress)
        return 0.01

    model = TRPO("MlpPolicy", "Pendulum-v1", target_kl=schedule, **SETTINGS)
    n_at_first = len(calls)
    model.learn(128, GrowingHorizon(0.9, 0.95))
    assert len(calls) > n_at_first
    assert 1.0 not in calls[n_at_first:]


def test_noise_that_the_policy_has_not_is_named() -> None:
    model = TRPO("MlpPolicy", "CartPole-v1", **SETTINGS)
    with pytest.raises(UserError, match=r"^noise_correlation is 0.5, but must be 0 where actions are not Gaussian"):
        model.learn(192, Change("on_step", 64, spoil("noise_correlation", 0.5)))


@pytest.mark.parametrize(("optimizer", "when"), zip([None, "Adam", 5], MOMENTS, strict=True))
def test_an_optimizer_that_is_none_is_named(optimizer: Any, when: str) -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    with pytest.raises(UserError, match=r"^The policy's optimizer is"):
        model.learn(192, Change(when, 65, lambda model: setattr(model.policy, "optimizer", optimizer)))


def test_a_training_within_a_training_is_named_and_a_copy_may_be_trained() -> None:
    copies: list[TRPO] = []

    def learn_in_callback(model: TRPO) -> None:
        copies.append(copy.deepcopy(model).learn(64))
        with pytest.raises(UserError, match=r"^learn\(\) was called while this model is being trained already"):
            model.learn(64)

    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)
    model.learn(192, Change("on_step", 70, learn_in_callback))
    assert [each.num_timesteps for each in [model, *copies]] == [192, 64]
    with pytest.raises(UserError):
        model.learn(192, Change("on_step", 70, spoil("batch_size", 0)))
    model.batch_size = 32
    model.learn(64)
