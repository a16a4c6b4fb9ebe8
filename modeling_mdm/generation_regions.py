# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Regions that `generate()` opens, where nothing is left to write, and `score()` in what is given.

Axes: b batch, t words, m pictures an item.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import choice, sides
from .configuration_mdm import MDMConfig
from .content import GENERATION_MODES

_MODES = f"choose one of {', '.join((*GENERATION_MODES, 'auto'))}."
Inputs = dict[str, Tensor | None]


@dataclass
class RegionRequest:
    """What to open: `"text"`, `"image"` or `"joint"`, and how large; None leaves the defaults.

    mode: of all items, or a list with one for each.
    """

    mode: str | list[str] | None = None
    max_new_tokens: int | None = None
    image_size: int | tuple[int, int] | None = None

    def check(self, inputs: Inputs, config: MDMConfig, is_length_asked: bool) -> None:
        """Refuse what is unknown, and what would be without effect on this call.

        Args:
            inputs: of `generate`, by name; None for what was not passed. config: of the model.
            is_length_asked: whether `max_new_tokens` is of this call, and no default.

        Raises:
            ValueError: an unknown mode, an impossible size, or the size of a region that is not
                opened.
        """
        choice("generation_mode", self.mode, (None, *GENERATION_MODES, "auto"), _MODES)
        if self.image_size is not None:
            sides("image_size", self.image_size, config.patch_size, "patch_size")
        is_open = not leaves_something_to_write(inputs)
        for name, modality, is_asked in (
            ("max_new_tokens", "text", is_length_asked),
            ("image_size", "image", self.image_size is not None),
        ):
            opened = (self.mode or "text") if is_open else None
            if is_asked and self.mode != "auto" and opened not in (modality, "joint"):
                why = f"`generation_mode` is {opened!r}" if is_open else "the masks leave their own"
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, the size of {modality} that `generate` "
                    f"opens a region for, but {why}: it would have no effect, leave it out."
                )

    def writes(self, modality: str, turn: Tensor) -> Tensor:
        """Which items have words or a picture to be written, (b,) bool like turns (b,)."""
        modes = self.mode if isinstance(self.mode, list) else [self.mode or "text"] * len(turn)
        chosen = [mode in (modality, "joint") for mode in modes]
        return torch.tensor(chosen, dtype=torch.bool, device=turn.device)

    def of_samples(self, count: int) -> list[str] | None:
        """Repeat each item's mode for its samples; None if all items have the same."""
        if not isinstance(self.mode, list):
            return None
        return [mode for mode in self.mode for _ in range(count)]


def open_region(
    inputs: Inputs, region: RegionRequest, config: MDMConfig, device: torch.device
) -> Inputs:
    """Append a region to be written where the inputs have none, as the processor would.

    Words come after an item's words and a picture after its pictures; all that is written is then a
    new turn. An item that has neither of them yet writes in turn 0.

    Args:
        inputs: of `generate`, by name; None for what was not passed.
        region: what to open. config: of the model. device: of what is made here.

    Returns:
        the inputs with the region, or as they are if they leave something to write.

    Raises:
        ValueError: the new picture is of another size than those that are given.
    """
    if leaves_something_to_write(inputs):
        return inputs
    passed = [inputs[name] for name in ("input_ids", "pixel_values", "class_labels")]
    batch = next((value.shape[0] for value in passed if value is not None), 1)
    opened = dict(inputs)
    turn = torch.zeros(batch, dtype=torch.long, device=device)
    words, picture = region.writes("text", turn), region.writes("image", turn)
    turn = _new_turn(inputs, words, picture)
    modes = set(region.mode) if isinstance(region.mode, list) else {region.mode or "text"}
    if modes & {"text", "joint"}:
        length = config.max_text_length if region.max_new_tokens is None else region.max_new_tokens
        _append_words(opened, turn, words, length, config)
    if modes & {"image", "joint"}:
        size = _picture_size(inputs["pixel_values"], region.image_size, config)
        _append_picture(opened, turn, picture, (config.num_channels, *size))
    return opened


def with_masks(inputs: Inputs, config: MDMConfig) -> Inputs:
    """Take what is passed for given, but for `<mask>` words, where no mask says otherwise."""
    words, pixels = inputs["input_ids"], inputs["pixel_values"]
    masked = dict(inputs)
    if words is not None and inputs["text_given"] is None:
        masked["text_given"] = words != config.mask_token_id
    if pixels is not None and inputs["image_given"] is None:
        masked["image_given"] = torch.ones_like(pixels[..., 0, :, :], dtype=torch.bool)
    return masked


def repeat_inputs(inputs: Inputs, samples: int) -> dict[str, Tensor]:
    """Repeat each item for its samples, which follow each other; without what was not passed."""
    return {
        name: value.repeat_interleave(samples, dim=0)
        for name, value in inputs.items()
        if value is not None
    }


def leaves_something_to_write(inputs: Inputs) -> bool:
    """Whether masks leave any position to be written."""
    for content, given, mask in (
        ("input_ids", "text_given", "attention_mask"),
        ("pixel_values", "image_given", "pixel_attention_mask"),
    ):
        if inputs[content] is None:
            continue
        known, real = inputs[given], inputs[mask]
        if known is None or not bool(
            (known.bool() | (real == 0 if real is not None else False)).all()
        ):
            return True
    return False


def _new_turn(inputs: Inputs, writes_words: Tensor, writes_picture: Tensor) -> Tensor:
    """Turn of what is written, (b,): after all that the item has, if it goes on with any of it."""
    turn = first = torch.zeros_like(writes_words, dtype=torch.long)
    goes_on = torch.zeros_like(writes_words)
    for content, mask, turns, continued in (
        ("input_ids", "attention_mask", "turn_ids", writes_words),
        ("pixel_values", "pixel_attention_mask", "image_turn_ids", writes_picture),
    ):
        if inputs[content] is None:
            continue
        real = torch.ones_like(first[:, None]) if inputs[mask] is None else inputs[mask]
        has_any = real.flatten(1).any(-1)
        last = inputs[turns].amax(-1) if inputs[turns] is not None else first
        turn = torch.maximum(turn, torch.where(has_any, last + 1, 0))
        goes_on = goes_on | (has_any & continued)
    return torch.where(goes_on, turn, 0)


def _append_words(
    inputs: Inputs, turn: Tensor, writes: Tensor, length: int, config: MDMConfig
) -> None:
    """Append words of a turn (b,) to every row: to be written (b,), or padding."""
    words = inputs["input_ids"]
    writes = writes[:, None].expand(-1, length)
    region = {
        "input_ids": torch.where(writes, config.mask_token_id, config.pad_token_id or 0),
        "attention_mask": writes.long(),
        "text_given": torch.zeros_like(writes),
        "turn_ids": torch.where(writes, turn[:, None], 0),
    }
    if words is not None:
        absent = {"attention_mask": torch.ones_like(words), "turn_ids": torch.zeros_like(words)}
        for name, value in region.items():
            before = absent[name] if inputs[name] is None else inputs[name]
            region[name] = torch.cat([before.to(value.dtype), value], dim=1)
    inputs.update(region)


def _picture_size(
    pixels: Tensor | None, asked: int | tuple[int, int] | None, config: MDMConfig
) -> tuple[int, int]:
    """Height and width of a new picture: as asked, or of the given pictures, or the model's own."""
    given = None if pixels is None else tuple(pixels.shape[-2:])
    size = (given or config.image_size) if asked is None else asked
    height, width = sides("image_size", size, config.patch_size, "patch_size")
    if given not in (None, (height, width)):
        raise ValueError(
            f"`image_size` is {(height, width)}, but the given pictures are {given}: all pictures "
            "of a call have one size, so leave it out or resize them."
        )
    return height, width


def _append_picture(
    inputs: Inputs, turn: Tensor, writes: Tensor, shape: tuple[int, int, int]
) -> None:
    """Append a picture (channels, height, width) of a turn (b,): to be written (b,), or absent."""
    batch, pixels, device = turn.shape[0], inputs["pixel_values"], turn.device
    _, height, width = shape
    real = writes[:, None, None, None].expand(batch, 1, height, width)
    region = {
        "pixel_values": torch.zeros(batch, 1, *shape, device=device),
        "image_given": ~real,
        "pixel_attention_mask": real.long(),
        "image_turn_ids": torch.where(writes, turn, 0)[:, None],
    }
    if pixels is not None:
        pictures = 1 if pixels.dim() == 4 else pixels.shape[1]
        absent = {
            "pixel_attention_mask": turn.new_ones(batch, pictures, height, width),
            "image_turn_ids": turn.new_zeros(batch, pictures),
        }
        for name, value in region.items():
            before = absent[name] if inputs[name] is None else inputs[name]
            if before.dim() < value.dim():  # one picture an item, without the axis m
                before = before[:, None]
            dtype = before.dtype if name == "pixel_values" else value.dtype
            region[name] = torch.cat([before.to(dtype), value.to(dtype)], dim=1)
    inputs.update(region)


def open_content(inputs: Inputs, content: str | None, config: MDMConfig) -> Inputs:
    """Make noisy what is to be scored: the words and / or the pictures of each item's last turn.

    Words get the padding words behind them that a region ends with once it is written, up to
    `max_text_length`: that is how the model says that a text is over.

    Args:
        inputs: of `score`, by name; None or absent for what was not passed.
        content: `"text"`, `"image"` or `"joint"`; None leaves the inputs as they are.

    Raises:
        ValueError: a content that the inputs do not hold.
    """
    if content is None:
        return inputs
    opened = dict(inputs)
    for name, open_one in (("input_ids", _open_words), ("pixel_values", _open_pictures)):
        if content not in ("joint", "text" if name == "input_ids" else "image"):
            continue
        if inputs.get(name) is None:
            raise ValueError(f"`content` is {content!r}, but `{name}` is None: pass what to score.")
        opened |= open_one(inputs, config)
    return opened


def _open_words(inputs: Inputs, config: MDMConfig) -> Inputs:
    words = inputs["input_ids"]
    given, real, turn = (
        torch.full_like(words, default) if inputs.get(name) is None else inputs[name].to(words)
        for name, default in (("text_given", 1), ("attention_mask", 1), ("turn_ids", 0))
    )
    last = turn.masked_fill(real == 0, -1).amax(-1, keepdim=True)  # (b, 1), -1 without any words
    region = (real != 0) & (turn == last)
    start = region.int().argmax(-1, keepdim=True)
    length = region.sum(-1, keepdim=True).clamp(min=config.max_text_length)
    stop = torch.where(last < 0, start, start + length)
    longer = max(0, int(stop.max()) - words.shape[1])
    words, given, real, turn = (F.pad(value, (0, longer)) for value in (words, given, real, turn))
    places = torch.arange(words.shape[1], device=words.device)
    region = (places >= start) & (places < stop)  # (b, t)
    return {
        "input_ids": words.masked_fill(region & (real == 0), config.pad_token_id or 0),
        "attention_mask": (region | (real != 0)).long(),
        "text_given": (given != 0) & ~region,
        "turn_ids": torch.where(region, last, turn),
    }


def _open_pictures(inputs: Inputs, config: MDMConfig) -> Inputs:
    pixels, given = inputs["pixel_values"], inputs.get("image_given")
    real, turn = inputs.get("pixel_attention_mask"), inputs.get("image_turn_ids")
    if given is None or pixels.dim() == 4 or turn is None:
        return {"image_given": pixels.new_zeros(*pixels.shape[:-3], *pixels.shape[-2:]).bool()}
    if real is not None:
        turn = turn.masked_fill(~real.flatten(2).any(-1), -1)
    is_last = turn == turn.amax(-1, keepdim=True)  # (b, m)
    return {"image_given": given.bool() & ~is_last[..., None, None]}
