"""
Runs as they lie on the disk: whole, cut, resumed, foreign, hostile.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo import TRPO, diagnose
from sb3_trpo.diagnosis import run_files
from sb3_trpo.diagnosis.run_files import read_record
from sb3_trpo.validation.values import UserError

ROWS = "time/total_timesteps,train/value_loss\n128,\n256,0.5\n384,0.25\n"


def write(folder: Path, text: str | bytes, name: str = "progress.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_a_run_is_read_as_it_was_trained(tmp_path: Path) -> None:
    model = TRPO(
        "MlpPolicy", "Pendulum-v1", n_steps=128, gae_lambda=0.9, max_std=LinearSchedule(2.0, 0.01, 1.0), device="cpu"
    )
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(5 * 128)
    model.save(tmp_path / "model")
    run = read_record(tmp_path)
    live = model._advice.log
    (loss,) = run.complete("train/value_loss")
    # SB3 writes an update's numbers after the next rollout.
    np.testing.assert_allclose(loss, live["train/value_loss"][:-1])
    assert run.settings.n_samples == 128
    assert run.settings.action_dimensions == 1
    assert run.settings.gae_lambda == 0.9
    assert run.settings.least_max_std == 0.01
    assert run.progress == 1.0
    assert diagnose(tmp_path).findings == diagnose(tmp_path / "progress.csv").findings == []
    assert str(diagnose(tmp_path)).startswith(f"{tmp_path}: 4 updates, 640 steps.\nNothing found")


def test_a_model_that_was_stopped_says_how_far_it_came(tmp_path: Path) -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=128, device="cpu").learn(128)
    model._total_timesteps = 1024
    model.save(tmp_path / "checkpoint")
    assert read_record(write(tmp_path, ROWS)).progress == 384 / 1024


@pytest.mark.parametrize("content", [b"", b"no zip file", pickle.dumps({"n_steps": 2})])
def test_a_model_that_can_not_be_read_leaves_settings_open(tmp_path: Path, content: bytes) -> None:
    run = read_record(write(write(tmp_path, content, "model.zip"), ROWS))
    assert run.settings == run_files.Settings()


def test_a_log_whose_last_line_was_cut(tmp_path: Path) -> None:
    run = read_record(write(tmp_path, ROWS + "512,0.1"))
    np.testing.assert_equal(run.column("train/value_loss"), [math.nan, 0.5, 0.25])


def test_the_parts_of_a_resumed_run_follow_each_other(tmp_path: Path) -> None:
    """The first went on for a while after the checkpoint that the second began from."""
    write(tmp_path, ROWS, "until_1.progress.csv")
    write(tmp_path, "time/total_timesteps,train/std\n384,0.9\n512,0.8\n")
    run = read_record(tmp_path)
    np.testing.assert_equal(run.column("time/total_timesteps"), [128, 256, 384, 512])
    np.testing.assert_equal(run.column("train/value_loss"), [math.nan, 0.5, math.nan, math.nan])
    np.testing.assert_equal(run.column("train/std"), [math.nan, math.nan, 0.9, 0.8])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no columns"),
        ("a,b\n1,2\n", "no columns"),
        ('"' + "x" * 200_000 + '"\n', "no table"),
        ("train/\x1b]0;evil\x07\n1\n", "no columns"),
    ],
)
def test_what_is_no_log_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_record(write(tmp_path, text))


def test_a_folder_without_a_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no progress.csv, which `sb3-trpo train` writes"):
        diagnose(tmp_path)
    (tmp_path / "progress.csv").mkdir()
    with pytest.raises(UserError, match=r"has no progress.csv"):
        diagnose(tmp_path)


def test_a_folder_of_runs_names_one(tmp_path: Path) -> None:
    for run in ("CartPole-v1_1", "CartPole-v1_2"):
        (tmp_path / "trpo" / run).mkdir(parents=True)
        (tmp_path / "trpo" / run / "progress.csv").touch()
    with pytest.raises(UserError, match=r"is no run, but holds 2: name one, such as .*CartPole-v1_2\."):
        read_record(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "progress.csv").open("wb") as file:
        file.truncate(run_files.MAX_BYTES + 1)
    with pytest.raises(UserError, match="larger than 64 MiB"):
        read_record(tmp_path)


def test_no_text_of_a_file_is_kept(tmp_path: Path) -> None:
    evil = "\x1b[31m<script>alert(1)</script>"
    header = f'train/value_loss,"train/{evil}","{evil}",train/std\n'
    diagnosis = diagnose(write(tmp_path, header + f'1,"{evil}",2,"{evil}"\n' * 30))
    assert set(diagnosis.record.log) == {"train/value_loss", "train/std"}
    assert np.isnan(diagnosis.record.column("train/std")).all()
    assert "\x1b" not in str(diagnosis)
    assert "script" not in str(diagnosis)


def test_a_name_for_the_terminal_is_written_out(tmp_path: Path) -> None:
    folder = tmp_path / "run\x1b[31m"
    folder.mkdir()
    text = str(diagnose(write(folder, ROWS)))
    assert "\x1b" not in text
    assert r"\x1b" in text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, noise: bytes, model: bytes) -> None:
    folder = tmp_path_factory.mktemp("noise")
    write(folder, ROWS.encode() + noise)
    write(folder, model, "model.zip")
    try:
        assert str(diagnose(folder))
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017


KEYS = "time/total_timesteps,train/kl_divergence_loss,train/explained_variance\n"


@pytest.mark.parametrize("rows", ["", "nan,nan,nan\n", "64,,\n", "64,inf,nan\n", '"64,0.01,0.5"\n'])
def test_a_log_without_an_update_is_no_clean_bill(rows: str, tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text(KEYS + rows)
    lines = str(diagnose(tmp_path)).splitlines()
    assert "0 updates" in lines[0]
    assert lines[1] == "The log has no update that could be judged."


@pytest.mark.parametrize("path", [None, 5, b"x", ["run"]])
def test_what_is_no_path_is_named(path: Any) -> None:
    with pytest.raises(UserError, match=r"^path is .*, but must be the path of a run's folder"):
        diagnose(path)
