# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plots for the page of a table: what was taken for what, and how sure against how often right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

NUM_BINS = 10
NUM_NAMED = 10  # answers with a row of their own
MAX_LABELLED = 30  # names at the edges are legible up to here
OTHER = "(other)"


class Plot(Protocol):
    """What the page shows as a picture."""

    kind: str

    def summary(self) -> dict[str, Any]:
        """Say it in a number or two, for the JSON."""

    def draw(self, axes: Any) -> None:
        """Draw it on matplotlib's axes."""


@dataclass(frozen=True)
class Confusion:
    """What was asked for or is right, against what came of it.

    Args:
        names: of rows and columns.
        counts: (right, found), how often each came of each.
        right, found: what rows and columns are.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    right: str
    found: str
    kind: str = "confusion"

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], right: str, found: str) -> Confusion:
        """Count pairs of a right answer and a given one.

        The commonest right answers have a row each; all others are taken together.
        """
        pairs = list(pairs)
        common = [name for name, _ in Counter(one for one, _ in pairs).most_common(NUM_NAMED)]
        place = {name: n for n, name in enumerate(common)}
        names = (*common, OTHER)
        counts = np.zeros((len(names), len(names)), dtype=int)
        for one, other in pairs:
            counts[place.get(one, len(common)), place.get(other, len(common))] += 1
        return cls(names, counts, right, found)

    def summary(self) -> dict[str, Any]:
        """See `Plot`; the share is that of the rows that have a name."""
        named = [n for n, name in enumerate(self.names) if name != OTHER]
        total = self.counts[named].sum()
        return {"share_on_the_diagonal": float(self.counts[named, named].sum() / max(1, total))}

    def draw(self, axes: Any) -> None:
        """See `Plot`: each row as shares."""
        shares = self.counts / np.maximum(1, self.counts.sum(1, keepdims=True))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel=self.found, ylabel=self.right)
        if len(self.names) <= MAX_LABELLED:
            places = range(len(self.names))
            axes.set_xticks(places, self.names, rotation=90, parse_math=False)
            axes.set_yticks(places, self.names, parse_math=False)


@dataclass(frozen=True)
class Calibration:
    """How sure a model is of what it chooses, against how often that is right.

    Args:
        confidence: probability among the choices of the one that was taken, of each item.
        is_right: whether it was the right one, or its share of credit.
    """

    confidence: Sequence[float]
    is_right: Sequence[float]
    kind: str = "calibration"

    def bins(self) -> list[tuple[float, float, int]]:
        """Give mean confidence, share of right choices and number of items, of each full tenth."""
        confidence, is_right = np.asarray(self.confidence), np.asarray(self.is_right, dtype=float)
        place = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        return [
            (float(confidence[own].mean()), float(is_right[own].mean()), int(own.sum()))
            for own in (place == n for n in range(NUM_BINS))
            if own.any()
        ]

    def summary(self) -> dict[str, Any]:
        """See `Plot`: the expected calibration error, sum over tenths of n |right - sure| / N."""
        error = sum(count * abs(share - sure) for sure, share, count in self.bins())
        return {"calibration_error": error / max(1, len(self.confidence))}

    def draw(self, axes: Any) -> None:
        """See `Plot`: a dot for each tenth, with the standard error of its share."""
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        sure, share, count = (np.array(values) for values in zip(*self.bins(), strict=True))
        axes.errorbar(sure, share, (share * (1 - share) / count) ** 0.5, fmt="o-", capsize=2)
        axes.set(xlabel="probability of the choice", ylabel="share that is right")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def require_matplotlib() -> Any:
    """Give matplotlib, drawing into files.

    Raises:
        ImportError: it is missing.
    """
    import matplotlib

    return matplotlib


def save_plot(plot: Plot, file: Path) -> None:
    """Draw a plot into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")  # of no window: no back-end is chosen
    plot.draw(figure.add_subplot())
    figure.savefig(file, dpi=110)
