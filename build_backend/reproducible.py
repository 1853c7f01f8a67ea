"""
Build with setuptools, into archives that depend on the sources alone. pyproject.toml names this build backend.

setuptools 84.2.1 reads ``SOURCE_DATE_EPOCH`` (https://reproducible-builds.org/specs/source-date-epoch) for the times in
a wheel. It does not for a source distribution, which keeps the owner and the times of the files and the hour of the
build; and both archives keep the permissions that the builder's umask gave to the files. So two builds of the same
sources differ. Where the variable is set, this backend writes both archives a second time, without these traces. Where
it is not set, they stay as setuptools makes them.

To drop this file one day: let pyproject.toml name ``setuptools.build_meta``, and see whether
``tests/test_packaging.py::test_builds_depend_on_the_sources_alone`` passes.
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
    Build the source distribution.

    :param sdist_directory: the folder to write the archive to
    :param config_settings: settings for setuptools
    :return: the archive's name
    """
    name = build_meta.build_sdist(sdist_directory, config_settings)
    if "SOURCE_DATE_EPOCH" in os.environ:
        normalize_sdist(Path(sdist_directory, name), int(os.environ["SOURCE_DATE_EPOCH"]))
    return name


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """
    Build the wheel.

    :param wheel_directory: the folder to write the archive to
    :param config_settings: settings for setuptools
    :param metadata_directory: the folder that ``prepare_metadata_for_build_wheel`` has made, if it has
    :return: the archive's name
    """
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    if "SOURCE_DATE_EPOCH" in os.environ:
        normalize_wheel(Path(wheel_directory, name))
    return name


def permissions(mode: int, *, directory: bool = False) -> int:
    """
    Reduce permissions to what git records: whether the owner may execute the file.

    :param mode: the permissions that the file was found with
    :param directory: whether the file is a folder
    :return: 0o755 or 0o644
    """
    return 0o755 if directory or mode & 0o100 else 0o644


def normalize_sdist(path: Path, epoch: int) -> None:
    """
    Rewrite a source distribution in the order of its names, with one time and no owners.

    :param path: the source distribution, which is replaced
    :param epoch: the time for all its files, in seconds since 1970
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
    Rewrite a wheel with the permissions that git records. Its times and its order are right already.

    :param path: the wheel, which is replaced
    """
    with zipfile.ZipFile(path) as archive:
        contents = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in contents:
            mode = entry.external_attr >> 16
            entry.external_attr = (mode & ~0o7777 | permissions(mode)) << 16
            archive.writestr(entry, content)
