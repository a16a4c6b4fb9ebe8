# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest that writes down the warnings that come from this project's files.

`-p our_warnings` with the file's name in the environment variable `OUR_WARNINGS`: a line for each,
which is how a library says what its next release takes away.
"""

import os
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def from_our_files(filename: str) -> bool:
    """Whether a source file is one of the project's, environments within its folder left out."""
    path = Path(filename).resolve()
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Write one warning down; pytest calls this in the process that reports."""
    target = os.environ.get("OUR_WARNINGS")
    if target is None or not from_our_files(warning_message.filename):
        return
    place = Path(warning_message.filename).resolve().relative_to(ROOT)
    message = " ".join(str(warning_message.message).split())
    kind = warning_message.category.__name__
    with open(target, "a", encoding="utf-8") as file:
        file.write(f"{place}:{warning_message.lineno}: {kind}: {message}\n")
