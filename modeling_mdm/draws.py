# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is drawn at random in a step: from torch's random state, or by keys.

By keys a number is a function of seed, step, item, position and of what it is for. An item draws
the same in any batch and any process, beside whatever other items and however long its row is
padded, and nothing that was drawn before matters. Nothing is read back from an accelerator.

Axes: b batch, n positions of one modality, s sorts of noise, w numbers a position.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .content import MODALITIES, ModalityContent
from .distributed import first_process_says

# What is drawn. A name's place is part of the key: a new one goes to the end of its row.
BATCH_DRAWS = ("keep", "self_condition")
ITEM_DRAWS = (
    *("drop_prompt", "time_text", "time_image", "hidden", "image_side"),
    *("coupled", "lead", "from_image"),
)
NOISES = ("noise", "posterior_noise", "decoder_noise", "candidate_noise")
WORD = 0xFFFFFFFF  # of 32 bits


class ItemKeys(NamedTuple):
    """What all draws of a batch hang on.

    seed, step: integers, the same for the whole step, of 32 bits. items: (b,) long >= 0, one number
    for each item: its place among the items of the step, those of all processes and batches.
    """

    seed: int
    step: int
    items: Tensor


def philox(counter: Sequence[int | Tensor], key: Sequence[int | Tensor]) -> list[int | Tensor]:
    """Four random words of a counter: Philox-4x32-10 (Salmon et al. 2011).

    Args:
        counter, key: four words and two, each an integer or a long tensor; they broadcast.
    """
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # of 64 bits; a sign does not hurt them
        a, b, c, d = (q >> 32 & WORD) ^ b ^ k, q & WORD, (p >> 32 & WORD) ^ d ^ m, p & WORD
        k, m = k + 0x9E3779B9 & WORD, m + 0xBB67AE85 & WORD
    return [a, b, c, d]


class Draws:
    """The random numbers of one batch.

    Args:
        items: (b,), any tensor of one entry an item, on the device to draw on.
        keys: None draws from torch's random state; each process then draws its own.

    Raises:
        ValueError: if keys are not of as many items.
    """

    def __init__(self, items: Tensor, keys: ItemKeys | None = None) -> None:
        self.shape, self.device, self.keys = items.shape, items.device, keys
        if keys is not None and keys.items.shape != items.shape:
            raise ValueError(
                f"`item_keys.items` has shape {tuple(keys.items.shape)}: pass one number for each "
                f"item, {tuple(items.shape)}."
            )

    def _words(self, kind: int, number: int | Tensor, key: Sequence[int | Tensor]) -> list:
        assert self.keys is not None
        return philox((number, kind, self.keys.step & WORD, self.keys.seed & WORD), key)

    def _item_key(self, *axes: int) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        items = self.keys.items.to(self.device).view(-1, *axes)
        return items & WORD, items >> 32 & WORD

    @torch.compiler.disable  # a graph for every number that comes out would be compiled
    def of_batch(self, name: str) -> float:
        """One number in [0, 1), the same in all processes; without keys all must call this."""
        if self.keys is None:
            return first_process_says(float(torch.rand(())), self.device)
        word = self._words(0, BATCH_DRAWS.index(name), (WORD, WORD))[0]  # of item -1
        return int(word) / 2**32

    def of_items(self, name: str) -> Tensor:
        """One number (b,) in [0, 1) for each item."""
        if self.keys is None:
            return torch.rand(self.shape, device=self.device)
        return self._of_items[:, ITEM_DRAWS.index(name)]

    @cached_property
    def _of_items(self) -> Tensor:
        number = torch.arange(math.ceil(len(ITEM_DRAWS) / 4), device=self.device)
        words = torch.stack(self._words(1, number, self._item_key(1)), -1)  # (b, draws / 4, 4)
        return (words.flatten(1) >> 8).float() * 2.0**-24

    def gaussians(
        self, names: Sequence[str], content: Mapping[str, ModalityContent], shape: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        """Standard normal noise (b, n, *shape) of the latents' type, by name and modality.

        `names` are neighbours in `NOISES`.
        """
        if self.keys is None:
            sizes = {m: (*own.valid.shape, *shape) for m, own in content.items()}
            return {
                name: {m: content[m].latents.new_empty(size).normal_() for m, size in sizes.items()}
                for name in names
            }
        drawn = {m: self._gaussians(names, m, own, shape) for m, own in content.items()}
        return {name: {m: drawn[m][s] for m in content} for s, name in enumerate(names)}

    def _gaussians(
        self, names: Sequence[str], modality: str, positions: ModalityContent, shape: Sequence[int]
    ) -> Tensor:
        """Draw all noise of a modality (s, b, n, *shape), by Box and Muller; 0 at padding."""
        sort = NOISES.index(names[0]) + torch.arange(len(names), device=self.device)
        kind = (2 + len(MODALITIES) * sort + MODALITIES.index(modality)).view(-1, 1, 1, 1)
        # Real positions are counted, so that padding moves none.
        place = (positions.valid.cumsum(-1) - 1).clamp(min=0)[..., None]  # (b, n, 1)
        width = math.prod(shape)
        quads = math.ceil(width / 4)
        number = place * quads + torch.arange(quads, device=self.device)  # (b, n, w / 4)
        a, b, c, d = self._words(kind, number, self._item_key(1, 1))  # (s, b, n, w / 4)
        radius = (torch.stack([a + 1, c + 1], -1).float() * 2.0**-32).log().mul(-2).sqrt()
        angle = torch.stack([b, d], -1).float() * (2 * math.pi * 2.0**-32)
        normal = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(3)
        normal = torch.where(positions.valid[..., None], normal[..., :width], 0)
        return normal.unflatten(-1, shape).to(positions.latents.dtype)
