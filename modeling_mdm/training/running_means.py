# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Means over the steps between two logs, and over an evaluation, that no step has to wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


class RunningMeans:
    """Means of named numbers, added up on their device so that no step has to wait for it."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(
        self, values: Mapping[str, torch.Tensor | None], weight: float = 1.0, share: float = 1.0
    ) -> None:
        """Take in one 0-dim tensor a name, times a weight; None is left out.

        A step of several batches counts as one: each is this share of it.
        """
        for name, value in values.items():
            if value is None:
                continue
            self._sums[name] = self._sums.get(name, 0) + weight * value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + share

    def pop(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the means over all processes and start anew."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = gather(means.reshape(1, -1)).mean(dim=0)
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))


class RunningSum:
    """Sums tallies (b, means, 2) over items and calls, on their device."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    def add(self, tallies: torch.Tensor) -> None:
        """Take in those of a batch."""
        # Apple's GPUs have no float64.
        dtype = torch.float32 if tallies.device.type == "mps" else torch.float64
        total = tallies.detach().to(dtype).sum(0)
        self._sum = total if self._sum is None else self._sum + total

    def pop(
        self, gather: Callable[[torch.Tensor], torch.Tensor] = lambda mine: mine
    ) -> torch.Tensor | None:
        """Return the sum (means, 2), of all processes by `gather`, and start anew."""
        total, self._sum = self._sum, None
        return None if total is None else gather(total[None]).sum(0)
