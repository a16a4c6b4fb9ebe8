# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums over the processes of a training run, so that they train as one would on all their items.

A mean over positions must be one over all of them: processes that each take a mean of their own
weigh a position more where a batch has fewer.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor of the same shape in every process; every process must call this."""
    if num_processes() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def first_process_says(number: float, device: torch.device) -> float:
    """The first process's number, of 32 bits, in all of them; every process must call this."""
    if num_processes() == 1:
        return number
    said = torch.tensor([number], dtype=torch.float32, device=device)
    dist.broadcast(said, src=0)
    return float(said)


def sum_counts(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up counts (0-dim) of the same names; every process must call this."""
    if num_processes() == 1:
        return counts
    return dict(zip(counts, sum_over_processes(torch.stack(list(counts.values()))), strict=True))
