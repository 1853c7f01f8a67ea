"""
Hints name a command that works where the package came from.
"""

import importlib
import json

import pytest

from sb3_trpo.validation.install import how_to_install


@pytest.mark.parametrize(
    ("note", "command"),
    [
        ({"url": "file:///home/me/sb3_trpo", "dir_info": {"editable": True}}, "'/home/me/sb3_trpo[zoo]'"),
        ({"url": "file:///tmp/sb3_trpo-0.1.0-py3-none-any.whl"}, "'/tmp/sb3_trpo-0.1.0-py3-none-any.whl[zoo]'"),
        ({"url": "https://x.org/y", "vcs_info": {"vcs": "git"}}, "'sb3-trpo[zoo] @ git+https://x.org/y'"),
        (None, "'sb3-trpo[zoo]'"),
        ([], "'sb3-trpo[zoo]'"),
    ],
)
def test_the_origin_is_named(note, command, tmp_path, monkeypatch):
    """In an installation of the name, as pip leaves it."""
    folder = tmp_path / "sb3_trpo-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: sb3-trpo\nVersion: 0.1.0\n")
    if note is not None:
        (folder / "direct_url.json").write_text(json.dumps(note))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert how_to_install("zoo") == f"`pip install {command}`"
