# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `generate` returned, item by item: which tensors there are, and which words were written.

Axes: b items, t text positions, c channels, h height, w width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.processing_utils import ProcessorMixin


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
    """Find sequences (b, t) and images (b, c, h, w) in an output object, or in one bare tensor.

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
    """Find the turn of every word of `sequences` (b, t), or None for each row if nothing tells.

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
        pieces = [row[before + 1 : after] for before, after in pairwise(ends)]
    else:
        pieces = [
            [word for word, turn in zip(row, turns, strict=True) if turn == own]
            for own in range(max(turns, default=0) + 1)
        ]
    texts = []
    for piece in pieces:
        length = next((n for n, word in enumerate(piece) if word in (end, pad)), len(piece))
        texts.append(tokenizer.decode(piece[:length], skip_special_tokens=True))
    return texts if turns is not None else [text for text in texts if text] or [""]


def without_tails(row: list[int], turns: list[int], end: int) -> list[int]:
    """Leave out of a row of words what stands behind the first `<end>` of its turn."""
    kept, over = [], set()
    for word, turn in zip(row, turns, strict=True):
        if turn not in over:
            kept.append(word)
        if word == end:
            over.add(turn)
    return kept


class SampleReader(ProcessorMixin):
    """The way back, which a processor inherits: generated tensors to texts and pictures."""

    def post_process(
        self,
        outputs: Any,
        inputs: Mapping[str, Any] | None = None,
        skip_special_tokens: bool = True,
    ) -> list[MDMSample]:
        """Turn what `generate` returned into texts and pictures.

        A row of `outputs.sequences` may hold a prompt and the region written after it. The turns in
        `inputs`, or in `outputs.turn_ids`, tell the two apart exactly. Without either, a row is
        split at each `<end>`: the last piece that has words is the text, the pieces before it the
        prompt. That is wrong where nothing was written after a prompt, or something after `<end>`.

        Args:
            outputs: an `MDMGenerateOutput`, or one of its tensors: sequences (b, t) or images
                (b, c, h, w).
            inputs: the inputs of `generate`, for as many items or for one in n of them.
            skip_special_tokens: False gives each row as it is, prompt, special tokens and all.

        Returns:
            One sample per row or image. A text ends at the first `<end>` or `<pad>` of its region.
        """
        sequences, images = read_outputs(outputs)
        samples = [MDMSample() for _ in range(len(images if sequences is None else sequences))]
        if sequences is not None:
            turns = read_turns(outputs, inputs, sequences)
            for sample, row, row_turns in zip(samples, sequences.tolist(), turns, strict=True):
                if skip_special_tokens:
                    *before, sample.text = split_row(self.tokenizer, row, row_turns)
                    sample.prompt = "".join(before) or None
                else:
                    sample.text = self.tokenizer.decode(row)
        if images is not None:
            for sample, image in zip(samples, images, strict=True):
                sample.image = self.image_processor.post_process(image)
        # Where the model chose what to write, a batch has room for what an item does not hold.
        modes = getattr(outputs, "generation_modes", None) or []
        for sample, mode in zip(samples, modes, strict=False):
            sample.text = None if mode == "image" else sample.text
            sample.image = None if mode == "text" else sample.image
        return samples

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decode whole rows, prompts included, as the image-text-to-text pipeline expects.

        Where `generated_outputs` tells turns, each ends at its first `<end>`.
        """
        sequences, _ = read_outputs(generated_outputs)
        if sequences is None:
            raise ValueError(
                "generated_outputs has no sequences; generate with generation_mode='text'."
            )
        rows = sequences.tolist()
        turns = getattr(generated_outputs, "turn_ids", None)
        if skip_special_tokens and turns is not None:
            rows = [
                without_tails(row, own, self.tokenizer.eos_token_id)
                for row, own in zip(rows, turns.tolist(), strict=True)
            ]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[str] | list[Image.Image]:
        """Give one modality, as the any-to-any pipeline expects.

        Returns:
            Texts of whole rows, prompts included, for "text" or None; pictures for "image".

        Raises:
            ValueError: if `generation_mode` is another, the outputs lack that modality, or they
                hold several samples of an item, of which the pipeline would lose all but one.
        """
        samples = getattr(generated_outputs, "samples_per_item", None) or 1
        if samples > 1:
            raise ValueError(
                f"num_return_sequences={samples}, but an any-to-any pipeline gives one sample of "
                "an item: repeat the item, or use the pipeline 'mdm-joint-generation'."
            )
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(
                generated_outputs, skip_special_tokens, **kwargs
            )
        if generation_mode != "image":
            raise ValueError(
                f"generation_mode={generation_mode!r} is unknown; use 'text' or 'image', "
                "and post_process for both."
            )
        _, images = read_outputs(generated_outputs)
        if images is None:
            raise ValueError(
                "generated_outputs has no images; generate with generation_mode='image'."
            )
        return [self.image_processor.post_process(image) for image in images]
