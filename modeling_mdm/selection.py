# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Selection (Sec. 3.2, Theorem 3): which items every scan reads, acting through Delta.

Delta_n <- g_n Delta_n. At g = 0 the discrete system has A-bar = 1 and B-bar = 0: the state passes
the item by.

Axes: b batch, k scans, l positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Selection:
    """Which items every scan of a block reads.

    kept: (b, k, l) bool, by position. longest: the most items that a scan reads, where no gate is.
    gate: (b, k, l), multiplies Delta and hides the output, in training; None drops what is not kept
        instead (hard selection).
    """

    kept: Tensor
    longest: int
    gate: Tensor | None = None


def kept_count(count: Tensor, keep: float) -> Tensor:
    """Count the items that are kept of `count` ones: ceil(keep * count)."""
    # The small offset undoes rounding: 0.75 * 4 must give 3, never 4.
    return torch.ceil(count.double() * keep - 1e-9).long()


def select_items(
    importance: Tensor, keep: float, given: Tensor, valid: Tensor, special: Tensor
) -> Tensor:
    """Keep the ceil(keep * count) most important items of every scan: S' of Sec. 3.2.

    Counted separately in an item's given and noisy parts, so that what is given never depends on
    what is noisy. Special tokens are always kept and not counted; padding is never kept.

    Args:
        importance: (b, k, l). keep: share in (0, 1]. given, valid, special: (b, l) bool.

    Returns:
        (b, k, l) bool.
    """
    kept = (special & valid)[:, None].expand_as(importance)
    for part in (given & valid & ~special, ~given & valid & ~special):
        wanted = kept_count(part.sum(-1), keep)  # (b,)
        masked = importance.masked_fill(~part[:, None], float("-inf"))
        place = masked.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        kept = kept | ((place < wanted[:, None, None]) & part[:, None])
    return kept


def compact_order(order: Tensor, selected: Tensor, lengths: int) -> tuple[Tensor, Tensor]:
    """Drop the items that are not selected from a scan order, for hard selection.

    Args:
        order: (b, k, l) from `given_first_order`. selected: (b, k, l) bool by position.
        lengths: longest selection.

    Returns:
        steps (b, k, lengths): the steps at which a scan reads what is selected, then fillers; and
        a mask of the same shape that is False at fillers.
    """
    in_order = selected.gather(-1, order)  # (b, k, l) by step
    steps = (~in_order).long().argsort(dim=-1, stable=True)[..., :lengths]
    return steps, in_order.gather(-1, steps)


class SelectionHead(nn.Module):
    """Scores how much every scan needs every item: importance = sigmoid(linear(features))."""

    def __init__(self, hidden_size: int, num_scans: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, num_scans)

    def forward(
        self,
        hidden_states: Tensor,
        keep: float,
        given: Tensor,
        valid: Tensor,
        special: Tensor,
        gather: Callable[[Tensor], Tensor] = lambda scores: scores,
    ) -> tuple[Tensor, Tensor]:
        """Select items and give the gate that trains the selection.

        Args:
            hidden_states: (b, l, hidden). keep, given, valid, special: as in `select_items`.
            gather: gives the scores (b, l, k) of all positions, where other processes have some.

        Returns:
            selected (b, k, l) bool, and gate (b, k, l): its value is 0 or 1, its gradient that of
            the importance (straight-through).
        """
        importance = torch.sigmoid(gather(self.score(hidden_states)).float())
        importance = importance.transpose(1, 2)  # (b, k, l)
        selected = select_items(importance.detach(), keep, given, valid, special)
        return selected, selected.to(importance.dtype) + (importance - importance.detach())


class ScoreEntropyHead(nn.Module):
    """Predicts every item's own score entropy: Theorem 3's "se = 0" made usable at inference.

    Predicts log(1 + se), which spans a range that a linear layer can follow; it trains on detached
    features.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.predict = nn.Linear(hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Predict log(1 + se) from features (b, l, hidden): (b, l)."""
        result: Tensor = self.predict(hidden_states.detach()).squeeze(-1).float()
        return result
