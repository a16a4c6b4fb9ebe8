# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Short runs of `generate` on tiny models, and what their tests ask with."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

TEXT = ("input_ids", "attention_mask", "text_given", "turn_ids")
IMAGE = ("pixel_values", "pixel_attention_mask", "image_given")
MAX_TEXT_LENGTH = 14
PROMPTS = ["a photo of a one", "the number seven"]


def pictures(count=2, side=8):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)) for _ in range(count)]


def patch_mask(mask):
    """Patches all of whose pixels a mask (b, 8, 8) holds: (b, 4)."""
    return torch.stack(
        [mask[:, i : i + 4, j : j + 4].all((1, 2)) for i in (0, 4) for j in (0, 4)], 1
    )


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def generate(model, inputs, seed=0, **options):
    """A short quiet run."""
    options = {"num_inference_steps": 2, "show_progress": False, **options}
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    return model.generate(**inputs, **options)


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def finish(model, inputs, generators, **options):
    seen = []
    out = generate(
        model,
        inputs,
        generator=generators,
        callback_on_step_end=lambda info: seen.append(info.clean_estimates),
        **options,
    )
    return out, seen[-1]


def record(monkeypatch, model):
    """Every evaluation of the network: its arguments, and what it gave."""
    calls, original = [], model.denoise

    def denoise(inputs, candidates):
        arguments = {**vars(inputs), "candidates": candidates}
        copied = {k: dict(v) if isinstance(v, dict) else v for k, v in arguments.items()}
        out = original(inputs, candidates)
        calls.append(SimpleNamespace(**copied, out=out))
        return out

    monkeypatch.setattr(model, "denoise", denoise)
    return calls
