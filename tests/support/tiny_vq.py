# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny VQ-VAE of either kind, alone and in a whole model; a model with one, and its batch."""

import torch
from tiny_digits import make_config, make_processor
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
)

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


def whole_model(vq_config, seed=7):
    """A whole Janus or Emu3 model of transformers, tiny, with a VQ-VAE of this configuration."""
    torch.manual_seed(seed)
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    own = {name: value for name, value in vq_config.items() if name != "model_type"}
    if vq_config["model_type"] == "janus_vqgan":
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 8, "patch_size": 4, "projection_dim": 16, "mlp_ratio": 1.0}
        own |= {"projection_dim": 16, "image_token_embed_dim": 16}
        text["model_type"] = "llama"
        parts = {"text_config": text, "vision_config": vision, "vq_config": own}
        model = JanusForConditionalGeneration(JanusConfig(**parts))
    else:
        words = {f"<|visual token {i:06d}|>": i for i in range(24)}
        words |= {"<|extra_200|>": 30, "<image>": 31}
        config = Emu3Config(vq_config=own, text_config=text, vocabulary_map=words)
        model = Emu3ForConditionalGeneration(config)
    return model


def fitting_processor():
    """A processor that cuts pictures as the VQ-VAE does."""
    processor = make_processor()
    processor.patch_size, processor.image_processor.num_channels = 2, 3
    return processor


def save_new_model(folder, vq_config, **fields):
    """What `--config` names: the configuration of a model with this VQ-VAE, and a processor."""
    processor = fitting_processor()
    processor.save_pretrained(folder)
    sizes = {"vocab_size": len(processor.tokenizer), "patch_size": 2, "num_channels": 3}
    config = make_config(sizes["vocab_size"]).to_dict() | sizes | {"vq_config": vq_config}
    MDMConfig(**(config | fields)).save_pretrained(folder)
