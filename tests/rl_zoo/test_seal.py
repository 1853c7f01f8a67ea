"""
Seals: whoever does not have the account's key can neither make nor change a sealed file.
"""

import io
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from sb3_trpo.rl_zoo.seal import add_seal, has_own_seal


@pytest.fixture(autouse=True, scope="module")
def _account(tmp_path_factory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def archive(content: bytes = b"numbers") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("data", content)
    return file.getvalue()


@given(content=st.binary(max_size=100))
def test_a_sealed_archive_is_the_same_archive(content):
    sealed = add_seal(archive(content))
    assert has_own_seal(sealed)
    with zipfile.ZipFile(io.BytesIO(sealed)) as members:
        assert members.read("data") == content
        assert members.testzip() is None


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_is_changed_breaks_the_seal(data):
    sealed = add_seal(archive())
    i = data.draw(st.integers(0, len(sealed) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                sealed[:i] + bytes([sealed[i] ^ data.draw(st.integers(1, 255))]) + sealed[i + 1 :],
                sealed[:i],
                sealed + sealed[:i] + b"\0",
                sealed[:i] + b"\0" + sealed[i:],
            ]
        )
    )
    assert not has_own_seal(changed) or changed == sealed


def test_a_file_without_a_seal_has_none():
    assert not has_own_seal(archive())
    assert not has_own_seal(b"")


def test_another_account_has_another_key(tmp_path, monkeypatch):
    sealed = add_seal(archive())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not has_own_seal(sealed)
    (key,) = (path for path in (tmp_path / "other").rglob("*") if path.is_file())
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_place_for_a_key_nothing_is_sealed(place, tmp_path, monkeypatch):
    Path(tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file") if place == "a file" else "/proc/nowhere")
    assert add_seal(archive()) == archive()
    assert not has_own_seal(archive())
