# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether scans read what a picture is about: the share of kept patches that lie on its things.

Real scenes, whose things lie where their truth says, are noised to some log-SNR together with their
captions, and read with `keep` < 1. By chance the share is that of all patches.

Axes: b picture, k scan, n patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from modeling_mdm.decoder import DecoderInputs, recorded_selections

KEEP = 0.5
LOG_SNRS = (-4.0, -2.0, 0.0, 2.0, 4.0)  # of the pictures
LEAD = 2.0  # nats of log-SNR by which words are ahead
COVERED = 0.5  # of a patch's area, from which it lies on a thing


def patches_on_things(
    boxes: Sequence[Sequence[int]], side: int, grid: tuple[int, int], covered: float = COVERED
) -> Tensor:
    """Tell which patches lie on things.

    Args:
        boxes: left, top, right and bottom of each thing, in pixels. side: of the picture that they
            are in. grid: rows and columns of patches.

    Returns:
        (rows * columns,) bool, row by row.
    """
    is_thing = torch.zeros(side, side)
    for left, top, right, bottom in boxes:
        is_thing[top:bottom, left:right] = 1
    share = torch.nn.functional.interpolate(is_thing[None, None], grid, mode="area")
    return share.flatten() >= covered


def selected_patches(model: Any, inputs: Mapping[str, Any], log_snr: float, keep: float) -> Tensor:
    """Give how often the scans of all blocks read each patch of noised pictures: (b, n) in [0, 1].

    Args:
        inputs: of `forward`, words and pictures, none of them given.
    """
    seen: list[DecoderInputs] = []
    handle = model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    levels = {"image": log_snr, "text": log_snr + LEAD}
    count = len(inputs["pixel_values"])
    times = {
        modality: model.schedules[modality].time_of(torch.full((count,), level))
        for modality, level in levels.items()
    }
    try:
        with recorded_selections(model.decoder.layers) as kept, torch.no_grad():
            model(**inputs, times=times, keep=keep, self_condition=False, return_loss=False)
    finally:
        handle.remove()
    read = torch.stack([one.float().mean(1) for one in kept]).mean(0)  # (b, l)
    return read[:, seen[0].sequence.patches]


def on_things(read: Tensor, is_on: Tensor) -> tuple[float, float]:
    """Give the share of what is read that lies on things, and its standard error over pictures.

    Args:
        read: (b, n) in [0, 1]. is_on: (b, n) bool.
    """
    each = (read * is_on).sum(1) / read.sum(1).clamp(min=1e-9)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def selection_figures(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Image.Image],
    side: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Measure scenes.

    Args:
        rows: with the truth. pictures: of them, as the model sees them. side: of the pictures that
            the boxes of the truth are in.
    """
    cells = model.config.image_size // model.config.patch_size
    is_on = torch.stack(
        [
            patches_on_things(
                [box for thing in row["objects"] for box in thing["boxes"]], side, (cells, cells)
            )
            for row in rows
        ]
    )
    found: dict[str, Any] = {"keep": KEEP, "chance": float(is_on.float().mean()), "kept": {}}
    for log_snr in LOG_SNRS:
        torch.manual_seed(seed)
        read = []
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            inputs = processor(
                text=[row["text"] for row in rows[part]],
                images=list(pictures[part]),
                truncation=True,
                return_tensors="pt",
            ).to(model.device)
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
            read.append(selected_patches(model, asked, log_snr, KEEP).cpu())
        share, error = on_things(torch.cat(read), is_on)
        found["kept"][f"log-SNR {log_snr:g}"] = {"mean": share, "standard_error": error}
    return found
