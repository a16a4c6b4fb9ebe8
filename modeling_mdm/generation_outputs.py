# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `generate()` returns.

Axes: b batch (items x num_return_sequences), t words.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .generation_sampling import StepInfo
from .inputs import EncodedInputs
from .past_turns import PastTurns

if TYPE_CHECKING:
    from .generation_mdm import MDMGenerationMixin

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


class StreamFeed:
    """Gives a streamer the prompt, what every step of `generate` decodes to, and what it ends at.

    Raises:
        ValueError: the call has several items, of which a streamer could show one.
    """

    def __init__(
        self,
        streamer: BaseStreamer,
        model: "MDMGenerationMixin",
        encoded: EncodedInputs,
        inputs: dict[str, Tensor],
    ) -> None:
        batch = encoded.has_class.shape[0]
        if batch != 1:
            raise ValueError(
                f"`streamer` shows one item, but this call writes {batch}: pass one, with "
                "`num_return_sequences` = 1."
            )
        self.streamer, self.model, self.encoded, self.inputs = streamer, model, encoded, inputs
        if "text" in encoded.modalities:
            part = encoded.modalities["text"]
            self.prompt = part.content.prompt()
            streamer.put(part.target[self.prompt][None].cpu())

    def step(self, info: StepInfo) -> None:
        """Decode the estimates of a step and pass them on as a draft."""
        if not hasattr(self.streamer, "put_draft"):
            return
        draft: dict[str, Tensor] = {}
        if "text" in info.clean_estimates:
            words = self.model.write_text(info.clean_estimates["text"], self.encoded)
            draft["value"] = self._region(words)
        if "image" in info.clean_estimates and hasattr(self.streamer, "put_image"):
            estimate = info.clean_estimates["image"]
            image = self.model.write_images(estimate, self.encoded, self.inputs)
            draft["image"] = image.float().cpu()
        if draft:
            self.streamer.put_draft(**draft)

    def end(self, output: MDMGenerateOutput) -> None:
        """Pass on what is final."""
        if output.sequences is not None:
            self.streamer.put(self._region(output.sequences))
        if output.images is not None and hasattr(self.streamer, "put_image"):
            self.streamer.put_image(output.images.float().cpu())
        self.streamer.end()

    def _region(self, words: Tensor) -> Tensor:
        """Words (1, t) without the prompt, up to the first `<end>`."""
        content = self.encoded.content["text"]
        region = words[content.valid & ~self.prompt]
        end = (region == self.model.config.eos_token_id).nonzero()
        return (region[: int(end[0]) + 1] if len(end) else region)[None].cpu()


__all__ = ["MDMGenerateOutput"]
