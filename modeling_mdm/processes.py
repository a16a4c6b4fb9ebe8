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


def first_process_says(choice: bool, device: torch.device) -> bool:
    """The first process's choice in all of them; every process must call this."""
    if num_processes() == 1:
        return choice
    said = torch.tensor([choice], dtype=torch.uint8, device=device)
    dist.broadcast(said, src=0)
    return bool(said)


def counts_per_process(masks: list[Tensor | None]) -> list[Tensor | float]:
    """Count where each mask is true; in training, the mean over all processes.

    A sum divided by this, averaged over processes as gradients are, is the mean over all positions.
    Where gradients are off, which may be in one process alone, a process counts for itself.

    Args:
        masks: None for what a batch lacks, which other processes may have.

    Returns:
        0-dim tensors; 1 instead of 0 where nobody has any.
    """
    present = [mask for mask in masks if mask is not None]
    device = present[0].device
    counts = torch.stack(
        [torch.zeros((), device=device) if m is None else m.sum().float() for m in masks]
    )
    if num_processes() > 1 and torch.is_grad_enabled():
        counts = sum_over_processes(counts)
        return list(torch.where(counts > 0, counts / num_processes(), 1.0))
    return list(counts.clamp(min=1))
