import io
import warnings
from typing import Any

import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from small_models import ACTION_SPACES, VECTOR, SpacesEnv
from stable_baselines3.common.distributions import kl_divergence as sb3s_kl_divergence
from stable_baselines3.common.utils import LinearSchedule
from updates import action_distributions, mean_kl

from sb3_trpo import TRPO
from sb3_trpo.saved_models.contrib import averaged_dimensions

SETTINGS: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu"}


def make_model(algorithm: Any, actions: str, **kwargs: Any) -> Any:
    return algorithm("MlpPolicy", SpacesEnv(VECTOR, ACTION_SPACES[actions]), **SETTINGS, **kwargs)


def warnings_of_load(path: Any, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TRPO.load(path, device="cpu", **kwargs)
    assert all(warning.filename == __file__ for warning in caught), "it points to the line that loads"
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("actions", "factor"), [("Box", 3), ("Box-2d", 4), ("MultiBinary", 4), ("Discrete", 1), ("MultiDiscrete", 1)]
)
def test_factor_is_that_between_the_two_divergences(actions, factor):
    model = make_model(sb3_contrib.TRPO, actions)
    policy, observations = model.policy, th.linspace(-1, 1, 15).reshape(5, 3)
    old, inner = policy.get_distribution(observations), action_distributions(policy, observations)
    theirs = type(old)(*([old.action_dims] if actions == "MultiDiscrete" else [spaces.flatdim(model.action_space)]))
    theirs.distribution = old.distribution
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
        average = float(sb3s_kl_divergence(theirs, policy.get_distribution(observations)).mean())
    assert average > 0
    assert averaged_dimensions(model.action_space) == factor
    assert mean_kl(inner, policy, observations) == pytest.approx(factor * average, rel=1e-4)


def test_the_changed_meaning_is_said_once(tmp_path):
    make_model(sb3_contrib.TRPO, "Box", target_kl=0.02).save(tmp_path / "model")
    (message,) = warnings_of_load(tmp_path / "model")
    assert "saved by sb3-contrib's TRPO" in message
    assert "multiply target_kl by 3, as in TRPO.load(..., target_kl=0.06)" in message


def test_a_target_that_is_given_needs_no_explanation(tmp_path):
    make_model(sb3_contrib.TRPO, "Box").save(tmp_path / "model")
    assert warnings_of_load(tmp_path / "model", target_kl=0.03) == []
    assert warnings_of_load(tmp_path / "model", custom_objects={"target_kl": 0.03}) == []


@pytest.mark.parametrize("actions", ["Discrete", "MultiDiscrete"])
def test_where_the_meaning_is_the_same_nothing_is_said(actions, tmp_path):
    make_model(sb3_contrib.TRPO, actions).save(tmp_path / "model")
    assert warnings_of_load(tmp_path / "model") == []


@pytest.mark.parametrize("kwargs", [{}, {"target_kl": LinearSchedule(0.02, 0.01, 1.0)}], ids=["number", "schedule"])
def test_own_models_are_loaded_without_a_warning(kwargs, tmp_path):
    make_model(TRPO, "Box", **kwargs).save(tmp_path / "model")
    assert warnings_of_load(tmp_path / "model") == []
    assert warnings_of_load(str(tmp_path / "model.zip")) == []


def test_a_model_that_was_saved_again_is_ours(tmp_path):
    make_model(sb3_contrib.TRPO, "Box").save(tmp_path / "theirs")
    TRPO.load(tmp_path / "theirs", device="cpu", target_kl=0.03).save(tmp_path / "ours")
    assert warnings_of_load(tmp_path / "ours") == []


def test_open_files_too():
    file = io.BytesIO()
    make_model(sb3_contrib.TRPO, "Box").save(file)
    file.seek(0)
    assert len(warnings_of_load(file)) == 1
    assert not file.closed
