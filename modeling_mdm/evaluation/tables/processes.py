# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the processes of a launch share out among them, and the noise of one item.

An item's noise depends on the seed and the item alone: not on the batch that it is in, nor on the
process, nor on what was done before a kill.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
PATIENCE = timedelta(weeks=1)


def rank() -> int:
    """Which of the processes of `accelerate launch` or `torchrun` this is."""
    return int(os.environ.get("RANK", "0"))


def num_launched() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Take this process's items."""
    return items[rank() :: num_launched()]


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if num_launched() > 1:
        from accelerate import PartialState

        # By processors, whose patience can be told: one may measure for hours while others wait.
        PartialState(cpu=True, timeout=PATIENCE).wait_for_everyone()


def item_noise(seed: int, *item: Any) -> torch.Generator:
    """Give the generator of one item's noise."""
    digest = hashlib.sha256(repr((seed, *item)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
