# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A set that was packed into one tar file, to be carried: unpacked once, and read as the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import cast

ENDINGS = (".tar", ".tar.gz", ".tgz")
TABLES = (".parquet", ".jsonl", ".csv", ".arrow")


class _WholeHeader(tarfile.TarInfo):
    """A header after which a file that was cut off does not pass for a shorter one."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _WholeHeader:
        try:
            return cast(_WholeHeader, super().fromtarfile(tar))
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(str(error)) from error


def is_archive(place: str) -> bool:
    """Tell whether a place is a tar file."""
    return place.lower().endswith(ENDINGS) and os.path.isfile(place)


def unpacked(place: str) -> str | None:
    """Unpack the folder that a tar file holds, and return where it lies.

    It lies in the cache of `datasets`, under a name that another content of the file changes.

    Returns:
        None where no file in it is a table: then its files are samples, as WebDataset packs them.

    Raises:
        ValueError: if the file is no whole archive, or holds paths that lead out of it.
    """
    import datasets

    path = Path(place).resolve()
    state = path.stat()
    key = f"{path}:{state.st_size}:{state.st_mtime_ns}"
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "unpacked" / _digest(key)
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}-{os.getpid()}-unfinished")
        try:
            with tarfile.open(path, tarinfo=_WholeHeader) as archive:
                names = archive.getnames()
                if not any(name.endswith(TABLES) for name in names):
                    return None
                archive.extractall(aside, filter="data")
            _take_name(aside, folder)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            reason = str(error).splitlines()[0].rstrip(":")
            raise ValueError(
                f"{place!r} is no whole archive of a set ({reason}): copy it anew, or unpack it "
                "and name the folder."
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    inside = [*folder.iterdir()]
    return str(inside[0] if len(inside) == 1 and inside[0].is_dir() else folder)


def folder_of(place: str) -> str:
    """Name the folder that a tar file of one holds, unpacked once; any other place as it is."""
    return (unpacked(place) if is_archive(place) else None) or place


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _take_name(aside: Path, folder: Path) -> None:
    try:
        os.replace(aside, folder)
    except OSError:
        if not folder.is_dir():  # not another process, which was faster
            raise
