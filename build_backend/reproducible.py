"""
The build backend that pyproject.toml names: setuptools', with archives that depend on the sources alone.

setuptools reads ``SOURCE_DATE_EPOCH`` (https://reproducible-builds.org/specs/source-date-epoch) for the times in a
wheel, but not for a source distribution, which has the times and the owner of the files it was made of and the hour of
its making; and both have the permissions that the builder's umask gave to the files. So where the variable is set, both
archives are written once more. Where it is not, they are as setuptools makes them.
"""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """
    :param sdist_directory: where the archive goes
    :param config_settings: for setuptools
    :return: the archive's name
    """
    name = build_meta.build_sdist(sdist_directory, config_settings)
    if "SOURCE_DATE_EPOCH" in os.environ:
        normalize_sdist(Path(sdist_directory, name), int(os.environ["SOURCE_DATE_EPOCH"]))
    return name


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """
    :param wheel_directory: where the archive goes
    :param config_settings: for setuptools
    :param metadata_directory: what ``prepare_metadata_for_build_wheel`` has made
    :return: the archive's name
    """
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    if "SOURCE_DATE_EPOCH" in os.environ:
        normalize_wheel(Path(wheel_directory, name))
    return name


def permissions(mode: int, *, directory: bool = False) -> int:
    """
    :param mode: of a file as it was found
    :param directory: whether it is one
    :return: what git knows of it: whether its owner may execute it
    """
    return 0o755 if directory or mode & 0o100 else 0o644


def normalize_sdist(path: Path, epoch: int) -> None:
    """
    :param path: a source distribution, which is replaced
    :param epoch: time of all its files, in seconds since 1970
    """
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        contents = [(member, file.read() if file else b"") for member, file in members]
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member, content in sorted(contents, key=lambda pair: pair[0].name):
            # A new entry has what is set here, and no more: no owner, no time in extended headers.
            entry = tarfile.TarInfo(member.name)
            entry.type = member.type
            entry.size = len(content)
            entry.mode = permissions(member.mode, directory=member.isdir())
            entry.mtime = epoch
            archive.addfile(entry, io.BytesIO(content))


def normalize_wheel(path: Path) -> None:
    """
    :param path: a wheel whose times and order are right already; it is replaced
    """
    with zipfile.ZipFile(path) as archive:
        contents = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in contents:
            mode = entry.external_attr >> 16
            entry.external_attr = (mode & ~0o7777 | permissions(mode)) << 16
            archive.writestr(entry, content)
