# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensors of one call: rows of words, and pictures with what of them is given.

Axes: b items, t text positions, m images per item, c channels, h height, w width.
"""

import re
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature

from .request import Request, TextOptions

# A word, whether it is real, whether it is given, and its turn.
Word = tuple[int, bool, bool, int]


def encode_texts(
    texts: list[str | None], tokenizer: Any, options: TextOptions, max_text_length: int
) -> list[list[int] | None]:
    """Token ids of each text, without `<end>`, with the mask id for each `<mask>`.

    A text with an attribute `ids` brings them along.

    Raises:
        ValueError: if a text is longer than `max_length` of the options, or than `max_text_length`
            where they have none, and is not to be cut.
    """
    # The space before <mask> goes with it, because a token is a word and the space before it.
    mask = re.compile(" ?" + re.escape(tokenizer.mask_token))
    known = {row: ids for row, text in enumerate(texts) if (ids := getattr(text, "ids", None))}
    split = {
        row: mask.split(text)
        for row, text in enumerate(texts)
        if text is not None and row not in known
    }
    flat = [piece for between_masks in split.values() for piece in between_masks]
    as_words = {"add_special_tokens": False, "split_special_tokens": True}
    pieces = iter(tokenizer(flat, **as_words)["input_ids"] if flat else ())
    limit, length = "max_length", options.max_length
    if length is None:
        limit, length = "max_text_length", max_text_length
    encoded: list[list[int] | None] = [None] * len(texts)
    for row, between_masks in split.items():
        known[row] = list(next(pieces))
        for _ in between_masks[1:]:
            known[row] += [tokenizer.mask_token_id, *next(pieces)]
    for row, words in known.items():
        if len(words) >= length and not options.truncation:
            raise ValueError(
                f"text {texts[row]!r:.60} has {len(words) + 1} tokens with <end>, more than "
                f"{limit}={length}; shorten it, or pass truncation=True."
            )
        encoded[row] = words[: length - 1]
    return encoded


def text_rows(
    request: Request,
    encoded: list[list[int] | None],
    max_new_tokens: int | None,
    max_text_length: int,
    tokenizer: Any,
) -> list[list[Word]]:
    """Lay out each item's words, `<end>` and its region.

    Where a text is gone on with, the region follows its last word, without `<end>`, and both are as
    long as the longest text.
    """
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    rows = []
    for words, opens_region, written_turn in zip(
        encoded, request.opens_region, request.written_turn, strict=True
    ):
        text_turn = written_turn if request.writes_text and not opens_region else 0
        goes_on = request.continue_text and words is not None
        spoken = [] if words is None else list(words) if goes_on else [*words, end]
        row = [(word, True, word != mask, text_turn) for word in spoken]
        if opens_region or goes_on:
            left = max_text_length - (len(row) if goes_on else 0)
            row += [(mask, True, False, written_turn)] * (max_new_tokens or max(left, 1))
        rows.append(row)
    return rows


def stack_words(
    rows: list[list[Word]], tokenizer: Any, options: TextOptions, usual: int | None = None
) -> dict[str, torch.Tensor]:
    """Align rows; `usual` is the longest text where the options have no `max_length`."""
    filling = (tokenizer.pad_token_id, False, False, 0)
    # Through NumPy, which reads nested lists several times as fast as torch.
    aligned = np.array(options.align(rows, filling, usual), dtype=np.int64)  # (b, t, 4)
    table = torch.from_numpy(aligned)
    input_ids, attention_mask, text_given, turn_ids = table.permute(2, 0, 1).contiguous()
    features = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "text_given": text_given.bool(),
    }
    return features | ({"turn_ids": turn_ids} if turn_ids.any() else {})


def image_features(
    request: Request,
    image_processor: Any,
    size: tuple[int, int],
    images_kwargs: dict[str, Any],
    turns: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Stack each item's pictures, and a blank where a new image is to be written.

    `turns` (b, m) are those of the pictures if they are not all written now.
    """
    pixel_values, present = _stack_pictures(request, image_processor, size, images_kwargs)
    given = torch.ones(*present.shape, *size, dtype=torch.bool)
    if request.image_mask is not None:
        given &= ~request.image_mask | ~present[..., None, None]
        if request.writes_image:  # a call that only scores needs the true pixels
            pixel_values *= given[:, :, None]
    if request.opens_image:
        given[:, -1] = False
    if turns is None:
        turns = torch.zeros(present.shape, dtype=torch.long)
        if request.writes_image:
            written = slice(-1, None) if request.opens_image else slice(None)
            turns[:, written] = torch.tensor(request.written_turn)[:, None]

    features = {"pixel_values": pixel_values, "image_given": given}
    if not present.all():
        features["pixel_attention_mask"] = present[..., None, None].expand_as(given).long()
    if present.shape[1] == 1:
        features = {name: value.squeeze(1) for name, value in features.items()}
    return features | ({"image_turn_ids": turns} if turns.any() else {})


def _stack_pictures(
    request: Request, image_processor: Any, size: tuple[int, int], images_kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (b, m, c, h, w) of all pictures, new ones included, and which there are, (b, m)."""
    known = len(request.images[0])
    shape = (len(request.images), known + request.opens_image)  # (b, m)
    present = torch.ones(shape, dtype=torch.bool)
    present[:, :known] = torch.tensor(
        [[picture is not None for picture in pictures] for pictures in request.images]
    )
    pixel_values = torch.zeros(*shape, image_processor.num_channels, *size)
    pictures = [picture for row in request.images for picture in row if picture is not None]
    if pictures:
        side = dict(zip(("height", "width"), size, strict=True))
        prepared = image_processor(
            pictures, **{**images_kwargs, "size": side, "return_tensors": "pt"}
        )
        pixel_values[:, :known][present[:, :known]] = prepared["pixel_values"].cpu()
    return pixel_values, present


def as_tensors(features: dict[str, torch.Tensor], kind: str | None) -> BatchFeature:
    """Give features as torch tensors ("pt"), arrays ("np") or lists (None)."""
    if kind == "pt":
        return BatchFeature(features)
    if kind is None:
        return BatchFeature({name: value.tolist() for name, value in features.items()})
    arrays = {name: value.numpy() for name, value in features.items()}
    return BatchFeature(arrays, tensor_type=kind)
