# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The version of this package, written in this one place, what it can read and what it runs on."""

import re

import transformers
from transformers.utils import logging

logger = logging.get_logger("modeling_mdm")

__version__ = "0.2.0"

# The first version whose checkpoints this one reads. It rises when weights or settings get other
# names or another meaning.
OLDEST_READABLE = "0.1.0"

# The newest minor version of transformers that all tests have passed with; `setup.py` allows none
# beyond it. A repository of the Hub carries no requirements, so the code says it there.
TESTED_TRANSFORMERS = "5.24"


def numbers(version: str) -> tuple[int, ...]:
    """Order versions: `1.2.3` is (1, 2, 3); what follows the numbers does not count.

    Raises:
        ValueError: if it is no version.
    """
    match = re.match(r"\d+(\.\d+)*", version)
    if match is None:
        raise ValueError(f"`mdm_version` is {version!r}: a version such as {__version__} is due.")
    return tuple(map(int, match[0].split(".")))


def check_readable(written_by: str) -> None:
    """Refuse checkpoints that this version would misread.

    Raises:
        ValueError: if the version that wrote it is older than the oldest that is readable, or
            newer than this one.
    """
    writer = numbers(written_by)
    if writer < numbers(OLDEST_READABLE):
        raise ValueError(
            f"This checkpoint was written by version {written_by} of modeling-mdm, and version "
            f"{__version__} reads those of {OLDEST_READABLE} and later: install "
            f"modeling-mdm=={written_by}, or load it by the code beside it, with "
            "trust_remote_code=True in a process that does not import modeling_mdm."
        )
    if writer > numbers(__version__):
        raise ValueError(
            f"This checkpoint was written by version {written_by} of modeling-mdm, which is newer "
            f"than this one, {__version__}: upgrade by pip install --upgrade modeling-mdm, or load "
            "it by the code beside it, with trust_remote_code=True in a process that does not "
            "import modeling_mdm."
        )


def warn_if_untested(installed: str = transformers.__version__) -> None:
    """Say, once in a process, that a version of transformers is newer than those tested."""
    if numbers(installed)[:2] > numbers(TESTED_TRANSFORMERS):
        logger.warning_once(
            f"transformers {installed} is newer than {TESTED_TRANSFORMERS}, the newest that this "
            "code of modeling-mdm was tested with. If anything fails, upgrade modeling-mdm or "
            f"install transformers=={TESTED_TRANSFORMERS}.*"
        )
