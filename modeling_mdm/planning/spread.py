# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which blocks are checkpointed, where a share of them is; training and its plan agree."""

from __future__ import annotations


def evenly_spread(count: int, share: float) -> list[bool]:
    """Choose a share of so many, the nearest whole number of them, evenly spread."""
    chosen = round(share * count)
    return [(n + 1) * chosen // count > n * chosen // count for n in range(count)]


def require_share_of_blocks(share: float, is_checkpointing: bool, option: str) -> None:
    """Refuse a share of checkpointed blocks that is none, or has nothing to act on.

    Args:
        option: what switches checkpointing on.

    Raises:
        ValueError: names checkpointed_blocks and the fix.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(
            f"checkpointed_blocks={share} must be in [0, 1]: a share of the blocks, 1 for all."
        )
    if share < 1.0 and not is_checkpointing:
        raise ValueError(
            f"checkpointed_blocks={share} is a share of what {option}=True does: set that too, or "
            "leave both out."
        )
