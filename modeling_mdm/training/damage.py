# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much of the data may be passed over because it cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

MAX_SKIPPED = 0.01
MAX_SKIPPED_HELP = (
    "Share of the items that may be skipped because they cannot be read, in [0, 1]; one always may "
    "be, unless this is 0. Beyond it the run stops with the list of them."
)
LISTED = 50


class TooManySkippedError(ValueError):
    """More of the data cannot be read than may be passed over."""


def check_max_skipped(share: float) -> None:
    """Raise a ValueError where a share is none."""
    if not 0 <= share <= 1:
        raise ValueError(f"max_skipped={share} must be in [0, 1].")


def check_skipped(skipped: int, total: int, max_skipped: float, names: Sequence[str]) -> None:
    """Stop where too much was skipped.

    Args:
        skipped: how many items could not be read.
        total: of how many.
        max_skipped: the share that may be; at least one item may, unless it is 0.
        names: what was skipped, and why.

    Raises:
        TooManySkippedError: with these names.
    """
    if skipped <= (max(1.0, max_skipped * total) if max_skipped else 0):
        return
    listed = "".join(f"\n  {name}" for name in names[:LISTED])
    more = f"\n  and {skipped - LISTED} more" if skipped > LISTED else ""
    raise TooManySkippedError(
        f"{skipped} of {total} items cannot be read, more than max_skipped={max_skipped:g} allows: "
        f"mend or remove them, or raise --max_skipped.{listed}{more}"
    )
