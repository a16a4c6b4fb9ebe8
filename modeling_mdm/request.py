# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one call of the processor asks for: its arguments, item by item, checked against each other.

Axes: B items, M images per item, H height, W width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .checks import whole_number

TASKS = (None, "image", "text", "joint")


@dataclass
class Request:
    """One entry per item in every list.

    Attributes:
        texts: None where an item has no text.
        images: equally many pictures per item, None for an absent one.
        class_labels: -1 for no class; None if nobody passed any.
        image_mask: bool (B, M, H, W), True = repaint; None to leave the pictures as they are.
        generate: None, "image", "text" or "joint".
        has_mask_words: whether an item's text has words to be written in place.
    """

    texts: list[str | None]
    images: list[list[Any]]
    class_labels: list[int] | None
    image_mask: torch.Tensor | None
    generate: str | None
    has_mask_words: list[bool]

    @property
    def writes_image(self) -> bool:
        """Whether pixels are to be written."""
        return self.generate in ("image", "joint")

    @property
    def writes_text(self) -> bool:
        """Whether words are to be written."""
        return self.generate in ("text", "joint")

    @property
    def opens_image(self) -> bool:
        """Whether each item gets a new image after its pictures."""
        return self.writes_image and self.image_mask is None

    @property
    def opens_region(self) -> list[bool]:
        """Whether an item gets a text region after its text."""
        return [self.writes_text and not in_place for in_place in self.has_mask_words]

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
            self.generate is None
            and not any(self.images)
            and self.texts.count(None) == len(self.texts)
        ):
            raise ValueError(
                "text and images are empty; pass one, or say what to write by generate=."
            )
        if self.generate == "image" and any(self.has_mask_words):
            raise ValueError(
                "text contains <mask>, which asks for words, but generate='image' writes none; "
                "use generate='joint', or remove <mask>."
            )
        if self.generate == "text" and self.image_mask is not None:
            raise ValueError(
                "image_mask asks to repaint pixels, but generate='text' writes none; "
                "use generate='joint', or leave image_mask out."
            )
        if self.writes_image and self.image_mask is not None and not self.image_mask.any():
            raise ValueError(
                "Nothing to generate: image_mask is 0 everywhere; mark pixels to repaint with 1."
            )
        if max_new_tokens is not None and not any(self.opens_region):
            raise ValueError(
                f"max_new_tokens={max_new_tokens} is the length of a text region, and none is "
                "opened; use generate='text' or 'joint', a text without <mask>, or leave it out."
            )


def read_request(
    text: Any,
    images: Any,
    class_labels: Any,
    image_mask: Any,
    generate: str | None,
    max_new_tokens: int | None,
    mask_token: str,
    size: tuple[int, int],
) -> Request:
    """Bring the arguments of `MDMProcessor.__call__` to one entry per item.

    Args:
        mask_token: what stands for a word to be written.
        size: (H, W) of the images that the model sees.

    Raises:
        ValueError: if an argument has a wrong form, or two contradict each other.
    """
    check_task(generate)
    passed = {
        name: list_items(value)
        for name, list_items, value in (
            ("text", _list_texts, text),
            ("images", _list_pictures, images),
            ("class_labels", _list_labels, class_labels),
        )
        if value is not None
    }
    sizes = {name: len(items) for name, items in passed.items()}
    batch_size = max(sizes.values(), default=1)
    if batch_size == 0 or len(set(sizes.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sizes.items())
        raise ValueError(
            f"Got {counts}; pass equally many of each, at least 1, None for a missing one."
        )

    texts = passed.get("text", [None] * batch_size)
    pictures = passed.get("images", [])
    if not any(map(_present, pictures)):
        pictures = [[] for _ in range(batch_size)]
    if image_mask is not None:
        if not any(pictures):
            raise ValueError("image_mask is given without images; pass the pictures to repaint.")
        image_mask = _read_mask(image_mask, (batch_size, len(pictures[0]), *size))
    request = Request(
        texts=texts,
        images=pictures,
        class_labels=passed.get("class_labels"),
        image_mask=image_mask,
        generate=generate,
        has_mask_words=[text is not None and mask_token in text for text in texts],
    )
    request.check(max_new_tokens)
    return request


def check_task(generate: Any) -> None:
    """Refuse what `generate` of the processor cannot be."""
    if not isinstance(generate, str | None) or generate not in TASKS:
        raise ValueError(
            f"generate={generate!r:.80} is unknown; use None, 'image', 'text' or 'joint'."
        )


def check_length(max_new_tokens: Any) -> int | None:
    """Read the length of a text region; None stays."""
    length = None if max_new_tokens is None else whole_number(max_new_tokens)
    if max_new_tokens is not None and (length is None or length < 1):
        raise ValueError(
            f"Nothing to generate: max_new_tokens={max_new_tokens!r:.80}; give an integer of at "
            "least 1."
        )
    return length


def is_picture(value: Any) -> bool:
    """Whether a value is one picture, or names one; a string may be a text as well."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO":  # of names
        return False
    return isinstance(value, Image.Image | str | Path | bytes) or (
        isinstance(value, np.ndarray | torch.Tensor) and value.ndim < 4
    )


def is_list(value: Any) -> bool:
    """Whether a value holds items: a list, a column of a data set, but no string or dictionary."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | set)


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
    """Bring a mask to bool (B, M, H, W)."""
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
