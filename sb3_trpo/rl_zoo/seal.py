"""
Seals on checkpoints, which tell whether the user's account has written a file, by a key that only the account can read.

Whoever can write into a file's folder can also write what lies beside the file: a note, a key, a digest. So the key is
kept in the user's own folder for the state of programs. A file's seal is the HMAC-SHA256 of all its other bytes. It
stands in the comment at the end of the zip archive, so that file and seal are replaced as one.
"""

import hashlib
import hmac
import os
import secrets
import struct
import sys
import tempfile
from pathlib import Path

KEY_BYTES = 32
SEAL_BYTES = hashlib.sha256().digest_size
# The last field of an archive without a comment is the comment's length.
NO_COMMENT = struct.pack("<H", 0)
COMMENT_LENGTH = struct.pack("<H", SEAL_BYTES)


def add_seal(archive: bytes) -> bytes:
    """
    Seal a file.

    :param archive: the file: a zip archive without a comment
    :return: the file with a seal; without one where the account has no place for a key
    """
    key = _read_key()
    if key is None or not archive.endswith(NO_COMMENT):
        return archive
    return archive[: -len(NO_COMMENT)] + COMMENT_LENGTH + _compute_seal(key, archive)


def has_own_seal(content: bytes) -> bool:
    """
    Tell whether this account has written a file, and nobody has changed it since.

    :param content: the whole file
    :return: whether the seal is right
    """
    archive, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    key = _read_key()
    if key is None or not archive.endswith(COMMENT_LENGTH):
        return False
    archive = archive.removesuffix(COMMENT_LENGTH) + NO_COMMENT
    return hmac.compare_digest(seal, _compute_seal(key, archive))


def _compute_seal(key: bytes, archive: bytes) -> bytes:
    return hmac.digest(key, archive, hashlib.sha256)


def _read_key() -> bytes | None:
    """
    Read the account's key, and make it if there is none.

    :return: the key; None where it can be neither read nor written
    """
    try:
        path = _state_folder() / "checkpoint-key"
        if not path.exists():
            _write_key(path)
        key = path.read_bytes()
    # No home (a RuntimeError), no right to read or write, a full disk.
    except (OSError, RuntimeError):
        return None
    return key if len(key) == KEY_BYTES else None


def _write_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Only the owner can read such a file.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
    try:
        # If processes start together, the first one makes the key, as a whole, and the others read it.
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without links.
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _state_folder() -> Path:
    """
    Find this package's folder among those where programs keep their state: XDG's, or Windows' local ones.

    :return: the folder
    """
    windows = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
    base = os.environ.get("XDG_STATE_HOME") or windows
    return (Path(base) if base else Path.home() / ".local" / "state") / "sb3_trpo"
