# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scan orders: in which order every scan reads the joint sequence (Sec. 3.2, Fig. 2f-g).

The given part always comes first.

Axes: b batch, k scans, l positions of the joint sequence, m positions that are read, c channels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def text_rank(length: int, order: int, device: torch.device | None = None) -> Tensor:
    """Rank of every word in text order 1 (forward) or 2 (reverse): (length,) long."""
    forward = torch.arange(length, device=device)
    return forward if order == 1 else length - 1 - forward


def image_rank(height: int, width: int, order: int, device: torch.device | None = None) -> Tensor:
    """Rank of every patch of a (height, width) grid in row-major storage: (height * width,) long.

    Orders: 1 rows forward, 2 rows reverse, 3 columns forward, 4 columns reverse.
    """
    row = torch.arange(height, device=device)[:, None].expand(height, width)
    column = torch.arange(width, device=device)[None, :].expand(height, width)
    rank = row * width + column if order in (1, 2) else column * height + row
    rank = rank.flatten()
    return rank if order in (1, 3) else height * width - 1 - rank


def joint_rank(
    num_words: int,
    grid: tuple[int, int, int],
    pair: tuple[int, int],
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Ranks of all words and all patches in one joint scan.

    A forward scan reads words before patches, a reverse scan patches before words, so each
    modality reads the other.

    Args:
        num_words: words of the text segment. grid: (pictures, rows, columns).
        pair: (image order, text order).

    Returns:
        (num_words,) and (pictures * rows * columns,), distinct integers.
    """
    pictures, height, width = grid
    image_order, text_order = pair
    words = text_rank(num_words, text_order, device)
    within = image_rank(height, width, image_order, device)
    picture = text_rank(pictures, 1 if image_order in (1, 3) else 2, device)
    patches = (picture[:, None] * (height * width) + within).flatten()
    if text_order == 1:
        return words, patches + num_words
    return words + patches.numel(), patches


def given_first_order(
    rank: Tensor, valid: Tensor, given: Tensor, special: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    """Sort every scan by (is padding, is noisy, is ordinary, turn, rank).

    What is given is therefore never read after what is noisy, in any direction, older turns are
    read before newer ones, and padding is read last.

    Args:
        rank: (k, l) long, distinct and non-negative in every scan.
        valid, given, special: (b, l) bool; special tokens lead their part in the same order in
            every scan.
        turn: (b, l) long, non-negative.

    Returns:
        order (b, k, l): the position read at every step; inverse (b, k, l): the step at which a
        position is read.
    """
    length = rank.shape[-1]
    storage = torch.arange(length, device=rank.device)
    part = 2 * (~valid).long() + (valid & ~given).long()  # 0 given, 1 noisy, 2 padding
    turn = torch.where(special, 0, turn)
    leading = (part * 2 + (~special).long()) * (1 << 20) + turn  # (b, l)
    within = torch.where(special[:, None], storage, rank[None])  # (b, k, l)
    key = leading[:, None] * (2 * length + 2) + within
    order = key.argsort(dim=-1, stable=True)
    return order, order.argsort(dim=-1)


class _Gather(torch.autograd.Function):
    """Read a sequence in every scan's order; the gradient is gathered back, not scattered.

    Of a sequence that all scans share it is the sum over the scans.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.shared = x.dim() == 3
        return gather_rows(x, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        back = sum_rows if ctx.shared else gather_rows
        return back(gradients[0], inverse), None, None


class _Merge(torch.autograd.Function):
    """Bring every scan back into storage order and sum; the gradient is spread again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return sum_rows(x, inverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return gather_rows(gradients[0], order), None, None


def _row_numbers(order: Tensor, sources: int, length: int) -> Tensor:
    """Number the rows of `sources` stacked sequences of a length that an order (b, k, m) reads."""
    first = torch.arange(0, sources * max(length, 1), max(length, 1), device=order.device)
    return order + first.view(order.shape[0], -1, 1)


def gather_rows(x: Tensor, order: Tensor) -> Tensor:
    """Read rows of (b, l, c) or (b, k, l, c) by an order (b, k, m): (b, k, m, c)."""
    sources = order.shape[0] * (1 if x.dim() == 3 else order.shape[1])
    rows = x.reshape(-1, x.shape[-1]).index_select(
        0, _row_numbers(order, sources, x.shape[-2]).flatten()
    )
    return rows.view(*order.shape, x.shape[-1])


def sum_rows(x: Tensor, inverse: Tensor) -> Tensor:
    """Bring (b, k, l, c) back to storage order and sum over the scans, in one pass: (b, l, c)."""
    batch, scans, length, width = x.shape
    if scans == 1:
        return gather_rows(x, inverse)[:, 0]
    rows = (
        _row_numbers(inverse, batch * scans, length).transpose(1, 2).reshape(batch * length, scans)
    )
    if x.dtype == torch.float64:  # embedding_bag has no fast path there
        return gather_rows(x, inverse).sum(1)
    return F.embedding_bag(rows, x.reshape(-1, width), mode="sum").view(batch, length, width)


def spread(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Copy a shared sequence (b, l, c) into every scan's order (b, k, l): (b, k, l, c)."""
    return reorder(x, order, inverse)


def merge(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Sum all scans in storage order, the transpose of `spread`: (b, k, l, c) -> (b, l, c)."""
    result: Tensor = _Merge.apply(x, order, inverse)
    return result


def add_rows(total: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    """Add rows (b, k, m, c) to k sums, or to 1, at positions (b, k, m), in place.

    Args:
        total: (b, k or 1, l, c), contiguous.

    Returns:
        total.
    """
    batch, targets, length, width = total.shape
    rows = _row_numbers(positions, batch * targets, length).flatten()
    total.view(-1, width).index_add_(0, rows, x.flatten(0, 2))
    return total


def reorder(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Read (b, k, l, c), or (b, l, c) that all scans share, in every scan's order: (b, k, l, c).

    With the two orders exchanged it brings every scan's own sequence back.
    """
    result: Tensor = _Gather.apply(x, order, inverse)
    return result


class Reading(NamedTuple):
    """What some scans read of a sequence, and in which order.

    order, inverse: (b, k, l), as `given_first_order` gives them. steps, real: (b, k, m), the steps
    that are read where items are dropped, and False at fillers; None where all are read.
    """

    order: Tensor
    inverse: Tensor
    steps: Tensor | None = None
    real: Tensor | None = None

    def read(self, values: Tensor) -> Tensor:
        """Read (b, k, l, c) in every scan's order: (b, k, m, c)."""
        if self.steps is None:
            return reorder(values, self.order, self.inverse)
        return gather_rows(values, self.order.gather(-1, self.steps))

    def bring_back(self, y: Tensor) -> Tensor:
        """Bring (b, k, m, c) back to storage order, 0 where nothing was read: (b, k, l, c)."""
        if self.steps is None:
            return reorder(y, self.inverse, self.order)
        return self._add_to(self._zeros(y, y.shape[1]), y)

    def merge(self, y: Tensor, others: Tensor | None = None) -> Tensor:
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
                return self._add_to(others[:, None], y)[:, 0]
            merged = self._add_to(self._zeros(y, 1), y)[:, 0]
        if others is None:
            return merged
        return others + merged if torch.is_grad_enabled() else others.add_(merged)

    def _add_to(self, total: Tensor, y: Tensor) -> Tensor:
        """Add what was read, without fillers, to sums (b, k or 1, l, c), in place."""
        assert self.steps is not None and self.real is not None
        real = self.real[..., None]
        y = y * real if torch.is_grad_enabled() else y.mul_(real)
        return add_rows(total, y, self.order.gather(-1, self.steps))

    def _zeros(self, y: Tensor, targets: int) -> Tensor:
        return y.new_zeros(y.shape[0], targets, self.order.shape[-1], y.shape[-1])
