# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which of many are chosen, where a share of them is."""

from __future__ import annotations


def evenly_spread(count: int, share: float) -> list[bool]:
    """Choose a share of so many, the nearest whole number of them, evenly spread."""
    chosen = round(share * count)
    return [(n + 1) * chosen // count > n * chosen // count for n in range(count)]
