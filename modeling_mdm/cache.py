# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The prompt cache: what every block must know of the given part of a sequence.

Orders are given first (Sec. 3.2), so what is given never depends on what is noisy nor on time: its
states are the same at every denoising step. They are computed once; a step then evaluates the
noisy positions alone, from those states.

Axes: b batch, k scans, l given positions, h heads, p head width, n state width, c channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerCache:
    """What one block keeps of the positions that it has read, by name.

    Of a Mamba-2 mixer: `state` (b, k, h, n, p) after the last position of every scan, and the last
    inputs of its convolutions, `x_tail` and `BC_tail` (b, k, taps - 1, c). Of attention: `key` and
    `value` (b, h, l, p), and `readable` (b, l) bool, False at padding.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.is_recording = True

    def get(self, name: str) -> Tensor | None:
        """What is kept under a name; None before anything was read."""
        return self.tensors.get(name)

    def store(self, **tensors: Tensor) -> None:
        """Replace what is kept, unless the cache is frozen."""
        if self.is_recording:
            self.tensors |= tensors

    @classmethod
    def join(cls, caches: Sequence["LayerCache"]) -> "LayerCache":
        """Stack batches of items; keys are padded to the longest with what is not readable."""
        joined = cls()
        for name, first in caches[0].tensors.items():
            tensors = [first, *(cache.tensors[name] for cache in caches[1:])]
            if name in ("key", "value", "readable"):
                axis = 1 if name == "readable" else 2
                longest = max(tensor.shape[axis] for tensor in tensors)
                behind = [0, 0] * (first.dim() - 1 - axis)  # `F.pad` begins at the last axis
                tensors = [F.pad(t, [*behind, 0, longest - t.shape[axis]]) for t in tensors]
            joined.tensors[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return joined


class PromptCache:
    """The caches of all blocks, embeddings that no step changes, and what else prompts are asked.

    A new cache records: evaluating the decoder with it adds what was read to it, so that reading
    one part after the other equals reading both at once. After `freeze` evaluations only read it.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.places: dict[str, Tensor] = {}
        # What `PooledConditioning` and `PlaceConditioning` ask of what was read, by modality.
        self.totals: dict[str, Tensor] = {}
        self.canvas: dict[str, Tensor] = {}

    def freeze(self) -> None:
        """Stop recording: from here on the cache is only read."""
        for layer in self.layers:
            layer.is_recording = False

    @property
    def is_recording(self) -> bool:
        """Whether what is evaluated is added to the cache."""
        return any(layer.is_recording for layer in self.layers)

    @classmethod
    def join(cls, caches: Sequence["PromptCache"]) -> "PromptCache":
        """Stack batches of items in a cache that records; of one cache, a copy."""
        joined = cls(0)
        layers = zip(*(cache.layers for cache in caches), strict=True)
        joined.layers = [LayerCache.join(layer) for layer in layers]
        for name in ("totals", "canvas"):
            read = [getattr(cache, name) for cache in caches]
            stacked = {modality: torch.cat([one[modality] for one in read]) for modality in read[0]}
            setattr(joined, name, stacked)
        return joined

    def rows(self, index: Tensor) -> "PromptCache":
        """The caches of some items (m,), which may repeat."""
        chosen = PromptCache(len(self.layers))
        for mine, theirs in zip(chosen.layers, self.layers, strict=True):
            mine.is_recording = theirs.is_recording
            mine.tensors = {name: t.index_select(0, index) for name, t in theirs.tensors.items()}
        for name in ("places", "totals", "canvas"):
            read = getattr(self, name).items()
            setattr(chosen, name, {modality: t.index_select(0, index) for modality, t in read})
        return chosen
