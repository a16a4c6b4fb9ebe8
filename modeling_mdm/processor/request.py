# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one call of the processor asks for: its arguments, item by item, checked against each other.

Axes: b items, m images per item, h height, w width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .values import is_list, is_picture, whole_number

GENERATION_MODES = (None, "image", "text", "joint")


def read_generation_mode(generation_mode: Any, generate: Any = None) -> str | None:
    """Read what is to be written; `generate` is another name of `generation_mode`.

    Raises:
        ValueError: if both are passed, or the one that is passed is unknown.
    """
    if generation_mode is not None and generate is not None:
        raise ValueError(
            f"generation_mode={generation_mode!r:.80} and generate={generate!r:.80} are two names "
            "of one argument; pass generation_mode alone."
        )
    name, mode = "generation_mode", generation_mode
    if generate is not None:
        name, mode = "generate", generate
    if not isinstance(mode, str | None) or mode not in GENERATION_MODES:
        raise ValueError(f"{name}={mode!r:.80} is unknown; use None, 'image', 'text' or 'joint'.")
    return mode


@dataclass
class Passed:
    """The named arguments of a call, as `MDMProcessor.__call__` describes them."""

    text: Any = None
    images: Any = None
    class_labels: Any = None
    image_mask: Any = None
    generation_mode: str | None = None
    max_new_tokens: int | None = None
    continue_text: bool = False


@dataclass
class Request:
    """One entry per item in every list.

    Attributes:
        texts: None where an item has no text.
        images: equally many pictures per item, None for an absent one.
        class_labels: -1 for no class; None if nobody passed any.
        image_mask: bool (b, m, h, w), True = repaint; None to leave the pictures as they are.
        generation_mode: None, "image", "text" or "joint".
        has_mask_words: whether an item's text has words to be written in place.
        continue_text: whether what is written goes on with an item's text, if it has one.
    """

    texts: list[str | None]
    images: list[list[Any]]
    class_labels: list[int] | None
    image_mask: torch.Tensor | None
    generation_mode: str | None
    has_mask_words: list[bool]
    continue_text: bool = False

    @property
    def writes_image(self) -> bool:
        """Whether pixels are to be written."""
        return self.generation_mode in ("image", "joint")

    @property
    def writes_text(self) -> bool:
        """Whether words are to be written."""
        return self.generation_mode in ("text", "joint")

    @property
    def opens_image(self) -> bool:
        """Whether each item gets a new image after its pictures."""
        return self.writes_image and self.image_mask is None

    @property
    def opens_region(self) -> list[bool]:
        """Whether an item gets a text region after its text."""
        return [
            self.writes_text and not in_place and not (self.continue_text and text is not None)
            for text, in_place in zip(self.texts, self.has_mask_words, strict=True)
        ]

    @property
    def written_turn(self) -> list[int]:
        """1 where a text region follows a text, or a new image follows a picture; else 0."""
        return [
            int((opens_region and text is not None) or (self.opens_image and _present(pictures)))
            for text, pictures, opens_region in zip(
                self.texts, self.images, self.opens_region, strict=True
            )
        ]

    def check(self, max_new_tokens: int | None) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: if the arguments of the call do not make sense together.
        """
        if (
            self.generation_mode is None
            and not any(self.images)
            and self.texts.count(None) == len(self.texts)
        ):
            raise ValueError(
                "text and images are empty; pass one, or say what to write by generation_mode=."
            )
        if self.generation_mode == "image" and any(self.has_mask_words):
            raise ValueError(
                "text contains <mask>, which asks for words, but generation_mode='image' writes "
                "none; use generation_mode='joint', or remove <mask>."
            )
        if self.continue_text and not (self.writes_text and any(self.texts)):
            raise ValueError(
                "continue_text=True goes on with a text, but there is none, or none is written: "
                "pass text= that is not empty, and generation_mode='text' or 'joint'."
            )
        if self.continue_text and any(self.has_mask_words):
            raise ValueError(
                "continue_text=True writes what follows a text, and <mask> a word in it: remove "
                "<mask>, or leave continue_text out."
            )
        if self.generation_mode == "text" and self.image_mask is not None:
            raise ValueError(
                "image_mask asks to repaint pixels, but generation_mode='text' writes none; "
                "use generation_mode='joint', or leave image_mask out."
            )
        if self.writes_image and self.image_mask is not None and not self.image_mask.any():
            raise ValueError(
                "Nothing to generate: image_mask is 0 everywhere; mark pixels to repaint with 1."
            )
        if max_new_tokens is not None and not (self.continue_text or any(self.opens_region)):
            raise ValueError(
                f"max_new_tokens={max_new_tokens} is the length of a text region, and none is "
                "opened; use generation_mode='text' or 'joint', a text without <mask>, or leave it "
                "out."
            )


def read_request(passed: Passed, mask_token: str, size: tuple[int, int]) -> Request:
    """Bring the arguments of a call to one entry per item.

    Args:
        mask_token: what stands for a word to be written.
        size: (h, w) of the images that the model sees.

    Raises:
        ValueError: if an argument has a wrong form, or two contradict each other.
    """
    texts = None if passed.text is None else _list_texts(passed.text)
    pictures = None if passed.images is None else _list_pictures(passed.images)
    labels = None if passed.class_labels is None else _list_labels(passed.class_labels)
    batch_size = _count_items(text=texts, images=pictures, class_labels=labels)
    texts = [None] * batch_size if texts is None else texts
    if pictures is None or not any(map(_present, pictures)):
        pictures = [[] for _ in range(batch_size)]
    image_mask = passed.image_mask
    if image_mask is not None:
        if not any(pictures):
            raise ValueError("image_mask is given without images; pass the pictures to repaint.")
        image_mask = _read_mask(image_mask, (batch_size, len(pictures[0]), *size))
    request = Request(
        texts=texts,
        images=pictures,
        class_labels=labels,
        image_mask=image_mask,
        generation_mode=passed.generation_mode,
        has_mask_words=[text is not None and mask_token in text for text in texts],
        continue_text=passed.continue_text,
    )
    request.check(passed.max_new_tokens)
    return request


def _count_items(**lists: list[Any] | None) -> int:
    """Count the items of a batch, of which all lists that there are have as many."""
    sizes = {name: len(items) for name, items in lists.items() if items is not None}
    batch_size = max(sizes.values(), default=1)
    if batch_size == 0 or len(set(sizes.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sizes.items())
        raise ValueError(
            f"Got {counts}; pass equally many of each, at least 1, None for a missing one."
        )
    return batch_size


def _present(pictures: list[Any]) -> bool:
    return any(picture is not None for picture in pictures)


def _list_texts(text: Any) -> list[str | None]:
    if not isinstance(text, str) and not is_list(text):
        raise ValueError(
            f"text is {text!r:.60}; pass a string, or a list of strings and None, and pictures as "
            "images=."
        )
    texts = [text] if isinstance(text, str) else list(text)
    for entry in texts:
        if not isinstance(entry, str | None):
            raise ValueError(
                f"text has {entry!r:.60}; pass a string, or a list of strings and None."
            )
        try:
            (entry or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {entry!r:.60} has a lone surrogate, which is no character ({error.reason}); "
                "remove it, for example by text.encode('utf-8', 'ignore').decode()."
            ) from error
    return texts


def _list_pictures(images: Any) -> list[list[Any]]:
    if not is_picture(images) and not is_list(images):
        raise ValueError(
            f"images is {images!r:.60}; pass a picture, a path or an array, or a list of them."
        )
    items = [images] if is_picture(images) else list(images)
    rows = [list(item) if isinstance(item, list | tuple) else [item] for item in items]
    for picture in (picture for row in rows for picture in row):
        if picture is not None and not is_picture(picture):
            raise ValueError(
                f"images has {picture!r:.60}; pass PIL images, arrays, tensors or paths, and None "
                "for an absent one."
            )
    most = max(map(len, rows), default=0)
    return [row + [None] * (most - len(row)) for row in rows]


def _list_labels(class_labels: Any) -> list[int]:
    if isinstance(class_labels, torch.Tensor | np.ndarray):
        class_labels = class_labels.tolist()
    several = is_list(class_labels) and not np.isscalar(class_labels)
    labels = list(class_labels) if several else [class_labels]
    read = [-1 if label is None else whole_number(label) for label in labels]
    for label, number in zip(labels, read, strict=True):
        if number is None:
            raise ValueError(
                f"class_labels has {label!r:.60}; pass integers, and -1 or None for no class."
            )
    return read


def _read_mask(image_mask: Any, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Bring a mask to bool (b, m, h, w)."""
    mask = image_mask
    try:
        if isinstance(mask, list | tuple):
            mask = np.stack([np.asarray(one) for one in mask])
        if not isinstance(mask, torch.Tensor):
            mask = torch.tensor(np.asarray(mask))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"image_mask is {image_mask!r:.60}, which is no array ({error}); pass 0 and 1 by pixel."
        ) from error
    mask = mask.cpu()
    batch_size, num_images, height, width = shape
    if mask.shape == (batch_size, height, width) and num_images == 1:
        mask = mask[:, None]
    if mask.shape not in ((height, width), shape):
        raise ValueError(
            f"image_mask has shape {tuple(mask.shape)}; pass ({height}, {width}) for all pictures, "
            f"or {shape}: items, pictures, height, width, at the size that the model sees."
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "image_mask has values other than 0 (keep) and 1 (repaint); pass only these."
        )
    return mask.bool().expand(shape)


@dataclass
class TextOptions:
    """How rows of words are cut and aligned.

    Attributes:
        padding: "longest", "max_length", or "do_not_pad" for rows that are equally long anyway.
        truncation: whether words beyond `max_length` are cut; without it, a longer text is refused.
        max_length: longest text in tokens, `<end>` included; None for the usual length.
        pad_to_multiple_of: what the length of the rows is a multiple of.
        padding_side: "right" or "left".
    """

    padding: str = "longest"
    truncation: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"

    @classmethod
    def read(cls, text_kwargs: Mapping[str, Any]) -> "TextOptions":
        """Read what `_merge_kwargs` gives as `text_kwargs`.

        Raises:
            ValueError: if `padding` or `padding_side` is unknown, or a length is below 1.
        """
        padding, truncation = text_kwargs.get("padding"), text_kwargs.get("truncation")
        known = {None: "longest", True: "longest", False: "do_not_pad"}
        known |= {name: name for name in ("longest", "max_length", "do_not_pad")}
        if not isinstance(padding, str | bool | None) or padding not in known:
            raise ValueError(
                f"padding={padding!r} is unknown; use 'longest' or True, 'max_length', or "
                "'do_not_pad' or False."
            )
        side = text_kwargs.get("padding_side") or "right"
        if not isinstance(side, str) or side not in ("left", "right"):
            raise ValueError(f"padding_side={side!r} is unknown; use 'right' or 'left'.")
        cuts = (None, True, False, "do_not_truncate", "longest_first", "only_first")
        if not isinstance(truncation, str | bool | None) or truncation not in cuts:
            raise ValueError(f"truncation={truncation!r:.80} is unknown; use True or False.")
        lengths: dict[str, int | None] = {}
        for name in ("max_length", "pad_to_multiple_of"):
            length = text_kwargs.get(name)
            lengths[name] = None if length is None else whole_number(length)
            if length is not None and (lengths[name] is None or lengths[name] < 1):
                raise ValueError(f"{name}={length!r:.80} is no length; use 1 or more, or None.")
        return cls(
            padding=known[padding],
            truncation=truncation not in (None, False, "do_not_truncate"),
            padding_side=side,
            **lengths,
        )

    def cut(self, words: list[Any], side: str) -> list[Any]:
        """Cut the words of a conversation to `max_length`, at the left or the right.

        Raises:
            ValueError: if there are more, and `truncation` is False.
        """
        length = len(words) if self.max_length is None else self.max_length
        if len(words) > length and not self.truncation:
            raise ValueError(
                f"conversation has {len(words)} tokens, more than max_length={length}; shorten it, "
                "or pass truncation=True."
            )
        return words[:length] if side == "right" else words[-length:]

    def align(self, rows: list[list[Any]], filling: Any, usual: int | None) -> list[list[Any]]:
        """Give rows one length; `usual` is the longest text where `max_length` is None.

        Raises:
            ValueError: if rows that are not to be padded differ, or no length is known.
        """
        shortest, longest = min(map(len, rows)), max(map(len, rows))
        if self.padding == "do_not_pad" and shortest < longest:
            raise ValueError(
                f"padding={self.padding!r} leaves rows of {shortest} to {longest} words, of which "
                "no tensor can be made; use 'longest'."
            )
        if self.padding == "max_length":
            least = usual if self.max_length is None else self.max_length
            if least is None:
                raise ValueError(
                    f"padding={self.padding!r} needs max_length here, because conversations have "
                    "no usual length; pass it, or use 'longest'."
                )
            longest = max(longest, least)
        unit = 1 if self.pad_to_multiple_of is None else self.pad_to_multiple_of
        length = -(-longest // unit) * unit
        fillings = ([filling] * (length - len(row)) for row in rows)
        if self.padding_side == "left":
            return [padding + row for row, padding in zip(rows, fillings, strict=True)]
        return [row + padding for row, padding in zip(rows, fillings, strict=True)]
