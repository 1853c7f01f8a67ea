"""
Files that are replaced as a whole.

Whoever looks, and whenever the writer is killed, there is the old file or the new one, never a part of either. Where
the file system does not allow that, files are written as ``open`` writes them; ``atomic_write`` says when.
"""

import contextlib
import errno
import io
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import cast

from sb3_trpo.saved_models.termination import unwind_when_terminated
from sb3_trpo.validation.values import warn_user

# Temporary files of writers that were killed are removed by the next one, if they are so old that nobody writes them.
ABANDONED_AFTER_SECONDS = 3600.0
# As many characters of the name are in that of the temporary file: file systems allow 255 bytes, a character can take
# four.
NAME_CHARACTERS = 40
# The file system's answers where there can't be another file beside this one: forbidden, read-only, a path too long.
NO_ROOM_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
# Its answers if it can't write through to the disk, as some network shares can't.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
# The attribute with the list of who may read and write, beyond the file's mode.
ACCESS_LIST = "system.posix_acl_access"


@contextlib.contextmanager
def atomic_write(path: str | pathlib.Path, suffix: str) -> Iterator[io.BufferedIOBase]:
    """
    Open a file that takes its place when the block has ended; an exception in the block leaves the old file.

    As in SB3, a missing folder is made, and a folder of that name is not overwritten. As with ``open``, links are
    followed, and permissions and owner stay.

    A file with several names (hard links) is written in its place when the block has ended, and so is a file in a
    folder where no other can be made. There, too, an exception in the block leaves the old file, but the death of the
    process while the bytes are copied does not. Pipes and devices are written directly.

    A SIGTERM in the block, as of a job that is over its time, leaves the old file and nothing else before it ends the
    process.

    :param path: the path of the file
    :param suffix: the ending for a path that has none, without its dot
    :return: the file, open for writing
    :raises OSError: if ``open`` would not write the file either
    """
    target = saved_path(path, suffix)
    if target != _with_suffix(pathlib.Path(path), suffix).resolve():
        warn_user(f"Path '{path}' is a folder. Will save instead to {target}")
    if not target.parent.exists():
        warn_user(f"Path '{target.parent}' does not exist. Will create it.")
        target.parent.mkdir(exist_ok=True, parents=True)
    if target.exists() and not target.is_file():
        with target.open("wb") as device:
            yield device
        return
    if target.exists():
        # An error here is that of ``open``; nothing is written.
        target.open("ab").close()
    _remove_abandoned(target)
    with unwind_when_terminated(), _name_in_errors(target):
        file, temporary = _open_temporary(target)
        try:
            with file:
                yield file
                file.flush()
                if temporary is None or not _replace(target, file, temporary):
                    _copy(file, target)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _name_in_errors(target: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A full disk is told without the name of the file.
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


def saved_path(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    """
    Tell where a file of that name is saved.

    :param path: the path as the user gave it
    :param suffix: the ending for a path that has none, without its dot
    :return: the path that SB3's ``open_path`` would write to, with symbolic links resolved
    :raises OSError: if symbolic links go round in a circle
    """
    file = _with_suffix(pathlib.Path(path), suffix)
    while file.is_dir():
        file = file.with_name(f"{file.name}_2")
    try:
        return file.resolve()
    except RuntimeError as error:
        # Python before 3.13 raises it.
        raise OSError(errno.ELOOP, "Symbolic links go round in a circle", str(path)) from error


def _with_suffix(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(f"{path.name}.{suffix}") if path.suffix == "" else path


def _open_temporary(target: pathlib.Path) -> tuple[io.BufferedIOBase, pathlib.Path | None]:
    """
    Open a file to write to before the target is touched.

    :param target: the path that will be written
    :return: the open file, and its path, if it can take the target's place
    """
    if not target.exists() or target.stat().st_nlink == 1:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.sb3_trpo.tmp")
        try:
            return temporary.open("x+b"), temporary
        except OSError as error:
            if error.errno not in NO_ROOM_BESIDE:
                raise
    return cast(io.BufferedIOBase, tempfile.TemporaryFile()), None


def _replace(target: pathlib.Path, file: io.BufferedIOBase, temporary: pathlib.Path) -> bool:
    """
    Put the temporary file in the target's place.

    It stays undone where the old file's owner would change, or the old file may not be removed.

    :param target: the path to replace
    :param file: the temporary file, still open
    :param temporary: the temporary file's path
    :return: whether it was done
    """
    # The bytes first, then the name: otherwise a power failure could leave the new name without the new bytes.
    _sync(file.fileno())
    if target.exists() and not _copy_access(target, temporary):
        return False
    if os.name != "posix":
        # Windows does not rename open files.
        file.close()
    try:
        temporary.replace(target)
    except PermissionError:
        if file.closed:
            raise
        return False
    _sync_folder(target.parent)
    return True


def _copy_access(target: pathlib.Path, temporary: pathlib.Path) -> bool:
    """
    Give the temporary file the owner and the permissions of the target.

    :param target: the path of the old file
    :param temporary: the path of the new file
    :return: whether it could be done
    """
    old, new = target.stat(), temporary.stat()
    try:
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(temporary, old.st_uid, old.st_gid)
        shutil.copymode(target, temporary)
        if hasattr(os, "listxattr") and ACCESS_LIST in os.listxattr(target):
            os.setxattr(temporary, ACCESS_LIST, os.getxattr(target, ACCESS_LIST))
    except OSError:
        return False
    return True


def _copy(file: io.BufferedIOBase, target: pathlib.Path) -> None:
    """
    Write the target in its place; an error (a full disk) brings the old content back.

    :param file: the file with the new content
    :param target: the path to write to
    """
    file.seek(0)
    # Not "wb", which would free the old content's place on the disk, so that it might not fit again.
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with open(descriptor, "r+b") as place:
        old = place.read()
        try:
            _overwrite(place, file.read())
        except BaseException:
            _overwrite(place, old)
            raise


def _overwrite(place: io.BufferedIOBase, content: bytes) -> None:
    place.seek(0)
    place.write(content)
    place.truncate()
    place.flush()
    _sync(place.fileno())


def _prefix(target: pathlib.Path) -> str:
    return f".{target.name[:NAME_CHARACTERS]}."


def _remove_abandoned(target: pathlib.Path) -> None:
    # Only names as we give them, digit by digit: other files are the user's.
    pattern = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{16}\.sb3_trpo\.tmp")
    # A folder may be closed to readers; another writer may be doing the same.
    with contextlib.suppress(OSError):
        for file in target.parent.iterdir():
            if pattern.fullmatch(file.name) and time.time() - file.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                file.unlink()


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _sync_folder(folder: pathlib.Path) -> None:
    """
    Write a folder through to the disk: a new name is there only when its folder is.

    :param folder: the folder of a file that was renamed
    """
    if os.name != "posix":
        return
    # The file is in its place already. Where folders can't be opened or synced, a power failure may bring the old file
    # back, whole.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
