# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny VQ-VAE of either kind, a model with one in front of its pictures, and its batch."""

import torch

from modeling_mdm import MDMConfig, MDMForJointGeneration

SMALL = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 4}
JANUS = {
    **SMALL,
    "model_type": "janus_vqgan",
    "num_embeddings": 24,
    "latent_channels": 32,
    "num_patches": 4,
}
EMU3 = {
    **SMALL,
    "model_type": "emu3_vqgan",
    "codebook_size": 24,
    "latent_channels": 4,
    "temporal_downsample_factor": 1,
    "attn_resolutions": [],
    "hidden_size": 32,
}


def make_model(vq_config, trained=True, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "max_text_length": 5, "image_size": 8, "patch_size": 2}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "state_size": 8}
    sizes |= {"latent_dim": 6, "vae_hidden_size": 16, "num_channels": 3, "vq_config": vq_config}
    model = MDMForJointGeneration(MDMConfig(**{**sizes, **fields}))
    if trained:
        model.vq.allow_untrained()
    return model


def make_batch(items=3):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(items, 3, 8, 8, generator=generator) * 2 - 1
    words = torch.randint(4, 20, (items, 5), generator=generator)
    return {"pixel_values": pixels, "input_ids": words}
