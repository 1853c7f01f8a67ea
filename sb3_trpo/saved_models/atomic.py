"""
Files that are replaced as a whole: whoever looks, and whenever the writer is killed, there is the old file or the new
one, never a part of either.
"""

import contextlib
import io
import os
import pathlib
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator

# Temporary files of writers that were killed are removed by the next one, if they are so old that nobody writes them.
ABANDONED_AFTER_SECONDS = 3600.0
# Of the name in that of the temporary file: file systems allow 255 bytes, a character can take four.
NAME_CHARACTERS = 40


@contextlib.contextmanager
def replaced_file(path: str | pathlib.Path, suffix: str) -> Iterator[io.BufferedWriter]:
    """
    A file that takes its place when the block has ended; an exception in the block leaves the old file.

    :param path: of the file; as in SB3, a missing folder is made, and a folder of that name is not overwritten
    :param suffix: for a path that has none, without its dot
    :return: the file, open for writing
    """
    target = _resolve(pathlib.Path(path), suffix)
    if target.exists() and not target.is_file():
        # A pipe or a device can't be replaced.
        with target.open("wb") as file:
            yield file
        return
    _remove_abandoned(target)
    temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _resolve(path: pathlib.Path, suffix: str) -> pathlib.Path:
    """
    :param path: as the user gave it
    :param suffix: for a path that has none
    :return: the file that SB3's ``open_path`` would write; what a symbolic link points to, rather than the link
    """
    if path.suffix == "":
        path = path.with_name(f"{path.name}.{suffix}")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=4)
        return _resolve(path.with_name(f"{path.name}_2"), suffix)
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.", stacklevel=4)
        path.parent.mkdir(exist_ok=True, parents=True)
    return path.resolve()


def _prefix(target: pathlib.Path) -> str:
    return f".{target.name[:NAME_CHARACTERS]}."


def _remove_abandoned(target: pathlib.Path) -> None:
    prefix = _prefix(target)
    for file in target.parent.iterdir():
        if file.name.startswith(prefix) and file.suffix == ".tmp":
            # Another writer may be doing the same.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                    file.unlink()


def _sync_folder(folder: pathlib.Path) -> None:
    """
    The new name is on disk only when its folder is.

    :param folder: of a file that was renamed
    """
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
