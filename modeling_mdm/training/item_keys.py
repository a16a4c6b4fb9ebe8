# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The numbers that items draw by: in training their places in the step, in evaluation their seeds.

An item then has the same loss in any batch, beside any other items and in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from accelerate.utils import find_batch_size

from modeling_mdm.training.arguments import MDMTrainingArguments

ITEMS = "items"  # a batch's entry, (b,) long


class WithItemSeeds:
    """A collator whose batches also hold the seeds of their items, where all items have one."""

    def __init__(self, collator: Callable[[Sequence[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[Any]) -> Any:
        """Make the collator's batch, with `items` (b,) added."""
        seeds = [item.get("seed") if isinstance(item, Mapping) else None for item in items]
        batch = self.collator(items)
        if None not in seeds:
            batch[ITEMS] = torch.tensor([int(seed) % 2**63 for seed in seeds])
        return batch


def number_items(batches: Sequence[MutableMapping[str, Any]], args: MDMTrainingArguments) -> None:
    """Add to the batches of a step, of one process, the places of their items in the step.

    All processes take a batch each in turn, then the next, as one process would take them; the last
    batch of a pass may be shorter.
    """
    size = args.items_per_step // (args.gradient_accumulation_steps * args.world_size)
    for number, batch in enumerate(batches):
        start = (number * args.world_size + args.process_index) * size
        batch[ITEMS] = torch.arange(start, start + find_batch_size(batch), device=args.device)
