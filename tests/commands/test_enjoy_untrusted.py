"""
``sb3-trpo enjoy-untrusted``: as RL Zoo's ``enjoy`` for models that mean no harm, and no code of those that do.
"""

import pickle
from typing import Any

import hostile
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from sb3_trpo import TRPO
from sb3_trpo.cli import main
from sb3_trpo.commands.enjoy_untrusted import read_vec_normalize
from sb3_trpo.saved_models.refused import RefusedModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """Return a folder with a model of Pendulum-v1 and its statistics."""
    folder = tmp_path_factory.mktemp("model")
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0), clip_obs=3.0)
    TRPO("MlpPolicy", env, n_steps=64, batch_size=64, n_critic_updates=1, seed=0, device="cpu").learn(512).save(
        folder / "model.zip"
    )
    env.save(str(folder / "vecnormalize.pkl"))
    return folder


def run(*arguments: Any) -> None:
    main(["enjoy-untrusted", "--env", "Pendulum-v1", "--no-render", "--device", "cpu", *map(str, arguments)])


def test_a_model_runs(folder, capsys):
    run(folder / "model.zip", "-n", 400, "--vecnormalize", folder / "vecnormalize.pkl")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Episode of 200 steps: return -") for line in lines)


def test_a_model_runs_whatever_its_schedules_were(tmp_path, capsys):
    kwargs = {name: lambda progress: 0.1 + progress for name in ("learning_rate", "target_kl", "min_std", "max_std")}
    TRPO("MlpPolicy", "Pendulum-v1", **kwargs).save(tmp_path / "model.zip")
    run(tmp_path / "model.zip", "-n", 200)
    assert "Episode of 200 steps" in capsys.readouterr().out


def test_statistics_are_those_of_the_file(folder):
    path = folder / "vecnormalize.pkl"
    theirs = VecNormalize.load(str(path), make_vec_env("Pendulum-v1", 1))
    ours = read_vec_normalize(path, make_vec_env("Pendulum-v1", 1))
    obs = np.random.default_rng(0).normal(size=(20, 3)) * 5
    np.testing.assert_array_equal(ours.normalize_obs(obs), theirs.normalize_obs(obs))
    assert not ours.training
    assert not ours.norm_reward


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        pickle.dumps({}),
        pickle.dumps([1]),
        pickle.dumps(np.ones(3)),
        pickle.dumps({"obs_rms": 1, "clip_obs": "x"}),
    ],
)
def test_other_files_are_no_statistics(content, folder, tmp_path):
    (tmp_path / "file.pkl").write_bytes(content)
    with pytest.raises(RefusedModelError, match=r"file\.pkl was refused"):
        read_vec_normalize(tmp_path / "file.pkl", make_vec_env("Pendulum-v1", 1))


def test_code_does_not_run(folder, tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"obs_rms": hostile.Payload(trace)}))
    (tmp_path / "model.zip").write_bytes(hostile.zipped({"data": b"{}", "policy.pth": b"", "trace.pth": b""}))
    for arguments, named in (
        ((folder / "model.zip", "--vecnormalize", tmp_path / "file.pkl"), hostile.HOLDS_OPEN),
        ((tmp_path / "model.zip",), "trace.pth"),
        ((tmp_path / "nowhere.zip",), "nowhere.zip"),
        ((folder / "model.zip", "--vecnormalize", "/dev/zero"), "no regular file"),
        (("/dev/zero",), "no regular file"),
        ((folder / "model.zip", "-n", 0), "--n-timesteps is 0, but must be an integer of at least 1"),
        ((folder / "model.zip", "--device", "foo"), "device is 'foo', but must be"),
        ((folder / "model.zip", "--env", "Pendulum-v9"), "Pendulum"),
        ((folder / "model.zip", "--env", "CartPole-v1"), "spaces do not match"),
        ((folder / "model.zip", "--env", "CartPole-v1", "--vecnormalize", folder / "vecnormalize.pkl"), "statistics"),
    ):
        with pytest.raises(SystemExit) as end:
            run(*arguments)
        assert named in str(end.value.code)
    assert not trace.exists()


@pytest.mark.parametrize(("part", "value"), [("var", -1.0), ("var", np.nan), ("mean", np.inf), ("mean", np.nan)])
def test_statistics_that_are_none_are_refused(part, value, tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", 1))
    getattr(env.obs_rms, part)[0] = value
    env.save(tmp_path / "file.pkl")
    with pytest.raises(RefusedModelError, match="not finite, or have a negative variance"):
        read_vec_normalize(tmp_path / "file.pkl", make_vec_env("Pendulum-v1", 1))


@pytest.mark.parametrize(("name", "value"), [("clip_obs", np.nan), ("clip_obs", -1.0), ("epsilon", 0.0)])
def test_bounds_that_are_none_are_refused(name, value, tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", 1))
    setattr(env, name, value)
    env.save(tmp_path / "file.pkl")
    with pytest.raises(RefusedModelError, match="must be above 0"):
        read_vec_normalize(tmp_path / "file.pkl", make_vec_env("Pendulum-v1", 1))
