# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A figure with its error, and the answers that it is of: one for each item, no more, no fewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Id = TypeVar("Id", bound=Hashable)
NUM_NAMED = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over items, or another figure of theirs.

    Args:
        value: the figure.
        num_items: of how many items.
        standard_error: how far it lies from that of infinitely many items, one standard
            deviation; None where one item, or the measure, tells nothing of it.
        interval: where 95 % of the figures lie when the items are drawn again, for figures that
            are no mean; None elsewhere.
    """

    value: float
    num_items: int
    standard_error: float | None = None
    interval: tuple[float, float] | None = None


def mean_of(values: Sequence[float]) -> Estimate:
    """Average, with its standard error s / sqrt(n), s² being the unbiased variance.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("values is empty: a mean needs at least one item.")
    numbers = np.asarray(values, dtype=np.float64)
    error = float(numbers.std(ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else None
    return Estimate(float(numbers.mean()), len(numbers), error)


def by_id(pairs: Iterable[tuple[Id, Any]], what: str) -> dict[Id, Any]:
    """Collect what belongs to each id.

    Raises:
        ValueError: an id comes twice.
    """
    pairs = list(pairs)
    twice = [one for one, count in Counter(one for one, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{what} has {_named(twice)} more than once: leave one of each.")
    return dict(pairs)


def require_same_ids(
    answers: Mapping[Any, Any], asked: Mapping[Any, Any], what: str = "answers"
) -> None:
    """Let answers pass that are one to each item.

    Raises:
        ValueError: one is missing, or answers nothing; names the first few.
    """
    missing = [one for one in asked if one not in answers]
    surplus = [one for one in answers if one not in asked]
    if missing:
        raise ValueError(f"{what} has none for {_named(missing)}: give one for every item.")
    if surplus:
        raise ValueError(f"{what} has {_named(surplus)}, which nobody asked for: take them out.")


def _named(ids: Sequence[Any]) -> str:
    more = f" and {len(ids) - NUM_NAMED} more" if len(ids) > NUM_NAMED else ""
    return ", ".join(repr(one) for one in ids[:NUM_NAMED]) + more
