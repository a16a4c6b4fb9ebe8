# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is random in an evaluation, drawn for each item from a seed of its own.

An item then has the same loss in any batch, beside any other items and in any process.
Axes: b batch, n positions of one modality, d latent_dim, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_mdm.content import MODALITIES
from modeling_mdm.inputs import lay_out_content

ITEM_SEEDS = "item_seeds"  # a batch's entry, (b,) long


class WithItemSeeds:
    """A collator whose batches also hold the seeds of their items, where all items have one."""

    def __init__(self, collator: Callable[[Sequence[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[Any]) -> Any:
        """Make the collator's batch, with `item_seeds` (b,) added."""
        seeds = [item.get("seed") if isinstance(item, Mapping) else None for item in items]
        batch = self.collator(items)
        if None not in seeds:
            batch[ITEM_SEEDS] = torch.tensor([int(seed) % 2**63 for seed in seeds])
        return batch


def draw_for_items(
    config: Any, inputs: Mapping[str, Any], seeds: Tensor, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Draw times and noise of every item's own positions; what `inputs` pass stays, NaN apart.

    Args:
        config: of the model. inputs: of [`MDMForJointGeneration.forward`], by name.
        seeds: of the items, (b,). seed: of all that is drawn.

    Returns:
        `times` (b,), `noise`, `posterior_noise` and `decoder_noise` (b, n, d), and
        `candidate_noise` (b, n, K, d) where the model has any, by modality.
    """
    shapes = dict.fromkeys(("noise", "posterior_noise", "decoder_noise"), (config.latent_dim,))
    if config.se_candidates == "trajectory":
        shapes["candidate_noise"] = (config.num_trajectory_candidates, config.latent_dim)
    drawn: dict[str, dict[str, Tensor]] = {name: {} for name in ("times", *shapes)}
    for modality, positions in lay_out_content(config.patch_size, inputs).items():
        valid = positions.valid.cpu()
        tensors = {name: torch.zeros(*valid.shape, *shape) for name, shape in shapes.items()}
        times = torch.zeros(len(valid))
        for row, own in enumerate(seeds.tolist()):
            # By name and modality: one that a batch lacks moves nothing in the other.
            entropy = np.random.SeedSequence((seed, own, MODALITIES.index(modality)))
            states = entropy.generate_state(1 + len(shapes), np.uint64).tolist()
            first, *streams = (torch.Generator().manual_seed(state) for state in states)
            times[row] = torch.rand((), generator=first)
            count = int(valid[row].sum())
            for (name, shape), stream in zip(shapes.items(), streams, strict=True):
                tensors[name][row, valid[row]] = torch.randn(count, *shape, generator=stream)
        for name, tensor in {"times": times, **tensors}.items():
            drawn[name][modality] = tensor.to(positions.valid.device)
    passed = {name: dict(inputs.get(name) or {}) for name in drawn}
    for modality, times in passed["times"].items():
        own = drawn["times"].get(modality, times).to(times)
        passed["times"][modality] = torch.where(times.isnan(), own, times)
    return {name: {**values, **passed[name]} for name, values in drawn.items()}
