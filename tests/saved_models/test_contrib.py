import importlib.util
import io
import itertools
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from small_models import ACTION_SPACES, VECTOR, SpacesEnv
from stable_baselines3.common.distributions import kl_divergence as sb3s_kl_divergence
from stable_baselines3.common.utils import LinearSchedule
from updates import action_distributions, mean_kl

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.saved_models.contrib import (
    NOT_CALLED,
    averaged_dimensions,
    kl_factor,
    own_options,
    warn_of_contribs_file,
)

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
    assert "multiply sb3-contrib's target_kl by 2.3, as in target_kl=0.047." in message


@pytest.mark.parametrize("learning_rate", [LinearSchedule(0.002, 0.0, 1.0), lambda remaining: 0.002 * remaining])
def test_schedules_are_read(learning_rate, tmp_path):
    make_model(sb3_contrib.TRPO, "Discrete", learning_rate=learning_rate).learn(128).save(tmp_path / "model")
    model = TRPO.load(tmp_path / "model", SpacesEnv(VECTOR, ACTION_SPACES["Discrete"]), device="cpu")
    assert [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0)] == [0.002, 0.001, 0.0]
    model.learn(256)
    # The second of two updates comes at the end.
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(0.0, abs=1e-9)


def test_a_target_that_was_adapted_needs_no_explanation(tmp_path):
    make_model(sb3_contrib.TRPO, "Box", target_kl=0.01).save(tmp_path / "model")
    for target_kl in (kl_factor(3) * 0.01, 0.03):
        assert warnings_of_load(tmp_path / "model", target_kl=target_kl) == []
        assert warnings_of_load(tmp_path / "model", custom_objects={"target_kl": target_kl}) == []


@pytest.mark.parametrize("target_kl", [0.01, LinearSchedule(0.02, 0.01, 1.0)])
def test_any_other_target_that_is_given_is_set_beside_the_rule(target_kl, tmp_path):
    make_model(sb3_contrib.TRPO, "Box", target_kl=0.01).save(tmp_path / "model")
    (message,) = warnings_of_load(tmp_path / "model", target_kl=target_kl)
    assert "target_kl=0.023" in message
    assert f"What is used is the given {target_kl}" in message


def test_the_rule_is_what_was_measured():
    """See benchmarks/kl_factor.py."""
    results = Path(__file__).parents[2] / "benchmarks/results"
    new, old = (json.loads((results / name).read_text()) for name in ("kl_factor.json", "kl_table.json"))
    dimensions = old["action_dimensions"] | new["action_dimensions"]
    ours = np.mean([np.mean(kl["sb3_trpo"]) for kl in old["kl"].values()])
    theirs = {task: np.mean(kl["sb3-contrib"]) for task, kl in old["kl"].items()}
    theirs |= {task: np.mean(kl) for task, kl in new["kl"].items()}
    assert len(theirs) == 9
    for task, divergence in theirs.items():
        assert kl_factor(dimensions[task]) == pytest.approx(divergence / ours, rel=0.25)


def test_the_rule_leaves_one_dimension_alone_and_grows_less_than_the_number():
    factors = [kl_factor(n) for n in range(1, 1000)]
    assert factors[0] == 1.0
    assert all(low < high for low, high in itertools.pairwise(factors))
    assert all(factor <= n for n, factor in enumerate(factors, start=1))


class Algorithm(TRPO):
    """A subclass that changes nothing of sb3-contrib's."""


@pytest.mark.parametrize("name", NOT_CALLED)
def test_overridden_methods_of_contribs_are_told_once(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        subclass = type("Subclass", (Algorithm,), {name: lambda *_: None})
        type("SubSubclass", (subclass,), {name: lambda *_: None})
    (message,) = (str(warning.message) for warning in caught)
    assert f"method {name}, which this TRPO never calls: override {NOT_CALLED[name]} instead" in message


def test_what_is_not_called_is_contribs_alone_and_what_is_named_instead_is_ours():
    for theirs, ours in NOT_CALLED.items():
        assert callable(getattr(sb3_contrib.TRPO, theirs))
        assert callable(getattr(TRPO, ours))
        for algorithm in (TRPO, MaskableTRPO, RecurrentTRPO, MaskableRecurrentTRPO):
            assert not hasattr(algorithm, theirs)


def hyperparameter_warnings(path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_contribs_file(str(path), own_options(TRPO))
    return [str(warning.message) for warning in caught]


def test_hyperparameters_of_contribs_are_told(tmp_path):
    file = tmp_path / "trpo.yml"
    file.write_text("Hopper-v5:\n  policy: MlpPolicy\n  target_kl: 0.04\n")
    (message,) = hyperparameter_warnings(file)
    assert "2.3 for 3, 3.5 for 6, 5.2 for 17 dimensions" in message
    for own in ("  min_std: 0.1\n", "# for sb3_trpo\n"):
        file.write_text(f"Hopper-v5:\n  policy: MlpPolicy\n  target_kl: 0.04\n{own}")
        assert hyperparameter_warnings(file) == []


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


# Files of old versions, and what these predicted; see README.md beside them.
OLD_FILES = sorted((Path(__file__).parent / "data").glob("*.zip"))


def load_old(path: Path, env: gym.Env | None = None) -> TRPO:
    """
    As SB3's documentation has it: what a file from before 2.0 has are spaces of the old Gym, and those of a task may
    have other bounds today. A schedule was saved as bytecode, which is of no use to another version of Python.
    """
    task = gym.make(env_of(path))
    spaces_of_task = {"observation_space": task.observation_space, "action_space": task.action_space}
    custom_objects = spaces_of_task if env is not None or "contrib-1." in path.name else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not deserialize object lr_schedule")
        # What numpy says to any file from before 2.0.
        warnings.filterwarnings("ignore", "numpy.core", DeprecationWarning)
        return TRPO.load(path, env, device="cpu", custom_objects=custom_objects)


def env_of(path: Path) -> str:
    return path.stem.split("-", maxsplit=2)[2]


@pytest.mark.parametrize("path", OLD_FILES, ids=lambda path: path.stem)
def test_old_files_act_as_they_did(path):
    model = load_old(path)
    with np.load(path.with_suffix(".npz")) as recorded:
        state = model.policy.state_dict()
        assert state.keys() == set(recorded) - {"observations", "actions"}
        for name, tensor in state.items():
            np.testing.assert_array_equal(tensor.numpy(), recorded[name])
        actions, _ = model.predict(recorded["observations"], deterministic=True)
        assert len(np.unique(actions)) > 1
        # To rounding: another processor than the one that recorded them may sum in another order.
        np.testing.assert_allclose(actions, recorded["actions"], rtol=1e-5, atol=1e-6)
    assert (model.gamma, model.batch_size, model.target_kl, model.num_timesteps) == (0.98, 64, 0.02, 256)
    assert (model.lr_schedule(1.0), model.n_critic_updates, model._n_updates) == (0.002, 2, 2)
    with zipfile.ZipFile(path) as archive:
        optimizer = th.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)
    ours = model.policy.optimizer.state_dict()
    assert ours["state"].keys() == optimizer["state"].keys() != set()
    for i, moments in optimizer["state"].items():
        assert all(th.equal(th.as_tensor(ours["state"][i][key]), th.as_tensor(moments[key])) for key in moments)
    assert ours["param_groups"][0]["lr"] == optimizer["param_groups"][0]["lr"]


@pytest.mark.parametrize("path", OLD_FILES, ids=lambda path: path.stem)
def test_old_files_go_on_training(path, tmp_path):
    model = load_old(path, gym.make(env_of(path)))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(256, reset_num_timesteps=False)
    log = model.logger.name_to_value
    assert log["train/is_line_search_success"] == 1
    assert 0 < log["train/kl_divergence_loss"] <= 0.02
    assert any(not th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())
    assert model.num_timesteps == 512
    # And from here on it is a file of the present.
    model.save(tmp_path / "saved")
    assert warnings_of_load(tmp_path / "saved") == []


def test_there_are_old_files():
    assert {path.stem.split("-")[1] for path in OLD_FILES} == {"1.4.0", "1.8.0", "2.0.0", "2.6.0"}


@pytest.mark.skipif(importlib.util.find_spec("gym") is not None, reason="the old Gym is installed")
def test_a_file_with_spaces_of_the_old_gym_says_what_to_do():
    path = next(path for path in OLD_FILES if "contrib-1.4.0" in path.name)
    with pytest.raises(ModuleNotFoundError, match=r"custom_objects=\{\"observation_space\": env.observation_space"):
        TRPO.load(path, device="cpu")
