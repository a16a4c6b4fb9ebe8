# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A word at import where transformers is newer than the code was tested with.

The processor's files travel without the model's, which say the same (`version.py`): whichever is
imported first says it, and a test holds the two versions equal.
"""

import transformers
from packaging.version import Version
from transformers.utils import logging

# As in `version.py`.
TESTED_TRANSFORMERS = "5.24"

logger = logging.get_logger("modeling_mdm")


def warn_if_untested(installed: str = transformers.__version__) -> None:
    """Say, once in a process, that a version of transformers is newer than those tested."""
    if Version(installed).release[:2] > Version(TESTED_TRANSFORMERS).release:
        logger.warning_once(
            f"transformers {installed} is newer than {TESTED_TRANSFORMERS}, the newest that this "
            "code of modeling-mdm was tested with. If anything fails, upgrade modeling-mdm or "
            f"install transformers=={TESTED_TRANSFORMERS}.*"
        )


__all__ = ["warn_if_untested"]
