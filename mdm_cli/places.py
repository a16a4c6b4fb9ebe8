# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that a command names: there, or called missing before anything is loaded."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

# owner/name, or a name alone, as the Hub has them.
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def is_hub_id(place: str) -> bool:
    """Tell whether a name could be an id of the Hub, rather than the path of a folder."""
    return re.fullmatch(_HUB_ID, place) is not None and ".." not in place


def require_place(argument: str, place: str, owned: bool = False) -> None:
    """Let folders that exist and ids of the Hub pass.

    Args:
        argument: what the user calls it.
        place: a folder or an id.
        owned: names without an owner are no ids.

    Raises:
        FileNotFoundError: if it is neither.
        NotADirectoryError: if it is a file.
    """
    path = Path(place)
    if path.is_dir():
        return
    if path.exists():
        raise NotADirectoryError(f"{argument}={place!r} is a file: name the folder that it is in.")
    if not is_hub_id(place) or (owned and "/" not in place):
        raise FileNotFoundError(
            f"{argument}={place!r} is missing: there is no such folder, and an id of the Hub is "
            "written owner/name."
        )


def require_file(argument: str, place: str) -> None:
    """Let files that exist pass.

    Raises:
        FileNotFoundError: if it is none.
    """
    if not Path(place).is_file():
        what = "is a folder" if Path(place).is_dir() else "is missing"
        raise FileNotFoundError(f"{argument}={place!r} {what}: name an existing file.")


def require_folder(argument: str, place: str) -> None:
    """Let folders that exist pass.

    Raises:
        FileNotFoundError: if it is none.
    """
    if not Path(place).is_dir():
        what = "is a file" if Path(place).exists() else "is missing"
        raise FileNotFoundError(f"{argument}={place!r} {what}: name an existing folder.")


def require_writable(argument: str, place: str) -> None:
    """Let folders pass that can be written to, or made.

    Raises:
        OSError: if it cannot.
    """
    _require_writable(argument, place, Path(place).absolute())


def require_writable_file(argument: str, place: str) -> None:
    """Let files pass that can be written, with their folder.

    Raises:
        OSError: if it cannot.
    """
    if Path(place).is_dir():
        raise IsADirectoryError(f"{argument}={place!r} is a folder: name a file.")
    _require_writable(argument, place, Path(place).absolute().parent)


def _require_writable(argument: str, place: str, nearest: Path) -> None:
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(
            f"{argument}={place!r} cannot be written to: {str(nearest)!r} is no folder."
        )
    try:  # permissions do not tell of a system that is mounted for reading
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise PermissionError(
            f"{argument}={place!r} cannot be written to: {str(nearest)!r} takes nothing "
            f"({error.strerror})."
        ) from error
