# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which blocks compute again, for their gradients, what they made: memory for time, by share."""

from __future__ import annotations

from torch import nn

from modeling_mdm.attention import MDMAttentionBlock
from modeling_mdm.block import MDMBlock
from modeling_mdm.planning.spread import evenly_spread


def checkpoint_share(model: nn.Module, share: float) -> None:
    """Leave activation checkpointing, which is on, to a share of a model's blocks."""
    kinds = MDMBlock | MDMAttentionBlock
    blocks = [module for module in model.modules() if isinstance(module, kinds)]
    for block, again in zip(blocks, evenly_spread(len(blocks), share), strict=True):
        block.gradient_checkpointing = again
