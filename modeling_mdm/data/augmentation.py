# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures that are only read may be changed a little; those that are written stay what they are.

Axis legend: batch, pictures, channels, height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from modeling_mdm.data.pictures import mirrored_and_shifted
from modeling_mdm.data.tasks import item_rng


class AugmentsGiven:
    """A collator whose batches show given pictures mirrored, half of them, and shifted by a pixel.

    More pictures to read, for captions and answers, while those that the model learns to draw keep
    their distribution. A picture of which any pixel is written stays as it is.

    Args:
        collator: makes the batches, of items that may have a `seed`.
        seed: with an item's own seed it decides what is drawn for it.

    Raises:
        ValueError: when called, if pictures come as codes.
    """

    def __init__(self, collator: Callable[[Any], Any], seed: int = 0) -> None:
        self.collator, self.seed = collator, seed

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Any:
        """Make a batch."""
        batch = self.collator(items)
        if "image_codes" in batch:
            raise ValueError(
                "augment_given=True cannot mirror or shift pictures that are codes already: leave "
                "it out, or train on the pictures themselves."
            )
        if "pixel_values" not in batch:
            return batch
        pixels, shape = batch["pixel_values"].clone(), batch["image_given"].shape
        pixels = pixels.view(len(items), -1, *pixels.shape[-3:])  # (batch, pictures, ...)
        given = batch["image_given"].bool().view(len(items), -1, *shape[-2:]).flatten(2).all(-1)
        for row, item in enumerate(items):
            rng = item_rng(self.seed, item, 1)  # another stream than the collator's
            for picture in given[row].nonzero().flatten().tolist():
                shown = pixels[row, picture].movedim(0, -1).numpy()
                pixels[row, picture] = torch.from_numpy(mirrored_and_shifted(shown, rng)).movedim(
                    -1, 0
                )
        return {**batch, "pixel_values": pixels.view_as(batch["pixel_values"])}
