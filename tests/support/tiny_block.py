# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A configuration of blocks as small as they can be, and weights with which every path counts."""

import torch

from modeling_mdm import MDMConfig

float64 = torch.float64
HIDDEN, HEADS, WIDTH, STATE, TAPS = 8, 4, 4, 3, 3
INNER = HEADS * WIDTH


def make_config(**changes):
    values = {
        "hidden_size": HIDDEN,
        "expand": INNER // HIDDEN,
        "head_dim": WIDTH,
        "state_size": STATE,
        "conv_kernel": TAPS,
        "chunk_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "latent_dim": 3,
        "num_classes": 4,
        "vocab_size": 7,
    }
    return MDMConfig(**{**values, **changes})


def randomise(module, std=0.5):
    """Draw values with which every path counts; as initialised, gates are zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module
