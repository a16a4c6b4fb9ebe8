# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A word at import where transformers is newer than the code was tested with."""

import transformers
from transformers.utils import logging

from .version import TESTED_TRANSFORMERS, __version__, numbers

logger = logging.get_logger(__name__)


def warn_if_untested(installed: str = transformers.__version__) -> None:
    """Say, once in a process, that a version of transformers is newer than those tested."""
    if numbers(installed)[:2] > numbers(TESTED_TRANSFORMERS):
        logger.warning_once(
            f"transformers {installed} is newer than {TESTED_TRANSFORMERS}, the newest that "
            f"modeling-mdm {__version__} was tested with. If anything fails, upgrade modeling-mdm "
            f"or install transformers=={TESTED_TRANSFORMERS}.*"
        )


__all__ = ["warn_if_untested"]
