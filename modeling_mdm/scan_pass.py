# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a block's scans are run: how many at a time, and how much of a sequence at a time.

Axes: b batch, k scans, l positions, m positions that are read, c channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import LayerCache
from .scan_orders import add_rows, gather_rows, merge, reorder

# A CPU runs as many scans at once as have this many numbers: more of them in new memory, and out of
# its caches, cost more than one pass after the other.
PASS_NUMBERS = 2**17

# Without gradients it runs a long scan in stretches of so many numbers for each of its cores, which
# stay in the core's cache from the reading of a stretch until its outputs are added up.
STRETCH_NUMBERS = 2**20


def scans_at_once(scans: int, numbers: int) -> int:
    """How many scans, of so many numbers each, a CPU runs side by side."""
    return min(scans, max(1, PASS_NUMBERS // max(1, numbers)))


def stretch_length(length: int, width: int, chunk_size: int) -> int | None:
    """How many steps, of so many numbers each, a CPU reads at a time; None where that is all."""
    steps = STRETCH_NUMBERS * torch.get_num_threads() // max(1, width)
    steps = max(1, steps // chunk_size) * chunk_size
    return steps if steps < length else None


class ScanPass(NamedTuple):
    """Some of a block's scans, which read a sequence side by side.

    part: which of the block's scans. order, inverse: (b, k, l). cache: what the scans go on from.
    state: that of the positions before these, (b, k, h, n, p); None for none. steps, real:
    (b, k, m), the steps that are read where items are dropped, and False at fillers; None where all
    are read. gate: (b, k, l) by position, multiplies Delta and hides the output; None for none.
    stretch: how many steps are read at a time; None for all. window: the steps of one stretch.
    """

    part: slice
    order: Tensor
    inverse: Tensor
    cache: LayerCache | None = None
    state: Tensor | None = None
    steps: Tensor | None = None
    real: Tensor | None = None
    gate: Tensor | None = None
    stretch: int | None = None
    window: slice | None = None

    @property
    def is_recording(self) -> bool:
        """Whether the cache keeps what these scans read."""
        return self.cache is not None and self.cache.is_recording

    def kept(self, name: str) -> Tensor | None:
        """What the cache has for these scans under a name."""
        tensor = None if self.cache is None else self.cache.get(name)
        return None if tensor is None else tensor[:, self.part]

    def read(self, values: Tensor) -> Tensor:
        """Read (b, k, l, c) in every scan's order: (b, k, m, c)."""
        if self.steps is None and self.window is None:
            return reorder(values, self.order, self.inverse)
        return gather_rows(values, self.positions)

    @property
    def positions(self) -> Tensor:
        """What is read, (b, k, m)."""
        if self.steps is None:
            return self.order[..., self.window]
        return self.order.gather(-1, self.steps)

    def windows(self) -> Iterator["ScanPass"]:
        """Yield the stretches that are read one after another, the last of which may be shorter."""
        length = (self.order if self.steps is None else self.steps).shape[-1]
        for start in range(0, length, self.stretch):
            window = slice(start, min(start + self.stretch, length))
            if self.steps is None:
                yield self._replace(window=window)
            else:
                steps, real = self.steps[..., window], self.real[..., window]
                yield self._replace(window=window, steps=steps, real=real)

    def add_to(self, total: Tensor, y: Tensor) -> Tensor:
        """Add (b, k, m, c), which may be overwritten, to sums (b, k or 1, l, c), in place."""
        if self.real is not None:
            real = self.real[..., None]
            y = y * real if torch.is_grad_enabled() else y.mul_(real)
        return add_rows(total, y, self.positions)

    def zeros(self, y: Tensor, targets: int) -> Tensor:
        """Zeros for sums of what is read of y (b, ..., c), (b, targets, l, c)."""
        return y.new_zeros(y.shape[0], targets, self.order.shape[-1], y.shape[-1])

    def bring_back(self, y: Tensor) -> Tensor:
        """Bring (b, k, m, c) back to storage order, 0 where nothing was read: (b, k, l, c)."""
        if self.steps is None:
            return reorder(y, self.inverse, self.order)
        return self.add_to(self.zeros(y, self.order.shape[1]), y)

    def merge(self, y: Tensor, others: Tensor | None) -> Tensor:
        """Sum (b, k, m, c) over the scans in storage order, onto `others` if any: (b, l, c).

        Without gradients both may be overwritten.
        """
        if self.steps is None:
            merged = merge(y, self.order, self.inverse)
        elif y.device.type != "cpu":
            # Added up side by side, a sum would differ from run to run in its last digits.
            merged = self.bring_back(y).sum(1)
        else:
            if others is not None and not torch.is_grad_enabled():
                return self.add_to(others[:, None], y)[:, 0]
            merged = self.add_to(self.zeros(y, 1), y)[:, 0]
        if others is None:
            return merged
        return others + merged if torch.is_grad_enabled() else others.add_(merged)
