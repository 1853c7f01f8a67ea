"""
``sb3-trpo migrate``: what it writes is this package's, and goes as far per update as it did.
"""

import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import sb3_contrib
import torch as th
import yaml
from small_models import ACTION_SPACES, VECTOR, SpacesEnv

from sb3_trpo import TRPO
from sb3_trpo.commands.migrate import main
from sb3_trpo.validation.values import UserError

SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "device": "cpu"}
FILE = """\
# tuned by hand
default:
  policy: MlpPolicy

Pendulum-v1: &pendulum  # one dimension
  policy: MlpPolicy
  target_kl: 0.02

BipedalWalker-v3:
  <<: *pendulum
  gamma: 0.98

Swimmer-v5: &swimmer
  target_kl: !!float 4e-2  # much

Reacher-v5:
  <<: *swimmer
"""


@pytest.fixture
def migrate(monkeypatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["sb3-trpo migrate", *map(str, arguments)])
        main()

    return run


@pytest.mark.parametrize("name", ["model.zip", "tuned.yml"])
def test_a_full_disk_leaves_no_half_of_a_file(name, migrate, tmp_path):
    theirs = sb3_contrib.TRPO("MlpPolicy", SpacesEnv(VECTOR, ACTION_SPACES["Box"]), **SETTINGS)
    theirs.learn(64).save(tmp_path / "model.zip")
    (tmp_path / "tuned.yml").write_text(FILE)
    size = (tmp_path / name).stat().st_size
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            migrate(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.zip", "tuned.yml"]


def test_models(migrate, tmp_path, capsys):
    theirs = sb3_contrib.TRPO("MlpPolicy", SpacesEnv(VECTOR, ACTION_SPACES["Box"]), target_kl=0.02, **SETTINGS)
    theirs.learn(64).save(tmp_path / "model")
    migrate(tmp_path / "model.zip")
    assert "target_kl: 0.02 -> 0.0467 (3 action dimensions)" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = TRPO.load(tmp_path / "model-sb3_trpo", device="cpu")
    assert model.target_kl == 0.0467
    assert all(map(th.equal, theirs.policy.state_dict().values(), model.policy.state_dict().values()))
    with pytest.raises(UserError, match="exists: give another name"):
        migrate(tmp_path / "model.zip")
    with pytest.raises(UserError, match="nothing to convert"):
        migrate(tmp_path / "model-sb3_trpo.zip", "-o", tmp_path / "again.zip")


def test_hyperparameters(migrate, tmp_path):
    pytest.importorskip("mujoco")
    (tmp_path / "trpo.yml").write_text(FILE.replace("BipedalWalker-v3", "Hopper-v5"))
    migrate(tmp_path / "trpo.yml", "-o", tmp_path / "new.yml")
    text = (tmp_path / "new.yml").read_text()
    values = {task: entry.get("target_kl") for task, entry in yaml.safe_load(text).items()}
    assert values == {
        "default": None,
        "Pendulum-v1": 0.02,
        "Hopper-v5": 0.0467,
        "Swimmer-v5": 0.07,
        "Reacher-v5": 0.07,
    }
    assert "# tuned by hand" in text
    assert "# much" in text
    with pytest.raises(UserError, match="nothing to convert"):
        migrate(tmp_path / "new.yml")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.zip", b"no archive", "neither a model"),
        ("a.yml", b"- 1", "does not hold RL Zoo's hyperparameters"),
        ("a.yml", b"Swimmer-v5: {target_kl: 0.01}", "By hand: Swimmer-v5: target_kl: 0.01 -> 0.0175"),
        (
            "a.yml",
            b"Swimmer-v5: &h\n  target_kl: 0.01\nReacher-v5: *h\n",
            "By hand: Swimmer-v5: target_kl: 0.01 -> 0.0",
        ),
        ("missing.zip", None, "No such file"),
        ("a.yml", "target_kl: 0.01".encode("utf-16"), "no text in UTF-8"),
        ("a.yml", b"\xff\x00", "no text in UTF-8"),
        ("a.yml", b"[" * 500, "does not hold RL Zoo's hyperparameters"),
        ("a.yml", b"&a CartPole-v1: &b\n  x: *b\n", "does not hold RL Zoo's hyperparameters"),
    ],
)
def test_what_can_not_be_converted_is_named(name: str, content: bytes | None, named: str, migrate, tmp_path: Path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=named):
        migrate(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ([name] if content is not None else [])


@pytest.mark.parametrize("value", [".nan", "x", "-1", ".inf", "lin_0.1"])
def test_a_target_that_is_no_number_is_left_as_it_is(value: str, migrate, tmp_path: Path, capsys):
    (tmp_path / "a.yml").write_text(f"CartPole-v1:\n  target_kl: {value}\n")
    migrate(tmp_path / "a.yml")
    assert "CartPole-v1: left as it is, for its target_kl is" in capsys.readouterr().out
    assert f"target_kl: {value}\n" in (tmp_path / "a-sb3_trpo.yml").read_text()


def test_an_output_without_a_name_is_named(migrate, tmp_path: Path, capsys):
    (tmp_path / "a.yml").write_text("CartPole-v1:\n  target_kl: 0.01\n")
    with pytest.raises(SystemExit):
        migrate(tmp_path / "a.yml", "-o", "")
    assert "'.' is no name of a file" in capsys.readouterr().err
