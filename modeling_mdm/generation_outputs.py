# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `generate()` returns, and how latents become words and pictures.

Axes: b batch (items x num_return_sequences), t words, m pictures an item, n positions of one
modality, d latent_dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .generation_guidance import LastOutput
from .generation_sampling import StepInfo
from .inputs import EncodedInputs, encode_text
from .network import MDMNetwork
from .past_turns import PastTurns
from .precision import at_least_float32
from .vae import unpatchify

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
        kernel_backend: name of the scan kernel that ran.
        trajectory: on request, the decoded clean estimate of every step: `"image"`
            (b, steps, channels, height, width), `"text"` (b, steps, t).
        selection: on request, which positions with anything to write the scans of every block read
            at every evaluation: by modality, (b, evaluations, blocks, scans a block, positions)
            bool.
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
    kernel_backend: str | None = None
    trajectory: dict[str, Tensor] | None = None
    generation_modes: list[str] | None = None
    cache: PastTurns | None = None
    selection: dict[str, Tensor] | None = None

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


class OutputWriter:
    """Turns clean latents (b, n, d) of a batch into words and pictures; what is given stays.

    Args:
        network: the model, whose VAE decodes.
        encoded: the batch. inputs: what it was encoded from, by name.
    """

    def __init__(
        self, network: MDMNetwork, encoded: EncodedInputs, inputs: dict[str, Tensor]
    ) -> None:
        self.network, self.encoded, self.inputs = network, encoded, inputs
        self.config = network.config

    def words(self, latents: Tensor) -> Tensor:
        """Decode words (b, t); given ones stay."""
        logits = self.network.vae.decode(latents.to(self.network.dtype), "text")
        logits[..., [self.config.mask_token_id, self.config.image_token_id]] = float("-inf")
        encoding = self.encoded.modalities["text"]
        positions, pad = encoding.content, torch.full_like(encoding.target, self.pad)
        words = torch.where(positions.noisy, logits.argmax(-1), encoding.target)
        return torch.where(positions.valid, words, pad)

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode one picture an item (b, channels, height, width); known pixels stay.

        That is its last picture with anything to write, or its last one.
        """
        network, (pictures, rows, columns) = self.network, self.encoded.grid
        noisy = self.encoded.content["image"].noisy.unflatten(1, (pictures, -1)).any(-1)  # (b, m)
        last = (noisy * torch.arange(1, pictures + 1, device=noisy.device)).amax(-1) - 1
        chosen = torch.arange(len(last), device=last.device), last % pictures
        patches = latents.to(network.dtype).unflatten(1, (pictures, -1))[chosen]
        valid = self.encoded.content["image"].valid.unflatten(1, (pictures, -1))[chosen]
        patches = network.vae.decode(patches, "image", (1, rows, columns), valid)
        if network.vq is None:
            images = unpatchify(patches, self.config.patch_size, (rows, columns))
        else:
            dtype = at_least_float32(patches.dtype)
            codes = torch.cdist(patches.to(dtype), network.vq.codebook.to(dtype)).argmin(-1)
            images = network.vq.decode(codes, (rows, columns))
        # In float32, so that known pixels are those that were given.
        images = images.to(torch.promote_types(images.dtype, torch.float32)).clamp(-1, 1)
        known, pixels = self.inputs.get("image_given"), self.inputs["pixel_values"]
        if known is None:
            return images
        if pixels.dim() == 5:
            known, pixels = known[chosen], pixels[chosen]
        return torch.where(known[:, None].bool(), pixels.to(images.dtype), images)

    def decode(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Words and / or pictures, by modality."""
        writers = {"text": self.words, "image": self.pictures}
        return {
            modality: write(latents[modality])
            for modality, write in writers.items()
            if modality in latents
        }

    def trajectory(self, estimates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Decode the clean estimates of every step, stacked at axis 1, by modality."""
        steps = [self.decode(step) for step in estimates]
        modalities = steps[0] if steps else ()
        return {
            modality: torch.stack([step[modality] for step in steps], 1) for modality in modalities
        }

    def confidence(self, last: dict[str, LastOutput], words: Tensor | None) -> dict[str, Tensor]:
        """How sure the network was of what it wrote at last, (b, n) by modality.

        Args:
            last: what the last evaluation gave. words: (b, t), what was made of it.
        """
        confidence = {}
        for modality, output in last.items():
            if modality == "text":
                chosen = output.part.take(modality, words[..., None])
                value = output.logits.softmax(-1).gather(-1, chosen)
            else:
                entropy = torch.expm1(self.network.score_entropy_head(output.features))
                value = torch.exp(-entropy.clamp(min=0) / self.config.latent_dim)[..., None]
            known = self.encoded.content[modality].valid.float()[..., None]
            confidence[modality] = output.part.put(modality, value.float(), known)[..., 0]
        return confidence

    def with_words_given(self, latents: Tensor) -> EncodedInputs:
        """The batch with its finished words given, without padding words after their `<end>`."""
        words, positions = self.words(latents), self.encoded.content["text"]
        given = encode_text(
            self.network.vae,
            words,
            positions.valid & ~self._behind_end(words),
            torch.ones_like(positions.given),
            positions.turn,
        )
        modalities = {**self.encoded.modalities, "text": given}
        return EncodedInputs(modalities, self.encoded.class_labels, self.encoded.grid)

    def padded(self, words: Tensor) -> Tensor:
        """Words (b, t) with padding behind the `<end>` of what was written."""
        return words.masked_fill(self._behind_end(words), self.pad)

    def _behind_end(self, words: Tensor) -> Tensor:
        """Which words (b, t) were written behind the first written `<end>` of their row: (b, t)."""
        noisy = self.encoded.content["text"].noisy
        ends = (words == self.config.eos_token_id) & noisy
        return noisy & ((ends.cumsum(-1) - ends.long()) > 0)

    @property
    def pad(self) -> int:
        """The word that stands where nothing is."""
        return self.config.pad_token_id or 0

    def turns(self) -> Tensor:
        """Turn of every word (b, t), -1 at alignment padding of rows that have any words."""
        positions = self.encoded.content["text"]
        padding = ~positions.valid & positions.valid.any(-1, keepdim=True)
        return positions.turn.masked_fill(padding, -1)

    def prompt(self) -> Tensor | None:
        """Words (1, t) that were given to the only item of a batch; None without any text."""
        if "text" not in self.encoded.modalities:
            return None
        encoding = self.encoded.modalities["text"]
        return encoding.target[encoding.content.prompt()][None]

    def reply(self, words: Tensor) -> Tensor:
        """Words of the only item of a batch without the prompt, up to the first `<end>`: (1, t)."""
        positions = self.encoded.content["text"]
        region = words[positions.valid & ~positions.prompt()]
        end = (region == self.config.eos_token_id).nonzero()
        return (region[: int(end[0]) + 1] if len(end) else region)[None]


class StreamFeed:
    """Gives a streamer the prompt, what every step of `generate` decodes to, and what it ends at.

    Raises:
        ValueError: the call has several items, of which a streamer could show one.
    """

    def __init__(self, streamer: BaseStreamer, writer: OutputWriter) -> None:
        batch = len(writer.encoded.class_labels)
        if batch != 1:
            raise ValueError(
                f"`streamer` shows one item, but this call writes {batch}: pass one, with "
                "`num_return_sequences` = 1."
            )
        self.streamer, self.writer = streamer, writer
        prompt = writer.prompt()
        if prompt is not None:
            streamer.put(prompt.cpu())

    def step(self, info: StepInfo) -> None:
        """Decode the estimates of a step and pass them on as a draft."""
        if not hasattr(self.streamer, "put_draft"):
            return
        draft: dict[str, Tensor] = {}
        if "text" in info.clean_estimates:
            words = self.writer.words(info.clean_estimates["text"])
            draft["value"] = self.writer.reply(words).cpu()
        if "image" in info.clean_estimates and hasattr(self.streamer, "put_image"):
            draft["image"] = self.writer.pictures(info.clean_estimates["image"]).float().cpu()
        if draft:
            self.streamer.put_draft(**draft)

    def end(self, output: MDMGenerateOutput) -> None:
        """Pass on what is final."""
        if output.sequences is not None:
            self.streamer.put(self.writer.reply(output.sequences).cpu())
        if output.images is not None and hasattr(self.streamer, "put_image"):
            self.streamer.put_image(output.images.float().cpu())
        self.streamer.end()
