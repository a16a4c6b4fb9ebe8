# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much of the data may be passed over because it cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

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


class StandIns(torch.utils.data.Dataset[Any]):
    """A set in which the next item that can be read stands in for one that cannot.

    So batches keep their shape, and which item is given depends on nothing but the index.

    Args:
        length: the number of items.
        max_skipped: share of them that may be damaged.

    Raises:
        ValueError: if max_skipped is no share.
    """

    def __init__(self, length: int, max_skipped: float) -> None:
        check_max_skipped(max_skipped)
        self._length, self.max_skipped = length, max_skipped
        # In shared memory: workers find what the main process counts.
        self._is_damaged = torch.zeros(length, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return self._length

    @property
    def skipped(self) -> int:
        """How many items were found damaged."""
        return int(self._is_damaged.sum())

    def name(self, index: int) -> str:
        """Say what an item is called."""
        raise NotImplementedError

    def _read(self, index: int) -> Any:
        """Read an item, or raise whatever its decoder raises."""
        raise NotImplementedError

    def _read_near(self, index: int) -> tuple[int, Any]:
        """Read the first item from `index` on that can be read, and say which it is.

        Raises:
            TooManySkippedError: if more items are damaged than may be.
        """
        index = int(index)
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} items.")
        index %= self._length
        for number in chain(range(index, self._length), range(index)):
            try:
                return number, self._read(number)
            except Exception as error:  # whatever a decoder raises
                self._skip(number, error)
        raise TooManySkippedError(f"none of the {self._length} items can be read.")

    def _skip(self, index: int, error: Exception) -> None:
        if not self._is_damaged[index]:
            self._is_damaged[index] = True
            logger.warning(f"{self.name(index)}, is skipped: {error}.")
        damaged = self._is_damaged.nonzero().flatten().tolist()
        names = [self.name(number) for number in damaged]  # found by other processes, too
        check_skipped(len(names), self._length, self.max_skipped, names)
