"""
A saved file is the old one or the new one, whatever happens to its writer.
"""

import errno
import io
import json
import os
import pathlib
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from sb3_trpo import TRPO
from sb3_trpo.saved_models.atomic import ABANDONED_AFTER_SECONDS, atomic_write, saved_path

KILL_SAVERS = pathlib.Path(__file__).with_name("kill_savers.py")
SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "device": "cpu", "policy_kwargs": {"net_arch": [4]}}


@pytest.fixture(scope="module")
def model() -> TRPO:
    return TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS)


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("n_kills", [5, pytest.param(400, marks=pytest.mark.slow)])
def test_a_killed_saver_leaves_a_whole_model(n_kills, tmp_path):
    done = subprocess.run(
        [sys.executable, KILL_SAVERS, str(tmp_path), str(n_kills), "0"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["complaints"] == []
    # The savers did save, and were stopped in the middle of it.
    assert result["saved"] > 0
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
    with atomic_write(tmp_path / "pipe", "zip") as file:
        file.write(b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert files_in(tmp_path) == ["pipe.zip"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "file.zip").write_bytes(b"old")

    def write_and_fail() -> None:
        with atomic_write(tmp_path / "file", "zip") as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert files_in(tmp_path) == ["file.zip"]
    assert (tmp_path / "file.zip").read_bytes() == b"old"


def end_of_fork(do: Any) -> int:
    """Run a function in a fork, and tell by which signal it ended (negative), or with which code."""
    child = os.fork()
    if child == 0:
        try:
            do()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["before a byte", "half written", "twice", "in another thread's time"])
@pytest.mark.parametrize("names", [["file.zip"], ["file.zip", "latest.zip"]])
def test_a_signal_leaves_the_old_file_and_nothing_else_and_ends_the_process(names, moment, number, tmp_path):
    (tmp_path / "file.zip").write_bytes(b"old")
    for name in names[1:]:
        os.link(tmp_path / "file.zip", tmp_path / name)

    def write() -> None:
        # Whoever runs the tests may have switched it off, as nohup does.
        signal.signal(number, signal.SIG_DFL)
        with atomic_write(tmp_path / "file", "zip") as file:
            if moment != "before a byte":
                file.write(b"new" * 10_000)
            if moment == "in another thread's time":
                threading.Thread(target=os.kill, args=(os.getpid(), number)).start()
                time.sleep(2.0)
            try:
                os.kill(os.getpid(), number)
            finally:
                if moment == "twice":
                    os.kill(os.getpid(), number)

    assert end_of_fork(write) == -number
    assert files_in(tmp_path) == names
    assert {(tmp_path / name).read_bytes() for name in names} == {b"old"}


def test_a_users_own_handler_is_called_and_the_file_is_written(tmp_path):
    def write() -> None:
        signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "called").touch())
        with atomic_write(tmp_path / "file", "zip") as file:
            os.kill(os.getpid(), signal.SIGTERM)
            file.write(b"new")

    assert end_of_fork(write) == 0
    assert files_in(tmp_path) == ["called", "file.zip"]


def test_handlers_are_what_they_were_after_a_file_is_written(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with atomic_write(tmp_path / "file", "zip"):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("names", [["model.zip"], ["latest.zip", "model.zip"]])
def test_a_full_disk_leaves_the_old_model(names, model, tmp_path):
    model.save(tmp_path / "model.zip")
    if len(names) > 1:
        os.link(tmp_path / "model.zip", tmp_path / "latest.zip")
    old = (tmp_path / "model.zip").read_bytes()
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'model.zip'}'"):
            model.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "model.zip").read_bytes() == old
    assert files_in(tmp_path) == names


def in_a_process(function: Any, user: int | None = None) -> int:
    """
    Run a function in a fork of this process.

    :param function: what a fork of this process does
    :param user: whose process it becomes
    :return: the exit code; the negative number of the signal that has ended it
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if user is not None:
                os.setgid(user)
                os.setuid(user)
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def write(path: pathlib.Path, content: bytes = b"new") -> None:
    with atomic_write(path, "zip") as file:
        file.write(content)


def write_and_die(path: pathlib.Path) -> None:
    with atomic_write(path, "zip") as file:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def make_old(path: pathlib.Path) -> None:
    seconds = path.stat().st_mtime - 2 * ABANDONED_AFTER_SECONDS
    os.utime(path, (seconds, seconds))


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    for _ in range(2):
        assert in_a_process(lambda: write_and_die(tmp_path / "file")) == -signal.SIGKILL
    old, recent = sorted(tmp_path.iterdir())
    make_old(old)
    assert in_a_process(lambda: write_and_die(tmp_path / "other")) == -signal.SIGKILL
    (of_another,) = set(tmp_path.iterdir()) - {old, recent}
    make_old(of_another)
    write(tmp_path / "file.zip")
    assert set(tmp_path.iterdir()) == {recent, of_another, tmp_path / "file.zip"}


@pytest.mark.parametrize(
    "name",
    [
        ".file.zip.notes.tmp",
        ".file.zip.tmp",
        ".file.zip.0123456789abcdef.tmp",
        "file.zip.tmp",
        ".file.zip.01.sb3_trpo.tmp",
    ],
)
def test_a_users_own_temporary_file_stays(name, tmp_path):
    (tmp_path / name).write_text("mine")
    make_old(tmp_path / name)
    write(tmp_path / "file.zip")
    assert files_in(tmp_path) == sorted([name, "file.zip"])


def test_a_folder_that_can_not_be_synced(model, tmp_path, monkeypatch):
    sync = os.fsync

    def sync_files_only(descriptor: int) -> None:
        # As on network shares and shared folders of virtual machines, which no test can mount.
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", device="cpu").n_steps == 32
    assert files_in(tmp_path) == ["model.zip"]


NOBODY = 65534


def pytest_folders(folder: Path) -> list[Path]:
    """List the folders, from this one upwards, that pytest has made, and nobody else may enter."""
    return [each for each in (folder, *folder.parents) if Path(tempfile.gettempdir()) in each.parents]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, whom modes bind")
@pytest.mark.parametrize("mode", [0o555, 0o333])
def test_folders_that_can_not_be_written_or_listed(mode, tmp_path):
    for folder in pytest_folders(tmp_path):
        folder.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.zip").write_bytes(b"the old content")
    (folder / "file.zip").chmod(0o666)
    folder.chmod(mode)
    assert in_a_process(lambda: write(folder / "file.zip"), NOBODY) == 0
    assert (folder / "file.zip").read_bytes() == b"new"
    assert files_in(folder) == ["file.zip"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, whom modes bind")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    for folder in pytest_folders(tmp_path):
        folder.chmod(0o777)
    (tmp_path / "file.zip").write_bytes(b"old")
    (tmp_path / "file.zip").chmod(0o444)
    assert in_a_process(lambda: write(tmp_path / "file.zip"), NOBODY) != 0
    assert (tmp_path / "file.zip").read_bytes() == b"old"
    assert files_in(tmp_path) == ["file.zip"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_the_owner_stays(tmp_path):
    write(tmp_path / "file.zip")
    os.chown(tmp_path / "file.zip", NOBODY, NOBODY)
    write(tmp_path / "file.zip", b"newer")
    assert (tmp_path / "file.zip").stat().st_uid == NOBODY
    assert (tmp_path / "file.zip").read_bytes() == b"newer"


def test_all_names_of_a_file_are_written(tmp_path):
    write(tmp_path / "file.zip", b"a longer content than the next")
    os.link(tmp_path / "file.zip", tmp_path / "latest.zip")
    write(tmp_path / "file.zip")
    assert (tmp_path / "latest.zip").read_bytes() == b"new"
    assert (tmp_path / "latest.zip").samefile(tmp_path / "file.zip")


def test_an_error_leaves_all_names_as_they_were(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"old")
    os.link(tmp_path / "file.zip", tmp_path / "latest.zip")

    def write_and_fail() -> None:
        with atomic_write(tmp_path / "file.zip", "zip") as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert (tmp_path / "latest.zip").read_bytes() == b"old"


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_new_file_has_the_permissions_that_open_gives(umask, tmp_path):
    before = os.umask(umask)
    try:
        write(tmp_path / "file.zip")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "file.zip").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("exists", [False, True])
def test_paths_as_long_as_the_system_allows(exists, tmp_path):
    folder = tmp_path
    while len(str(folder)) < 3800:
        folder /= "x" * 200
    folder.mkdir(parents=True)
    path = folder / ("m" * (os.pathconf("/", "PC_PATH_MAX") - 1 - len(str(folder)) - 1 - 4) + ".zip")
    if len(path.name) > 255:
        path = folder / "y" * 100 / path.name[-150:]
    if exists:
        path.write_bytes(b"the old content")
    write(path)
    assert path.read_bytes() == b"new"
    assert files_in(folder) == [path.name]


def test_links_that_lead_elsewhere_or_nowhere(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "far.zip").symlink_to("sub/far.zip")
    write(tmp_path / "far")
    assert (tmp_path / "sub" / "far.zip").read_bytes() == b"new"
    assert (tmp_path / "far.zip").is_symlink()
    (tmp_path / "loop.zip").symlink_to(tmp_path / "loop.zip")
    with pytest.raises(OSError, match=r"(?i)symbolic links"):
        write(tmp_path / "loop.zip")


@pytest.mark.parametrize("name", ["model", "model.zip", "v1.5", "folder", "link", "dangling"])
def test_what_is_written_is_where_it_was_said(name, tmp_path):
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "real.zip").touch()
    (tmp_path / "link.zip").symlink_to("real.zip")
    (tmp_path / "dangling.zip").symlink_to("gone.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path / name)
    assert saved_path(tmp_path / name, "zip").read_bytes() == b"new"


def test_long_names(tmp_path):
    name = "ä" * 125
    with atomic_write(tmp_path / name, "zip") as file:
        file.write(b"new")
    assert files_in(tmp_path) == [f"{name}.zip"]
