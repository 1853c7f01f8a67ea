"""
Saved models: what is loaded acts as what was saved, and goes on training as it would have; sb3-contrib's files too.
"""

import base64
import io
import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from small_models import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    VECTOR,
    Extractor,
    SpacesEnv,
    TwoHeadsPolicy,
    policy_for,
)
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.validation.values import UserError

N_STEPS = 64
BOX = ACTION_SPACES["Box"]
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}


def kind(observations: str, actions: str, policy: Any = None, policy_kwargs: dict | None = None, **kwargs: Any) -> Any:
    """Return observation space, action space, policy, its arguments, and further ones of the algorithm."""
    observation_space = OBSERVATION_SPACES[observations]
    alias, small = policy_for(observation_space)
    small = small if policy is None else {}
    return observation_space, ACTION_SPACES[actions], policy or alias, {**small, **(policy_kwargs or {})}, kwargs


KINDS = {
    "Box": kind("float32", "Box"),
    "Discrete": kind("Discrete", "Discrete"),
    "MultiDiscrete": kind("float64-2d", "MultiDiscrete"),
    "MultiBinary": kind("MultiBinary", "MultiBinary"),
    "gSDE": kind("float32", "Box", policy_kwargs={"squash_output": True}, use_sde=True, sde_sample_freq=4),
    "images": kind("image", "Discrete"),
    "images, shared features": kind("image", "Box", policy_kwargs={"share_features_extractor": True}),
    "Dict": kind("Dict", "Box"),
    "own features extractor": kind(
        "float32",
        "Box",
        policy_kwargs={"features_extractor_class": Extractor, "features_extractor_kwargs": {"layer": "batch-norm"}},
    ),
    "own policy": kind("float32", "Box", policy=TwoHeadsPolicy),
    "schedules": kind(
        "float32", "Box", learning_rate=LinearSchedule(1e-3, 0.0, 1.0), target_kl=LinearSchedule(0.02, 0.01, 1.0)
    ),
    "every option": kind(
        "float32",
        "Box",
        cg_warm_start=True,
        adaptive_kl=True,
        ent_coef=0.01,
        max_grad_norm=0.5,
        fisher_chunk_size=40,
        sub_sampling_factor=2,
        cg_residual_tol=0.05,
        cg_progress_tol=0.02,
        preconditioner=None,
        min_std=0.1,
        max_std=0.9,
    ),
}


def make_env(observation_space: Any, action_space: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: SpacesEnv(observation_space, action_space)] * 2)


@pytest.fixture(params=KINDS.values(), ids=KINDS, scope="module")
def trained(request):
    observation_space, action_space, policy, policy_kwargs, kwargs = request.param
    env = make_env(observation_space, action_space)
    model = TRPO(policy, env, policy_kwargs=policy_kwargs, **SETTINGS, **kwargs)
    return model.learn(2 * 2 * N_STEPS)


def observations_of(model: BaseAlgorithm, n: int = 20) -> Any:
    space = model.observation_space
    samples = [space.sample() for _ in range(n)]
    if isinstance(samples[0], dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return np.stack(samples)


def sample_actions(model: TRPO, observations: Any) -> np.ndarray:
    set_random_seed(3)
    if model.use_sde:
        # The noise matrix is drawn anew at each rollout, and is not saved.
        model.policy.reset_noise()
    return model.predict(observations)[0]


def weights(model: BaseAlgorithm) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(left: dict[str, th.Tensor], right: dict[str, th.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not th.equal(left[name], right[name])] == []


def continue_training(model: TRPO) -> dict[str, th.Tensor]:
    """Return the weights after two more updates, from a fresh environment and seed."""
    set_random_seed(7)
    model.set_env(make_env(model.observation_space, model.action_space))
    model.get_env().seed(7)
    model.learn(2 * 2 * N_STEPS, reset_num_timesteps=False)
    return weights(model)


def test_loaded_model_is_the_saved_one(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert type(loaded.policy) is type(trained.policy)
    assert_same(weights(trained), weights(loaded))
    observations = observations_of(trained)
    np.testing.assert_array_equal(
        trained.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    np.testing.assert_array_equal(*(sample_actions(model, observations) for model in (trained, loaded)))
    assert (loaded.num_timesteps, loaded._n_updates) == (trained.num_timesteps, trained._n_updates)
    for name in ("target_kl", "cg_damping", "preconditioner", "adaptive_kl", "fisher_chunk_size", "ent_coef"):
        assert str(getattr(loaded, name)) == str(getattr(trained, name))


def test_training_goes_on_as_if_it_had_not_been_interrupted(trained, tmp_path):
    # From a file on both sides, for the fixture's model must stay as it is.
    trained.save(tmp_path / "first")
    uninterrupted = TRPO.load(
        tmp_path / "first", make_env(trained.observation_space, trained.action_space), device="cpu"
    )
    continue_training(uninterrupted)
    uninterrupted.save(tmp_path / "second")
    env = make_env(trained.observation_space, trained.action_space)
    interrupted = TRPO.load(tmp_path / "second", env, device="cpu")
    before = weights(interrupted)
    after = continue_training(interrupted)
    assert_same(continue_training(uninterrupted), after)
    assert any(not th.equal(before[name], after[name]) for name in before)
    assert interrupted.num_timesteps == trained.num_timesteps + 2 * 2 * 2 * N_STEPS
    assert interrupted._n_updates == trained._n_updates + 4


def test_policy_can_be_saved_alone(trained, tmp_path):
    trained.policy.save(tmp_path / "policy.pth")
    loaded = type(trained.policy).load(tmp_path / "policy.pth", device="cpu")
    assert_same(trained.policy.state_dict(), loaded.state_dict())
    assert loaded.share_features_extractor == trained.policy.share_features_extractor
    observations = observations_of(trained)
    np.testing.assert_array_equal(
        trained.policy.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )


def test_parameters_go_from_one_model_to_another(trained, tmp_path):
    trained.save(tmp_path / "model")
    other = TRPO.load(tmp_path / "model", device="cpu")
    with th.no_grad():
        for parameter in other.policy.parameters():
            parameter.add_(1.0)
    other.set_parameters(trained.get_parameters())
    assert_same(weights(trained), weights(other))
    assert {"policy", "policy.optimizer"} <= trained.get_parameters().keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": "mps"}, "device is 'mps', but must be"),
        ({"device": "meta"}, "device is 'meta', but must be"),
        ({"device": "no such"}, "device is 'no such', but must be"),
        ({"custom_objects": "x"}, "custom_objects is 'x', but must be a dictionary"),
        ({"custom_objects": [1]}, r"custom_objects is \[1\], but must be a dictionary"),
        ({"custom_objects": {"policy_class": "MlpPolicy"}}, "policy_class is 'MlpPolicy', but must be a class"),
        ({"custom_objects": {"use_sde": True}}, "use_sde is True, but must be False for actions that are Discrete"),
        ({"use_sde": True}, "use_sde is True, but must be False"),
    ],
)
def test_arguments_of_load_that_are_not_allowed_are_named(arguments, said, tmp_path):
    TRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu").save(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        TRPO.load(tmp_path / "model", **{"device": "cpu", **arguments})


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_device_that_torch_does_not_find_is_named_when_the_model_is_made(device):
    with pytest.raises(UserError, match=f"device is '{device}', but must be"):
        TRPO("MlpPolicy", "CartPole-v1", device=device)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda own: None, "load_path_or_dict is None"),
        (lambda own: {"policy": None}, "parameters of 'policy' are None, but must be a state dictionary"),
        (
            lambda own: {"policy": {k: v.numpy() for k, v in own["policy"].items()}},
            "'action_net.bias' is .*be a tensor",
        ),
    ],
)
def test_parameters_that_are_none_are_named_and_nothing_is_changed(given, said):
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu")
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    with pytest.raises(UserError, match=said):
        model.set_parameters(given(model.get_parameters()), exact_match=False)
    assert_same(before, weights(model))


def test_a_module_may_keep_something_else_than_tensors():
    class Extra(th.nn.Flatten):
        def get_extra_state(self):
            return {"note": "mine"}

        def set_extra_state(self, state):
            self.note = state["note"]

    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu")
    model.policy.extra = Extra()
    model.set_parameters(model.get_parameters())
    assert model.policy.extra.note == "mine"


def test_saved_file_holds_no_code(trained, tmp_path):
    """A function is saved as bytecode, which another version of Python may not be able to read."""
    trained.save(tmp_path / "model.zip")
    assert code_in(tmp_path / "model.zip") == set()


def test_inspection_finds_code(tmp_path):
    model = TRPO("MlpPolicy", SpacesEnv(VECTOR, BOX), learning_rate=lambda remaining: 1e-3 * remaining, **SETTINGS)
    model.save(tmp_path / "model.zip")
    assert "learning_rate" in code_in(tmp_path / "model.zip")


def code_in(path: Path) -> set[str]:
    """
    Find what a model holds as code.

    :param path: a saved model
    :return: the attributes that are saved as code rather than by the name of a class or function
    """
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
        for name in archive.namelist():
            if name.endswith(".pth"):
                # What torch reads with weights_only holds tensors and plain containers.
                th.load(io.BytesIO(archive.read(name)), weights_only=True)
    serialized = {name: item[":serialized:"] for name, item in data.items() if ":serialized:" in str(item)}
    assert "policy_class" in serialized
    return {name for name, item in serialized.items() if set(_strings(item)) & {"_make_function", "CodeType"}}


def _strings(serialized: str) -> Iterator[str]:
    for _, argument, _ in pickletools.genops(base64.b64decode(serialized)):
        if isinstance(argument, str):
            yield from argument.split()


# sb3-contrib's files: what its own TRPO can train.
CONTRIB_KINDS = {
    name: KINDS[name] for name in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "gSDE", "images", "Dict")
}


@pytest.fixture(params=CONTRIB_KINDS.values(), ids=CONTRIB_KINDS, scope="module")
def contrib(request, tmp_path_factory):
    observation_space, action_space, policy, policy_kwargs, kwargs = request.param
    env = make_env(observation_space, action_space)
    model = sb3_contrib.TRPO(policy, env, policy_kwargs=policy_kwargs, **SETTINGS, **kwargs).learn(2 * N_STEPS)
    path = tmp_path_factory.mktemp("contrib") / "model.zip"
    model.save(path)
    return model, path


def test_contribs_model_acts_the_same(contrib):
    theirs, path = contrib
    ours = TRPO.load(path, device="cpu")
    assert_same(weights(theirs), weights(ours))
    observations = observations_of(theirs)
    np.testing.assert_array_equal(
        theirs.predict(observations, deterministic=True)[0], ours.predict(observations, deterministic=True)[0]
    )
    for name in ("learning_rate", "n_steps", "gamma", "target_kl", "cg_max_steps", "cg_damping", "n_critic_updates"):
        assert getattr(ours, name) == getattr(theirs, name)
    theirs_state, ours_state = (model.policy.optimizer.state_dict()["state"] for model in (theirs, ours))
    assert theirs_state.keys() == ours_state.keys()
    assert all(th.equal(theirs_state[i]["exp_avg"], ours_state[i]["exp_avg"]) for i in theirs_state)


def test_contribs_model_goes_on_training(contrib):
    theirs, path = contrib
    ours = TRPO.load(path, make_env(theirs.observation_space, theirs.action_space), device="cpu")
    before = weights(ours)
    after = continue_training(ours)
    assert any(not th.equal(before[name], after[name]) for name in before)
    log = ours.logger.name_to_value
    assert log["train/is_line_search_success"] == 1
    assert 0 < log["train/kl_divergence_loss"] <= ours.target_kl
    assert ours.num_timesteps == theirs.num_timesteps + 2 * 2 * N_STEPS


def test_model_that_was_continued_from_contribs_can_be_saved(contrib, tmp_path):
    theirs, path = contrib
    ours = TRPO.load(path, make_env(theirs.observation_space, theirs.action_space), device="cpu")
    continue_training(ours)
    ours.save(tmp_path / "ours")
    assert_same(weights(ours), weights(TRPO.load(tmp_path / "ours", device="cpu")))


def test_arguments_can_be_changed_when_loading(tmp_path):
    TRPO("MlpPolicy", SpacesEnv(VECTOR, BOX), **SETTINGS).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=SpacesEnv(VECTOR, BOX), target_kl=0.001, cg_damping=0.5, device="cpu")
    loaded.learn(N_STEPS)
    assert loaded.cg_damping == 0.5
    assert loaded.logger.name_to_value["train/target_kl"] == 0.001
    assert loaded.logger.name_to_value["train/kl_divergence_loss"] <= 0.001


def test_adapted_trust_region_is_saved(tmp_path):
    model = TRPO("MlpPolicy", SpacesEnv(VECTOR, BOX), adaptive_kl=True, **SETTINGS)
    model.kl_scale = 1.5
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", device="cpu").kl_scale == 1.5


def test_training_goes_on_in_another_environment():
    model = TRPO("MlpPolicy", make_env(VECTOR, BOX), **SETTINGS).learn(2 * N_STEPS)
    model.set_env(make_env(VECTOR, BOX))
    model.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * 2 * N_STEPS
    model.learn(2 * N_STEPS)
    assert model.num_timesteps == 2 * N_STEPS
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(make_env(OBSERVATION_SPACES["unbounded"], BOX))


def test_loaded_model_can_be_evaluated(trained, tmp_path):
    trained.save(tmp_path / "model")
    env = make_env(trained.observation_space, trained.action_space)
    mean, _ = evaluate_policy(TRPO.load(tmp_path / "model", device="cpu"), env, n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)
