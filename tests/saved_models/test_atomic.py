"""
A saved file is the old one or the new one, whatever happens to its writer.
"""

import io
import json
import os
import pathlib
import resource
import signal
import stat
import subprocess
import sys
from typing import Any

import pytest

from sb3_trpo import TRPO
from sb3_trpo.saved_models.atomic import ABANDONED_AFTER_SECONDS, replaced_file

KILL_SAVERS = pathlib.Path(__file__).with_name("kill_savers.py")
SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "device": "cpu", "policy_kwargs": {"net_arch": [4]}}


@pytest.fixture(scope="module")
def model() -> TRPO:
    return TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("n_kills", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_a_killed_saver_leaves_a_whole_model(n_kills, tmp_path):
    done = subprocess.run(
        [sys.executable, KILL_SAVERS, str(tmp_path), str(n_kills), "0"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["complaints"] == []
    # The savers did save, and were stopped in the middle of it.
    assert result["saved"] > n_kills / 3
    assert result["half written"] > 0


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("model", "model.zip"),
        ("model.zip", "model.zip"),
        ("v1.5", "v1.5"),
        ("model.", "model..zip"),
        ("a/b/c", "a/b/c.zip"),
    ],
)
def test_names_are_those_of_sb3(kind, given, written, model, tmp_path):
    path = kind(tmp_path / given) if kind is pathlib.Path else f"{tmp_path}/{given}"
    if "/" in given:
        with pytest.warns(UserWarning, match="does not exist. Will create it"):
            model.save(path)
    else:
        model.save(path)
    assert (tmp_path / written).is_file()
    assert files_in((tmp_path / written).parent) == [pathlib.Path(written).name]
    assert TRPO.load(path, device="cpu").n_steps == 32


def test_a_folder_of_that_name_stays(model, tmp_path):
    (tmp_path / "model.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder. Will save instead to .*model.zip_2"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip_2").is_file()


def test_open_files_are_written_as_they_are(model, tmp_path):
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    assert TRPO.load(buffer, device="cpu").n_steps == 32
    with (tmp_path / "model").open("wb") as file:
        model.save(file)
        assert not file.closed
    assert TRPO.load(tmp_path / "model", device="cpu").n_steps == 32


def test_permissions_and_links_stay(model, tmp_path):
    real, link = tmp_path / "real.zip", tmp_path / "link.zip"
    model.save(real)
    with (tmp_path / "plain").open("wb"):
        assert real.stat().st_mode == (tmp_path / "plain").stat().st_mode
    real.chmod(0o640)
    link.symlink_to(real)
    model.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    reader = os.open(tmp_path / "pipe.zip", os.O_RDONLY | os.O_NONBLOCK)
    with replaced_file(tmp_path / "pipe", "zip") as file:
        file.write(b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert files_in(tmp_path) == ["pipe.zip"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "file.zip").write_bytes(b"old")

    def write_and_fail() -> None:
        with replaced_file(tmp_path / "file", "zip") as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert files_in(tmp_path) == ["file.zip"]
    assert (tmp_path / "file.zip").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_model(model, tmp_path):
    model.save(tmp_path / "model.zip")
    old = (tmp_path / "model.zip").read_bytes()
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            model.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "model.zip").read_bytes() == old
    assert files_in(tmp_path) == ["model.zip"]


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    old, recent, others = (tmp_path / name for name in (".file.zip.01.tmp", ".file.zip.02.tmp", ".other.zip.03.tmp"))
    for path in (old, recent, others):
        path.touch()
    for path in (old, others):
        seconds = path.stat().st_mtime - 2 * ABANDONED_AFTER_SECONDS
        os.utime(path, (seconds, seconds))
    with replaced_file(tmp_path / "file.zip", "zip") as file:
        file.write(b"new")
    assert files_in(tmp_path) == [recent.name, others.name, "file.zip"]


def test_long_names(tmp_path):
    name = "ä" * 125
    with replaced_file(tmp_path / name, "zip") as file:
        file.write(b"new")
    assert files_in(tmp_path) == [f"{name}.zip"]
