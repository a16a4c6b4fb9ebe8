# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model in which every weight matters, and a batch that mixes every task."""

import torch
from torch import Tensor

from modeling_mdm import MDMConfig, MDMForJointGeneration

VOCABULARY, WORDS, SIDE, LATENT, CLASSES = 24, 6, 8, 6, 5
PATCHES = 4  # of 4 x 4 pixels

# Every way to build the decoder that changes how positions are mixed.
MIXERS = {
    "parallel": {},
    "cyclic": {"scan_mode": "cyclic", "num_hidden_layers": 4},
    "separate": {"scan_projections": "separate"},
    "cyclic-separate": {
        "scan_mode": "cyclic",
        "scan_projections": "separate",
        "num_hidden_layers": 4,
    },
    "few-scans": {"image_scans": [1, 2], "text_scans": [1]},
    "attention": {"mixer": "attention"},
    "pooled": {"pooled_conditioning": True},
}


def tiny_config(**changes) -> MDMConfig:
    values = {
        "vocab_size": VOCABULARY,
        "max_text_length": WORDS,
        "image_size": SIDE,
        "patch_size": 4,
        "num_classes": CLASSES,
        "latent_dim": LATENT,
        "vae_hidden_size": 16,
        "vae_num_layers": 1,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "head_dim": 16,
        "chunk_size": 8,
        "num_attention_heads": 2,
        "num_trajectory_candidates": 3,
    }
    return MDMConfig(**{**values, **changes})


def make_model(dtype: torch.dtype = torch.float64, seed: int = 0, **changes):
    """A model in which nothing is zero that training would fill, latent statistics included."""
    torch.manual_seed(seed)
    model = MDMForJointGeneration(tiny_config(**changes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and not parameter.any():
                parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.15)
        for statistics in model.vae.statistics.values():
            statistics.mean.normal_(std=0.1)
            statistics.variance.uniform_(0.2, 0.5)
    return model


def mixed_batch(dtype: torch.dtype = torch.float64, seed: int = 1) -> dict[str, Tensor]:
    """Eight items, one of each kind of task: classes, prompts, absent parts, masks, turns."""
    draw = torch.Generator().manual_seed(seed)
    rows = [
        # words given, words to be written, turn of the latter, picture, class
        (4, 0, 0, "noisy", -1),  # text to image
        (0, 5, 0, "given", -1),  # captioning
        (0, 6, 0, "noisy", -1),  # joint, from nothing
        (2, 4, 1, "absent", -1),  # text to text
        (0, 0, 0, "noisy", 3),  # a picture of a class
        (3, 0, 0, "part", -1),  # inpainting
        (6, 0, 0, "given", 1),  # infill: two of the words below
        (3, 3, 1, "noisy", 0),  # joint, from a prompt and a class
    ]
    count = len(rows)
    attention_mask = torch.zeros(count, WORDS, dtype=torch.long)
    text_given = torch.zeros(count, WORDS, dtype=torch.bool)
    turn_ids = torch.zeros(count, WORDS, dtype=torch.long)
    image_given = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    pixel_attention_mask = torch.ones(count, SIDE, SIDE, dtype=torch.long)
    for item, (given, noisy, turn, picture, _) in enumerate(rows):
        attention_mask[item, : given + noisy] = 1
        text_given[item, :given] = True
        turn_ids[item, given : given + noisy] = turn
        image_given[item] = picture in ("given", "absent")
        pixel_attention_mask[item] = int(picture != "absent")
    image_given[5, :, 3:] = True
    text_given[6, 1], text_given[6, 4] = False, False
    return {
        "input_ids": torch.randint(4, VOCABULARY, (count, WORDS), generator=draw),
        "attention_mask": attention_mask,
        "text_given": text_given,
        "turn_ids": turn_ids,
        "pixel_values": torch.rand(count, 1, SIDE, SIDE, generator=draw).to(dtype) * 2 - 1,
        "pixel_attention_mask": pixel_attention_mask,
        "image_given": image_given,
        "class_labels": torch.tensor([label for *_, label in rows]),
    }


def every_random_source(batch: int, dtype: torch.dtype = torch.float64, seed: int = 2):
    """What `forward` would draw, all of it."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw).to(dtype)

    lengths = {"text": WORDS, "image": PATCHES}
    return {
        "drop_prompt": torch.arange(batch) % 3 == 0,
        "times": {g: torch.rand(batch, generator=draw).to(dtype) for g in lengths},
        "noise": {g: normal(batch, n, LATENT) for g, n in lengths.items()},
        "posterior_noise": {g: normal(batch, n, LATENT) for g, n in lengths.items()},
        "decoder_noise": {g: normal(batch, n, LATENT) for g, n in lengths.items()},
        "candidate_noise": {g: normal(batch, n, 3, LATENT) for g, n in lengths.items()},
        "keep": 0.5,
        "self_condition": True,
    }
