"""
Files of other algorithms: named, and what can be had of them is had.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from small_models import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, SpacesEnv
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.validation.values import UserError

SETTINGS: dict[str, Any] = {"n_steps": 64, "seed": 0, "device": "cpu"}
SMALL: dict[str, Any] = {"net_arch": [8]}
IMAGES: dict[str, Any] = {**SMALL, "features_extractor_kwargs": {"features_dim": 8}}


class MaskedEnv(SpacesEnv):
    """Every action is allowed."""

    def action_masks(self) -> list[bool]:
        """
        Give the mask that sb3-contrib asks for.

        :return: the mask
        """
        return [True] * 3


def weights(model: BaseAlgorithm) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(left: dict[str, th.Tensor], right: dict[str, th.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(th.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_models_of_ppo_and_a2c_become_trpos(algorithm, trusted, tmp_path):
    env = SpacesEnv(VECTOR, ACTION_SPACES["Box"])
    theirs = algorithm("MlpPolicy", env, policy_kwargs={**SMALL}, gamma=0.9, ent_coef=0.1, **SETTINGS).learn(64)
    theirs.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=rf"saved by {algorithm.__name__}: its policy, weights"):
        model = TRPO.load(tmp_path / "model", env, device="cpu", trusted=trusted)
    assert_same(weights(theirs), weights(model))
    obs = VECTOR.sample()
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (theirs, model)))
    assert (model.n_steps, model.gamma, model.target_kl, model.ent_coef) == (64, 0.9, 0.01, 0.0)
    model.learn(64)
    assert 0.0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01
    # And from then on it is a TRPO.
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRPO.load(tmp_path / "model", device="cpu", trusted=trusted)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours", "policy"),
    [
        (sb3_contrib.MaskablePPO, MaskableTRPO, "MlpPolicy"),
        (sb3_contrib.RecurrentPPO, RecurrentTRPO, "MlpLstmPolicy"),
    ],
)
def test_models_with_masks_and_with_memory_become_those_with_the_same(theirs, ours, policy, trusted, tmp_path):
    env = MaskedEnv(VECTOR, ACTION_SPACES["Discrete"])
    saved = theirs(policy, env, policy_kwargs={**SMALL}, gamma=0.9, **SETTINGS).learn(64)
    saved.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="saved by PPO: its policy, weights"):
        model = ours.load(tmp_path / "model", env, device="cpu", trusted=trusted)
    assert_same(weights(saved), weights(model))
    assert (model.n_steps, model.gamma, model.target_kl) == (64, 0.9, 0.01)
    model.learn(64)
    assert 0.0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("content", ["", "words", "policy", "optimizer", "half"])
def test_files_that_are_no_models_are_named(content, trusted, tmp_path):
    model = TRPO("MlpPolicy", SpacesEnv(VECTOR, ACTION_SPACES["Box"]), policy_kwargs={**SMALL}, **SETTINGS)
    path = tmp_path / "model.zip"
    if content == "policy":
        model.policy.save(path)
    elif content == "optimizer":
        th.save(model.policy.optimizer.state_dict(), path)
    elif content == "half":
        model.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        TRPO.load(path, device="cpu", trusted=trusted)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "policy", "actions", "named"),
    [
        (SAC, "MlpPolicy", "Box", "SAC"),
        (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", "Box", "RecurrentPPO, whose policy has a memory"),
        (sb3_contrib.MaskablePPO, "MlpPolicy", "Discrete", "MaskablePPO, whose policy takes action masks"),
    ],
)
def test_models_of_which_nothing_can_be_had_are_named(algorithm, policy, actions, named, trusted, tmp_path):
    settings = {} if algorithm is SAC else {"n_steps": 64, "batch_size": 64}
    env = MaskedEnv(VECTOR, ACTION_SPACES[actions])
    algorithm(policy, env, policy_kwargs={**SMALL}, device="cpu", **settings).save(tmp_path / "model")
    with pytest.raises(UserError, match=rf"model can't be loaded: The file holds a.*{named}.*load it with"):
        TRPO.load(tmp_path / "model", device="cpu", trusted=trusted)


OURS = {
    TRPO: "MlpPolicy",
    MaskableTRPO: "MlpPolicy",
    RecurrentTRPO: "MlpLstmPolicy",
    MaskableRecurrentTRPO: "MlpLstmPolicy",
}


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("saved", OURS)
def test_models_of_ours_are_called_by_their_own_names(saved, trusted, tmp_path):
    env = MaskedEnv(VECTOR, ACTION_SPACES["Discrete"])
    saved(OURS[saved], env, policy_kwargs={**SMALL}, batch_size=64, **SETTINGS).save(tmp_path / "model")
    for loading in OURS:
        if loading is saved:
            assert type(loading.load(tmp_path / "model", device="cpu", trusted=trusted)) is saved
        else:
            said = f"model can't be loaded: The file holds a {saved.__name__}, .*; load it with {saved.__name__}"
            with pytest.raises(UserError, match=said):
                loading.load(tmp_path / "model", device="cpu", trusted=trusted)


class OwnTRPO(TRPO):
    """A user's algorithm."""


def test_a_policy_that_is_given_decides_and_users_algorithms_are_of_their_kind(tmp_path):
    env = MaskedEnv(VECTOR, ACTION_SPACES["Discrete"])
    OwnTRPO("MlpPolicy", env, batch_size=64, **SETTINGS).save(tmp_path / "model")
    assert isinstance(TRPO.load(tmp_path / "model", device="cpu"), TRPO)
    assert isinstance(OwnTRPO.load(tmp_path / "model", device="cpu"), OwnTRPO)
    given = {"policy_class": MaskableTRPO.policy_aliases["MlpPolicy"], "rollout_buffer_class": None}
    model = MaskableTRPO.load(tmp_path / "model", env, device="cpu", custom_objects=given)
    model.learn(64)


@pytest.mark.parametrize("trusted", ["False", "no", None, 2])
def test_trust_is_yes_or_no(trusted, tmp_path):
    with pytest.raises(UserError, match=f"^trusted is {trusted!r}, but must be one of True, False"):
        TRPO.load(tmp_path / "model", trusted=trusted)


@pytest.mark.parametrize("share", [True, False])
def test_weights_of_ppo_for_images(share, tmp_path):
    env = SpacesEnv(OBSERVATION_SPACES["image"], ACTION_SPACES["Discrete"])
    teacher = PPO("CnnPolicy", env, batch_size=64, policy_kwargs=IMAGES, **SETTINGS).learn(64)
    teacher.save(tmp_path / "teacher")
    kwargs = {**IMAGES, "share_features_extractor": share}
    for source in (teacher.get_parameters(), tmp_path / "teacher"):
        model = TRPO("CnnPolicy", env, batch_size=64, policy_kwargs=kwargs, **SETTINGS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.set_parameters(source)
        assert [str(w.message) for w in caught if "begins anew" not in str(w.message)] == []
        assert len(caught) == (0 if share else 1)
        assert_same(weights(teacher), weights(model))
        model.learn(64)
        assert model.logger.name_to_value["train/kl_divergence_loss"] <= model.target_kl


@pytest.mark.parametrize("exact_match", [True, False])
@pytest.mark.parametrize("change", ["shape", "name", "object"])
def test_parameters_that_do_not_fit_change_nothing(change, exact_match):
    env = SpacesEnv(VECTOR, ACTION_SPACES["Box"])
    model = TRPO("MlpPolicy", env, batch_size=64, policy_kwargs={**SMALL}, **SETTINGS).learn(64)
    parameters = TRPO("MlpPolicy", env, batch_size=64, policy_kwargs={**SMALL}, **SETTINGS).get_parameters()
    state = parameters["policy"]
    if change == "shape":
        # The last of them.
        state["value_net.bias"] = th.zeros(7)
    elif change == "name":
        state["another"] = state.pop("value_net.bias")
        if not exact_match:
            pytest.skip("an exact match was not asked for")
    else:
        parameters["another"] = state
    before = weights(model)
    optimizer = str(model.policy.optimizer.state_dict())
    with pytest.raises(UserError, match="Nothing was changed"):
        model.set_parameters(parameters, exact_match)
    assert_same(before, weights(model))
    assert str(model.policy.optimizer.state_dict()) == optimizer


def test_moments_of_another_optimizer_begin_anew():
    env = SpacesEnv(VECTOR, ACTION_SPACES["Box"])
    teacher = A2C("MlpPolicy", env, policy_kwargs={**SMALL}, **SETTINGS).learn(64)
    model = TRPO("MlpPolicy", env, batch_size=64, policy_kwargs={**SMALL}, **SETTINGS)
    with pytest.warns(UserWarning, match="begins anew"):
        model.set_parameters(teacher.get_parameters())
    assert_same(weights(teacher), weights(model))
    model.learn(64)


def test_parameters_that_are_missing_are_told_as_sb3_tells_them() -> None:
    """There it is torch that raises a RuntimeError, which callers may catch."""
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu")
    parameters = model.get_parameters()
    parameters["policy"] = dict(list(parameters["policy"].items())[:-1])
    for kind in (RuntimeError, ValueError):
        with pytest.raises(kind, match=r"value_net\.bias.*Nothing was changed"):
            model.set_parameters(parameters, exact_match=True)
