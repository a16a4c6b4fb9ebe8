# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which of a block's scans are run side by side, and what each such pass reads and keeps.

Axes: b batch, k scans, l positions, m positions that are read.
"""

from typing import NamedTuple

from torch import Tensor

from .cache import LayerCache
from .scan_orders import Reading
from .selection import Selection, compact_order

# A CPU runs as many scans at once as have this many numbers: more of them in new memory, and out of
# its caches, cost more than one pass after the other.
PASS_NUMBERS = 2**17


def scans_at_once(scans: int, numbers: int) -> int:
    """How many scans, of so many numbers each, a CPU runs side by side."""
    return min(scans, max(1, PASS_NUMBERS // max(1, numbers)))


class ScanPass(NamedTuple):
    """Some of a block's scans, which read a sequence side by side.

    scans: which of the block's. reading: what they read, in which order. gate: (b, k, l) by
    position, multiplies Delta and hides the output; None for none. cache: what the scans go on
    from; None where nothing is before.
    """

    scans: slice
    reading: Reading
    gate: Tensor | None = None
    cache: LayerCache | None = None

    @property
    def num_scans(self) -> int:
        """How many scans these are."""
        return self.reading.order.shape[1]

    @property
    def is_recording(self) -> bool:
        """Whether the cache keeps what these scans read."""
        return self.cache is not None and self.cache.is_recording

    def kept(self, name: str) -> Tensor | None:
        """What the cache has for these scans under a name."""
        tensor = None if self.cache is None else self.cache.get(name)
        return None if tensor is None else tensor[:, self.scans]


def split_passes(
    orders: tuple[Tensor, Tensor],
    together: int,
    selection: Selection | None,
    cache: LayerCache | None,
) -> list[ScanPass]:
    """Split scans, of these orders and inverses (b, k, l), into passes of so many `together`."""
    passes, (order, inverse) = [], orders
    for start in range(0, order.shape[1], together):
        scans = slice(start, min(start + together, order.shape[1]))
        reading, gate = Reading(order[:, scans], inverse[:, scans]), None
        if selection is not None and selection.gate is not None:
            gate = selection.gate[:, scans]
        elif selection is not None:
            kept = selection.kept[:, scans]
            steps, real = compact_order(reading.order, kept, selection.longest)
            reading = reading._replace(steps=steps, real=real)
        passes.append(ScanPass(scans, reading, gate, cache))
    return passes
