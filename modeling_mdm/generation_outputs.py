# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `generate()` returns.

Axes: b batch (items x num_return_sequences), t words.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .past_turns import PastTurns

logger = logging.get_logger(__name__)

OLD_CACHE_NAMES = ("past_key_values", "cache_params")


def _current_name(name: Any) -> Any:
    """Name of a field today, with one notice where it was asked for by a former one."""
    if name not in OLD_CACHE_NAMES:
        return name
    logger.warning_once(f"`{name}` of an output is deprecated: use `cache` instead.")
    return "cache"


@dataclass
class MDMGenerateOutput(ModelOutput):
    """
    Output of `generate()`.

    Args:
        sequences: words (b, t) of the whole text region, given ones included; None if no text was
            written.
        images: (b, channels, height, width) in [-1, 1], float32 at least, known pixels unchanged:
            of each item the last picture with anything to write. None if no image was written.
        turn_ids: turns of `sequences` (b, t), -1 at alignment padding; None where they are.
        confidence: by modality, (b, positions) in [0, 1]: 1 where given, 0 at padding. For a word
            the probability that the model gives it; for a patch exp(-predicted score entropy /
            latent_dim).
        samples_per_item: `num_return_sequences`; the samples of an item follow each other.
        num_evaluations: how often the network was evaluated (branches of guidance count once, and
            reading what is given into the cache not at all).
        item_evaluations: in how many of them each item took part, (b,) long; fewer where
            `stopping_entropy` finished it ahead of time.
        kernel_backend: name of the scan kernel that ran.
        trajectory: on request, the decoded clean estimate of every step: `"image"`
            (b, steps, channels, height, width), `"text"` (b, steps, t).
        generation_modes: with `generation_mode="auto"`, what was chosen for every sample.
        cache: what was read, for the next turn's call to go on from; None with `use_cache=False` or
            `keep` < 1. `past_key_values`, its former name, still reads it.
    """

    sequences: Tensor | None = None
    images: Tensor | None = None
    turn_ids: Tensor | None = None
    confidence: dict[str, Tensor] | None = None
    samples_per_item: int | None = None
    num_evaluations: int | None = None
    item_evaluations: Tensor | None = None
    kernel_backend: str | None = None
    trajectory: dict[str, Tensor] | None = None
    generation_modes: list[str] | None = None
    cache: PastTurns | None = None

    # transformers translates the former name from 5.24 on; here it does in every version.
    @property
    def past_key_values(self) -> PastTurns | None:
        """Former name of `cache`."""
        _current_name("past_key_values")
        return self.cache

    @property
    def cache_params(self) -> PastTurns | None:
        """Former name of `cache` in transformers."""
        _current_name("cache_params")
        return self.cache

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):  # transformers' server reads `sequences[0, length:]` of anything
            return self.sequences[key]
        return super().__getitem__(_current_name(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(_current_name(key), value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_current_name(name), value)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_current_name(key))

    def get(self, key: str, default: Any = None) -> Any:
        """Read a field by name, or a default where it is None."""
        return super().get(_current_name(key), default)


__all__ = ["MDMGenerateOutput"]
