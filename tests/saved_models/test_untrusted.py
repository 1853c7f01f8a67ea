"""
Models from strangers: what TRPO saves with built-in parts loads and acts the same; all else is refused, and nothing of
it runs, hangs or takes memory.
"""

import enum
import io
import itertools
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
import hostile
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from small_models import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, Extractor, SpacesEnv, TwoHeadsPolicy, policy_for
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule, constant_fn, get_linear_fn

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.saved_models.objects import read_object
from sb3_trpo.saved_models.pickle_reader import read_pickle
from sb3_trpo.saved_models.refused import RefusedModelError

LOAD_HOSTILE = pathlib.Path(__file__).with_name("load_hostile.py")
BOX = ACTION_SPACES["Box"]
SETTINGS: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
OPTIONS: dict[str, dict[str, Any]] = {
    "gSDE": {"use_sde": True, "policy_kwargs": {"squash_output": True, "net_arch": [8]}},
    "schedules": {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "target_kl": LinearSchedule(0.02, 0.01, 1.0)},
    "schedule of the noise": {"min_std": LinearSchedule(0.3, 0.1, 1.0), "max_std": LinearSchedule(0.9, 0.1, 1.0)},
    "own optimizer": {"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.9}}},
    "own network": {"policy_kwargs": {"activation_fn": th.nn.ReLU, "net_arch": {"pi": [8], "vf": [4, 4]}}},
    "warm start": {"cg_warm_start": True, "adaptive_kl": True},
}


def trained(algorithm: Any, observation_space: spaces.Space, action_space: spaces.Space, **kwargs: Any) -> Any:
    policy, policy_kwargs = policy_for(observation_space)
    options = {"policy_kwargs": policy_kwargs, **SETTINGS, **kwargs}
    return algorithm(policy, SpacesEnv(observation_space, action_space), **options).learn(128)


def assert_acts_the_same(model: Any, path: Any, **given: Any) -> TRPO:
    loaded = TRPO.load(path, device="cpu", trusted=False, **given)
    assert model.policy.state_dict().keys() == loaded.policy.state_dict().keys()
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, loaded.policy.state_dict()[name])
    assert (loaded.observation_space, loaded.action_space) == (model.observation_space, model.action_space)
    for _ in range(5):
        obs = model.observation_space.sample()
        actions = [m.predict(obs, deterministic=True)[0] for m in (model, loaded)]
        np.testing.assert_array_equal(*actions)
    assert loaded.num_timesteps == model.num_timesteps
    return loaded


@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
@pytest.mark.parametrize("actions", ["Box", "MultiDiscrete"])
def test_models_of_every_space_load(observations, actions, tmp_path):
    model = trained(TRPO, OBSERVATION_SPACES[observations], ACTION_SPACES[actions])
    model.save(tmp_path / "model")
    assert_acts_the_same(model, tmp_path / "model")


@pytest.mark.parametrize("actions", ["Discrete", "MultiBinary", "Box-2d"])
def test_models_of_other_actions_load(actions, tmp_path):
    model = trained(TRPO, VECTOR, ACTION_SPACES[actions])
    model.save(tmp_path / "model")
    assert_acts_the_same(model, str(tmp_path / "model"))


@pytest.mark.parametrize("kwargs", OPTIONS.values(), ids=OPTIONS)
def test_models_with_options_load_and_go_on_training(kwargs):
    model = trained(TRPO, VECTOR, BOX, **kwargs)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = assert_acts_the_same(model, file)
    for name in ("kl_scale", "cg_damping", "n_steps", "_n_updates"):
        assert getattr(loaded, name) == getattr(model, name)
    assert th.equal(loaded.cg_direction, model.cg_direction)
    assert str(loaded.lr_schedule) == str(model.lr_schedule)
    optimizers = [m.policy.optimizer.state_dict() for m in (model, loaded)]
    assert str(optimizers[0]) == str(optimizers[1])
    before = th.cat([parameter.detach().flatten() for parameter in loaded.policy.parameters()])
    loaded.set_env(SpacesEnv(VECTOR, BOX))
    loaded.learn(128, reset_num_timesteps=False)
    assert not th.equal(before, th.cat([parameter.detach().flatten() for parameter in loaded.policy.parameters()]))


def test_contribs_models_load(tmp_path):
    model = trained(sb3_contrib.TRPO, VECTOR, BOX)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="saved by sb3-contrib"):
        assert_acts_the_same(model, tmp_path / "model")


def test_a_real_task(tmp_path):
    model = TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS).learn(128)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=gym.make("Pendulum-v1"), trusted=False, n_steps=64, device="cpu")
    loaded.learn(64)
    assert loaded.n_steps == 64


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        (
            {"policy_kwargs": {"features_extractor_class": Extractor}},
            "'policy_kwargs': it holds small_models.Extractor",
        ),
        ({"policy": TwoHeadsPolicy}, "'policy_class': it holds small_models.TwoHeadsPolicy"),
        ({"learning_rate": lambda remaining: 1e-3 * remaining}, r"'learning_rate': it holds cloudpickle\..*_function"),
    ],
)
def test_what_is_not_built_in_is_named_and_can_be_given(kwargs, named, tmp_path):
    if "policy_kwargs" in kwargs:
        kwargs["policy_kwargs"]["features_extractor_kwargs"] = {"layer": "layer-norm"}
    model = TRPO(env=SpacesEnv(VECTOR, BOX), **{"policy": "MlpPolicy", **SETTINGS, **kwargs})
    model.save(tmp_path / "model")
    with pytest.raises(RefusedModelError, match=rf"model was refused: attribute {named}"):
        TRPO.load(tmp_path / "model", device="cpu", trusted=False)
    given = {name: getattr(model, name) for name in ("policy_kwargs", "policy_class", "learning_rate", "lr_schedule")}
    loaded = TRPO.load(tmp_path / "model", custom_objects=given, device="cpu", trusted=False)
    obs = VECTOR.sample()
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))


@pytest.fixture(scope="module")
def members() -> hostile.Members:
    model = TRPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, **SETTINGS).learn(128)
    return hostile.members_of(model)


MODELS_PER_PROCESS = 400


def outcomes(models: Iterator[tuple[str, bytes]], folder: pathlib.Path) -> dict[str, str]:
    """
    Load models that may mean harm, each in turn.

    :param models: archives, with names for them
    :param folder: where to put them
    :return: the error of loading each of them; memory has not grown on the way
    """
    errors: dict[str, str] = {}
    # Each process has its own limits, so that they do not depend on the number of models.
    while batch := dict(itertools.islice(models, MODELS_PER_PROCESS)):
        part = folder / str(len(errors))
        part.mkdir(parents=True)
        names = {f"{i}.zip": name for i, name in enumerate(batch)}
        for file, name in names.items():
            (part / file).write_bytes(batch[name])
        done = subprocess.run(
            [sys.executable, LOAD_HOSTILE, str(part)], capture_output=True, text=True, check=True, timeout=600
        )
        result = json.loads(done.stdout)
        assert result["growth"] < 2**27
        errors.update((names[file], error) for file, error in result["outcomes"].items())
    return errors


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("code") / "trace"


def test_code_runs_in_what_is_trusted(members, trace, tmp_path):
    """Or the next test would prove nothing."""
    models = dict(hostile.code(members, trace))
    for name in ("code in policy_kwargs", "code as a key", "code by its name", "code by a computed name"):
        (tmp_path / "model.zip").write_bytes(models[name])
        with pytest.raises(Exception):  # noqa: B017, PT011  # it runs before it fails, anyhow
            TRPO.load(tmp_path / "model.zip", device="cpu")
        assert trace.exists()
        trace.unlink()


@pytest.fixture(scope="module")
def errors(members, trace, tmp_path_factory) -> dict[str, str]:
    """
    Load each hostile model.

    :return: of loading each hostile model, by its name
    """
    kinds = (hostile.archives, hostile.attributes, hostile.counts, hostile.pickles, hostile.tensors)
    corpus = [kind(members) for kind in (*kinds, hostile.hidden, hostile.escapes, hostile.moments)]
    models = itertools.chain(hostile.code(members, trace), *corpus)
    return outcomes(models, tmp_path_factory.mktemp("hostile") / "models")


def test_all_that_is_hostile_is_refused(errors):
    assert len(errors) > 250
    assert {k: v for k, v in errors.items() if not v.startswith("RefusedModelError: ")} == {}


def test_no_refusal_says_what_a_terminal_obeys(errors):
    assert {k: v for k, v in errors.items() if not v.isprintable()} == {}
    assert r"evil\x1b]0;title\x07\x1b[2J\r\u202e" in errors["an argument"]


def test_no_code_runs_and_it_is_named(errors, members, trace):
    assert not trace.exists()
    for name in json.loads(members["data"]):
        assert f"attribute '{name}': {hostile.HOLDS_OPEN}" in errors[f"code in {name}"]
    for name in ("policy.pth", "policy.optimizer.pth"):
        assert f"{name}: {hostile.HOLDS_OPEN}" in errors[f"code beside tensors in {name}"]
    for name in ("in a list", "as a key"):
        assert hostile.HOLDS_OPEN in errors[f"code {name}"]
    assert "it holds io.open, which is not allowed" in errors["code by its name"]
    assert "a name that is computed" in errors["code by a computed name"]


def test_counts_that_would_make_training_endless_are_named(errors):
    for name in ("n_steps", "n_critic_updates", "cg_max_steps", "line_search_max_iter"):
        said = rf"its {name} is {2**62}, but may be at most 10*"
        assert re.search(rf"{said} in a file that is not trusted; .*{name}=", errors[f"{name} = {2**62}"])
    assert "would take 2e+06 steps of the critic" in errors["steps of the critic"]
    assert "would take 1.1e+07 evaluations of a chunk" in errors["chunks"]


def test_counts_can_be_given_in_the_place_of_the_files(members, tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(hostile.with_attributes(members, n_critic_updates=10**9, n_steps=10**6, batch_size=10**5))
    load = {"env": gym.make("Pendulum-v1"), "device": "cpu", "trusted": False}
    with pytest.raises(RefusedModelError, match=r"n_critic_updates is 1000000000, .*n_critic_updates=\.\.\."):
        TRPO.load(path, **load, n_steps=64)
    model = TRPO.load(path, **load, n_steps=np.int64(64), batch_size=32, custom_objects={"n_critic_updates": 2})
    assert (model.n_steps, model.batch_size, model.n_critic_updates) == (64, 32, 2)
    model.learn(64)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that are files")
@pytest.mark.parametrize("name", ["device", "device.zip", "pipe.zip"])
def test_links_to_what_has_no_end_are_refused(name, tmp_path):
    (tmp_path / "device.zip").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(RefusedModelError, match="it is no regular file, but a device or a pipe"):
        TRPO.load(tmp_path / name, device="cpu", trusted=False)


@pytest.mark.usefixtures("errors")
def test_no_file_is_written(tmp_path_factory):
    assert list(tmp_path_factory.getbasetemp().rglob("*trace")) == []
    assert not pathlib.Path("/tmp/trace").exists()


@pytest.mark.parametrize("n", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_wrong_bytes_are_refused_or_harmless(n, members, tmp_path):
    errors = outcomes(hostile.mutations(members, n), tmp_path / "models")
    assert {v for v in errors.values() if v and not v.startswith("RefusedModelError: ")} == set()
    # Of either there is enough.
    refused = len([error for error in errors.values() if error])
    assert n / 2 < refused < len(errors)


@pytest.mark.parametrize("name", ["learning_rate", "target_kl", "min_std", "max_std"])
def test_schedules_that_are_functions_can_be_given_anew(name, tmp_path):
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, **{name: lambda progress: 0.01 + progress})
    model.save(tmp_path / "model")
    with pytest.raises(RefusedModelError, match=rf"load\(\.\.\., trusted=False, {name}=\.\.\.\)"):
        TRPO.load(tmp_path / "model", trusted=False)
    for given in ({name: 0.25}, {"custom_objects": {name: 0.25}}):
        loaded = assert_acts_the_same(model, tmp_path / "model", **given)
        assert getattr(loaded, name) == 0.25
        assert loaded.lr_schedule(0.5) == (0.25 if name == "learning_rate" else 1e-3)


BUILT_IN: dict[str, dict[str, Any]] = {
    "NumPy's numbers": {
        "n_steps": np.int64(128),
        "batch_size": np.int32(64),
        "gamma": np.float32(0.9),
        "policy_kwargs": {"net_arch": [np.int64(8)], "log_std_init": np.float64(-1.0)},
    },
    "no activation": {"policy_kwargs": {"activation_fn": th.nn.Identity, "net_arch": (8,)}},
    "closures of SB3": {"learning_rate": get_linear_fn(1e-3, 1e-4, 0.5), "target_kl": constant_fn(0.02)},
    "moments of another kind": {"policy_kwargs": {"optimizer_class": th.optim.Adafactor, "net_arch": [8]}},
    "three moments": {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}, "net_arch": [8]}},
}


@pytest.mark.parametrize("kwargs", BUILT_IN.values(), ids=BUILT_IN)
def test_honest_models_of_built_in_parts_load(kwargs, tmp_path):
    model = trained(TRPO, VECTOR, BOX, **kwargs)
    model.save(tmp_path / "model")
    loaded = assert_acts_the_same(model, tmp_path / "model")
    for remaining in (1.0, 0.7, 0.3, 0.0):
        assert loaded.lr_schedule(remaining) == pytest.approx(model.lr_schedule(remaining))
    loaded.set_env(SpacesEnv(VECTOR, BOX))
    loaded.learn(128)


class Colour(enum.Enum):
    RED = 1


class EnvWithInfo(SpacesEnv):
    """Its infos hold things of many kinds."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = super().step(action)
        things = {"set": {1, 2}, "range": range(3), "enum": Colour.RED, "array": np.zeros(2), "own": SpacesEnv}
        return obs, reward, terminated, truncated, things


def test_what_monitors_were_asked_for_does_not_matter(tmp_path):
    env = Monitor(EnvWithInfo(VECTOR, BOX), info_keywords=("set", "range", "enum", "array", "own"))
    model = TRPO("MlpPolicy", env, **SETTINGS).learn(128)
    assert len(model.ep_info_buffer) > 0
    model.save(tmp_path / "model")
    loaded = assert_acts_the_same(model, tmp_path / "model")
    assert [(e["r"], e["l"]) for e in loaded.ep_info_buffer] == [(e["r"], e["l"]) for e in model.ep_info_buffer]
    assert all(e["set"] == {1, 2} and "own" not in e for e in loaded.ep_info_buffer)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(MaskableTRPO, sb3_contrib.MaskablePPO), (RecurrentTRPO, sb3_contrib.RecurrentPPO)]
)
def test_policies_of_contrib_are_on_the_list(ours, theirs):
    for policy in (*ours.policy_aliases.values(), *theirs.policy_aliases.values()):
        assert read_object(cloudpickle.dumps(policy)) is policy


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        TRPO.load(tmp_path / "model", trusted=False)


def test_what_the_system_info_says_is_printed_without_control_characters(members, tmp_path, capsys):
    info = b"- Python: 3\x1b]0;title\x07\n"
    (tmp_path / "model.zip").write_bytes(hostile.zipped({**members, "system_info.txt": info}))
    TRPO.load(tmp_path / "model.zip", print_system_info=True, device="cpu", trusted=False)
    output = capsys.readouterr().out
    assert "- Python: 3" in output
    assert "\x1b" not in output
    assert "\x07" not in output


def test_training_does_not_write_where_the_file_says(members, tmp_path):
    (tmp_path / "model.zip").write_bytes(hostile.with_attributes(members, tensorboard_log=str(tmp_path / "theirs")))
    load = {"env": gym.make("Pendulum-v1"), "device": "cpu", "trusted": False}
    TRPO.load(tmp_path / "model.zip", **load).learn(128)
    assert not (tmp_path / "theirs").exists()
    TRPO.load(tmp_path / "model.zip", **load, tensorboard_log=str(tmp_path / "ours")).learn(128)
    assert (tmp_path / "ours").exists()


def test_the_reader_of_pickles_reads_plain_values():
    value = {"a": [1, 2.5, None, True, (3, "x"), (), b"y"], "b": {1: 2**70}}
    for protocol in (3, 4, 5):
        assert read_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("version", ["2.0.0", "2.6.0"])
def test_files_of_numpy_1_are_read(version):
    """sb3-contrib 2.0 wrote its spaces with NumPy 1; its schedule is code, for which there has to be another."""
    path = pathlib.Path(__file__).parent / f"data/sb3_contrib-{version}-Pendulum-v1.zip"
    schedule = LinearSchedule(1e-3, 1e-3, 1.0)
    model = TRPO.load(path, trusted=False, custom_objects={"learning_rate": schedule, "lr_schedule": schedule})
    trusted = TRPO.load(path, custom_objects={"learning_rate": schedule, "lr_schedule": schedule})
    assert model.action_space == trusted.action_space
    assert all(map(th.equal, model.policy.parameters(), trusted.policy.parameters()))
