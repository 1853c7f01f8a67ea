"""
Zip files from strangers: read with bounds on every size, and written anew for readers that are less careful.
"""

import io
import pathlib
import zipfile

from sb3_trpo.saved_models.budget import Budget
from sb3_trpo.saved_models.refused import RefusedModelError

# A model has a member for each tensor, and a few more.
MAX_MEMBERS = 20_000


def check_is_file(path: pathlib.Path) -> None:
    """
    Refuse what a link in a stranger's folder may lead to, and may have no end: a device, a pipe.

    :param path: the path, of a file or of nothing
    :raises RefusedModelError: if something else is there
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RefusedModelError("it is no regular file, but a device or a pipe")


def read_archive(file: io.BufferedIOBase | io.BytesIO, budget: Budget | None = None) -> dict[str, bytes]:
    """
    Read a zip archive into memory.

    Nothing is unpacked to the disk, so that the names in the archive are no paths.

    :param file: the archive
    :param budget: the budget of the file that the archive is part of; None if it is a file of its own
    :return: the contents of the members, by name
    :raises RefusedModelError: if the archive is damaged, or larger than it looks
    """
    budget = Budget(file.seek(0, io.SEEK_END)) if budget is None else budget
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
                raise RefusedModelError("its members are too many, or have the same names")
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                # Other methods take as much memory as the file says that they need.
                raise RefusedModelError("it is compressed by another method than deflate")
            # All sizes count before the first member is read, for members may overlap.
            for member in members:
                budget.spend(member.file_size)
            return {member.filename: archive.read(member) for member in members}
    except RefusedModelError:
        raise
    # zipfile and its decompressors may raise anything at a damaged file.
    except Exception as error:
        raise RefusedModelError(f"it is no zip file, or a damaged one ({type(error).__name__}: {error})") from error


def write_archive(members: dict[str, bytes]) -> bytes:
    """
    Write a zip archive that is not compressed.

    :param members: the contents of the members, by name
    :return: the archive
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
