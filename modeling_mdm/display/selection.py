# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the scans of a model read of a picture and its words while both are made (Fig. 2h).

Axes: b batch, n positions of one modality.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..generation_outputs import MDMGenerateOutput
from .animation import ShownStep, shown_steps
from .pictures import contact_sheet

UNREAD = "·"  # in the place of a piece of a word
BLANK = 255  # what a patch that no block reads is drawn as


def read_by_scan(output: MDMGenerateOutput, config: Any) -> dict[str, Tensor]:
    """Give the share of blocks in which each scan order reads each position.

    Args:
        output: of `generate(..., keep=0.5, output_selection=True)`.
        config: that of the model.

    Returns:
        (b, evaluations, scans, n) in [0, 1] by modality, the scans as in `config.joint_scans`.

    Raises:
        ValueError: no selection.
    """
    if not output.selection:
        raise ValueError(
            "`output` has no selection: call `generate(keep=0.5, output_selection=True)`."
        )
    scans, found = len(config.joint_scans), {}
    for modality, read in output.selection.items():  # (b, evaluations, blocks, k, n)
        blocks = range(read.shape[2])
        if config.scan_mode == "cyclic":
            own = [read[:, :, [b for b in blocks if b % scans == s], 0] for s in range(scans)]
        else:
            own = [read[:, :, :, s] for s in range(scans)]
        # A scan may have no block at all.
        found[modality] = torch.stack([one.sum(2) / max(1, one.shape[2]) for one in own], 2)
    return found


def selection_sheet(
    output: MDMGenerateOutput,
    processor: Any,
    config: Any,
    item: int = 0,
    columns: int = 6,
    picture_size: int = 112,
) -> Image.Image:
    """Draw what every scan reads: a row for each scan, a column for each of some steps.

    A patch fades by the share of blocks in which the scan passes it by; a piece of a word that most
    of them pass by is a dot.

    Args:
        output: of `generate(..., keep=0.5, output_selection=True, output_trajectory=True)`.
        processor: the `MDMProcessor` that decodes it. config: that of the model.
        item: which of the samples.
        columns: steps a row, evenly spaced, the first and the last among them.
        picture_size: width in pixels of a step.

    Raises:
        ValueError: no selection or trajectory, no such sample, fewer than two columns, or more
            evaluations than steps.
    """
    if columns < 2:
        raise ValueError(f"`columns` is {columns}: show at least the first step and the last, 2.")
    shares = read_by_scan(output, config)
    steps = shown_steps(output, processor, item)
    evaluations, scans = next(iter(shares.values())).shape[1:3]
    if evaluations != len(steps):
        raise ValueError(
            f"`output` has {evaluations} evaluations of {len(steps)} steps, as Heun's second order "
            "needs: use another solver."
        )
    count = min(columns, len(steps))
    chosen = [round(n * (len(steps) - 1) / max(1, count - 1)) for n in range(count)]
    cells = []
    for scan in range(scans):
        for step in chosen:
            share = {m: own[item, step, scan] for m, own in shares.items()}
            image, text = steps[step].image, None
            if image is not None:
                image = faded(image, share["image"], config.patch_size)
            if output.trajectory and "text" in output.trajectory:
                words = output.trajectory["text"][item, step]
                text = dotted(processor.tokenizer, words, share["text"])
            cells.append(ShownStep(image, text))
    return contact_sheet(cells, columns=count, picture_size=picture_size)


def faded(image: Image.Image, share: Tensor, patch_size: int) -> Image.Image:
    """Fade the patches of a picture, the last in a row of pictures, by shares (n,) in [0, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    rows, columns = (side // patch_size for side in pixels.shape[:2])
    own = share[-rows * columns :].view(rows, columns).numpy(force=True).astype(np.float64)
    weight = own.repeat(patch_size, 0).repeat(patch_size, 1)[..., None]
    shown = weight * pixels + (1 - weight) * BLANK
    return Image.fromarray(shown.round().astype(np.uint8))


def dotted(tokenizer: Any, words: Tensor, share: Tensor) -> str:
    """Write words (n,) up to the first `<end>`, with a dot for a piece of share < 1/2."""
    ids = words.tolist()
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    whole = [tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(end + 1)]
    said = ""
    for n, read in enumerate(share.tolist()[:end]):
        piece = whole[n + 1][len(whole[n]) :]
        said += piece if read >= 0.5 else " " * piece.startswith(" ") + UNREAD
    return said.strip()


__all__ = ["read_by_scan", "selection_sheet"]
