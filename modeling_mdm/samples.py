# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `generate` returned, item by item: which tensors there are, and which words were written.

Axes: B items, T text positions, C channels, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass
class MDMSample:
    """One generated item.

    Attributes:
        text: what the written region says; None if no text was written.
        image: the picture; None if none was written.
        prompt: the text before the region that was written; None if the region came first.
    """

    text: str | None = None
    image: Image.Image | None = None
    prompt: str | None = None


def read_outputs(outputs: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Find sequences (B, T) and images (B, C, H, W) in an output object, or in one bare tensor.

    Raises:
        ValueError: if there is neither.
    """
    if isinstance(outputs, torch.Tensor | np.ndarray | list):
        tensor = torch.as_tensor(outputs)
        sequences, images = (None, tensor) if tensor.is_floating_point() else (tensor, None)
    else:
        sequences, images = getattr(outputs, "sequences", None), getattr(outputs, "images", None)
    if sequences is None and images is None:
        raise ValueError("outputs has neither sequences nor images; pass what generate returned.")
    if sequences is not None and sequences.ndim == 1:
        sequences = sequences[None]
    if images is not None and images.ndim == 3:
        images = images[None]
    return sequences, images


def read_turns(
    outputs: Any, inputs: Mapping[str, Any] | None, sequences: torch.Tensor
) -> list[list[int]] | list[None]:
    """Find the turn of every word of `sequences` (B, T), or None for each row if nothing tells.

    Where `inputs` has padding, the turn is -1.

    Raises:
        ValueError: if the items of `inputs` do not divide the rows.
    """
    num_rows, length = sequences.shape
    if inputs is None:
        turns = getattr(outputs, "turn_ids", None)
        return [None] * num_rows if turns is None else turns.tolist()
    if inputs.get("input_ids") is None:
        return [[0] * length for _ in range(num_rows)]
    known = inputs.get("turn_ids")
    if known is None:
        known = torch.zeros_like(torch.as_tensor(inputs["input_ids"]))
    known = torch.as_tensor(known)
    if inputs.get("attention_mask") is not None:
        real = torch.as_tensor(inputs["attention_mask"], device=known.device).bool()
        known = known.masked_fill(~real, -1)
    items = known.tolist()
    samples, left_over = divmod(num_rows, len(items))
    if left_over:
        raise ValueError(
            f"inputs has {len(items)} items, which do not divide {num_rows} outputs; pass the "
            "inputs that generate had."
        )
    # Words beyond the text of the inputs are a region that `generate` opened after it.
    rows = [item + [max(item) + 1] * (length - len(item)) for item in items]
    return [row for row in rows for _ in range(samples)]


def split_row(tokenizer: Any, row: list[int], turns: list[int] | None) -> list[str]:
    """Decode the texts of a row in their order, the written one last.

    Args:
        tokenizer: knows `<end>` (its eos token) and `<pad>`, each of which closes a text.
        row: T token ids.
        turns: their turns; None to split at each `<end>` and to leave out what has no words.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if turns is None:
        ends = [-1, *(place for place, word in enumerate(row) if word == end), len(row)]
        parts = [row[before + 1 : after] for before, after in pairwise(ends)]
    else:
        parts = [
            [word for word, turn in zip(row, turns, strict=True) if turn == part]
            for part in range(max(turns, default=0) + 1)
        ]
    texts = []
    for part in parts:
        length = next((n for n, word in enumerate(part) if word in (end, pad)), len(part))
        texts.append(tokenizer.decode(part[:length], skip_special_tokens=True))
    return texts if turns is not None else [text for text in texts if text] or [""]
