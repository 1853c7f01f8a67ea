"""
Zip files from strangers: read with bounds on every size, and written anew for readers that are less careful.
"""

import io
import zipfile

from sb3_trpo.saved_models.pickle_reader import RefusedModelError

# A file may unpack to so many times its own size; weights hardly shrink, so that models are not compressed at all.
MAX_RATIO = 20
MAX_MEMBERS = 100_000


def read_archive(file: io.BufferedIOBase | io.BytesIO) -> dict[str, bytes]:
    """
    Nothing is unpacked to the disk, so that the names in the archive are no paths.

    :param file: a zip archive
    :return: the contents of its members, by name
    :raises RefusedModelError: if it is damaged, or larger than it looks
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
                raise RefusedModelError("its members are too many, or have the same names")
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                # Others take as much memory as the file says that they need.
                raise RefusedModelError("it is compressed by another method than deflate")
            # Against the size of the file, for members may overlap.
            if sum(member.file_size for member in members) > MAX_RATIO * size:
                raise RefusedModelError(f"it unpacks to more than {MAX_RATIO} times its size")
            return {member.filename: archive.read(member) for member in members}
    except RefusedModelError:
        raise
    # Whatever zipfile and its decompressors come to in a damaged file.
    except Exception as error:
        raise RefusedModelError(f"it is no zip file, or a damaged one ({type(error).__name__}: {error})") from error


def write_archive(members: dict[str, bytes]) -> bytes:
    """
    :param members: contents by name
    :return: a zip archive, not compressed
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
