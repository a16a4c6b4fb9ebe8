# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A long sequence shared out among processes: positions in the blocks, heads in their scans.

What works on each position by itself (norms, projections, the residual) does so on a process's own
positions. A scan reads all positions in an order of its own, so for scans the processes exchange:
each gets all positions of its own heads, and gives them back (the all-to-all of DeepSpeed-Ulysses,
arXiv 2309.14509).

All processes of a group compute the same loss of the same batch. In the blocks their gradients are
those of their own shares, which sum to the whole one; elsewhere each has the whole one. `split`,
`join` and `spread` scale them so that the *mean* over the group is right everywhere: that is what
data parallelism takes.

Axes: b batch, k scans, l positions, s positions of one process, c channels (those of all heads, the
heads one after the other), g processes of the group.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class SequenceShare:
    """This process's share of a sequence; without a group all of it, and nothing is exchanged.

    Args:
        group: processes that have the same batch; the first of them has the first positions.
        length: positions of the sequence. Where they do not divide, the last processes have fewer,
            and padding of zeros that nothing reads.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, length: int = 0) -> None:
        self.group, self.length, self.size, self.rank = group, length, 1, 0
        if group is not None:
            self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.most = -(-length // self.size)

    def own(self, values: Tensor) -> Tensor:
        """Take this process's positions of (b, l, ...): (b, s, ...)."""
        if self.group is None:
            return values
        part = values[:, self.rank * self.most : (self.rank + 1) * self.most]
        padding = (0, 0) * (values.dim() - 2) + (0, self.most - part.shape[1])
        return F.pad(part, padding)

    def before(self, position: int) -> int:
        """Count this process's positions before a position of the sequence."""
        if self.group is None:
            return position
        return min(max(position - self.rank * self.most, 0), self.most)

    def heads(self, count: int) -> slice:
        """Say which of so many heads, or channels of equal heads, this process scans."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def split(self, values: Tensor) -> Tensor:
        """Take this process's positions of features (b, l, c) that all have: (b, s, c)."""
        return self._do(values, self.own, lambda gradient: self._gathered(gradient) / self.size)

    def join(self, values: Tensor) -> Tensor:
        """Give everyone all features, of (b, s, c): (b, l, c)."""
        return self._do(values, self._gathered, lambda gradient: self.own(gradient) * self.size)

    def spread(self, values: Tensor) -> Tensor:
        """Let own positions read what all processes have, of any shape."""
        return self._do(values, torch.clone, self._mean)

    def gather(self, values: Tensor) -> Tensor:
        """Bring all positions together, (..., s, c) to (..., l, c)."""
        return self._do(values, self._gathered, self._summed)

    def to_heads(self, values: Tensor) -> Tensor:
        """Exchange own positions for own heads, (..., s, c) to (..., l, c / g)."""
        return self._do(values, self._by_heads, self._by_positions)

    def to_positions(self, values: Tensor) -> Tensor:
        """Exchange own heads for own positions, (..., l, c / g) to (..., s, c)."""
        return self._do(values, self._by_positions, self._by_heads)

    def _do(
        self, values: Tensor, do: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return `do` of values, whose gradient is `back` of its own."""
        if self.group is None:
            return values
        result: Tensor = _Exchange.apply(values, do, back)
        return result

    def _mean(self, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total / self.size

    def _gathered(self, values: Tensor) -> Tensor:
        """(..., s, c) of every process, one after the other: (..., l, c)."""
        return self._whole(self._sent(values.expand(self.size, *values.shape)))

    def _summed(self, values: Tensor) -> Tensor:
        """Sum (..., l, c) of all processes at own positions: (..., s, c)."""
        return self._sent(self._in_parts(values)).sum(0)

    def _by_heads(self, values: Tensor) -> Tensor:
        by_owner = values.unflatten(-1, (self.size, -1)).movedim(-2, 0)  # (g, ..., s, c / g)
        return self._whole(self._sent(by_owner))

    def _by_positions(self, values: Tensor) -> Tensor:
        return self._sent(self._in_parts(values)).movedim(0, -2).flatten(-2)

    def _sent(self, parts: Tensor) -> Tensor:
        """Send each process its part of (g, ...), and get one from each."""
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self.group)
        return received

    def _in_parts(self, values: Tensor) -> Tensor:
        """Cut (..., l, c) by the process whose positions they are: (g, ..., s, c)."""
        padded = F.pad(values, (0, 0, 0, self.most * self.size - self.length))
        return padded.unflatten(-2, (self.size, -1)).movedim(-3, 0)

    def _whole(self, parts: Tensor) -> Tensor:
        """Put (g, ..., s, c) one after the other, without padding: (..., l, c)."""
        return parts.movedim(0, -3).flatten(-3, -2)[..., : self.length, :]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, do: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.back = back
        return do(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


UNDIVIDED = SequenceShare()
