# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one call of the processor asks for: its arguments, item by item, checked against each other.

Axes: B items, M images per item, H height, W width.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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


def whole_number(value: Any) -> int | None:
    """Read an integer of Python, NumPy or torch, or None where a value is none; a bool is none."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def integer(name: str, value: Any, fix: str, least: int = 1) -> int:
    """Read an integer of at least `least`; `fix` is what the message tells the caller to do.

    Raises:
        ValueError: another type, or a smaller number.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"`{name}` is {value!r:.80}: {fix}")
    return number


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


# Rows of words have all that these name, or are read so whatever they say.
_TEXT_KEYS_WITHOUT_EFFECT = {"return_attention_mask", "sanitize_control_tokens", "verbose"}
_MADE_BY_NONE = ("return_mm_token_type_ids", "return_text_replacement_offsets")


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


def check_names(kwargs: Mapping[str, Any], processor_kwargs: type, image_kwargs: type) -> None:
    """Refuse keyword arguments that would have no effect.

    Args:
        kwargs: what a caller passed beside the named arguments.
        processor_kwargs: `ProcessingKwargs`, which says what any processor may be passed; arguments
            for videos and audio are among them, and have nothing to act on.
        image_kwargs: the image processor's.

    Raises:
        ValueError: for an unknown name, alone or in a dictionary such as `text_kwargs`, and for an
            output or a reading of text that MDM lacks.
    """
    for group, values in kwargs.items():
        if group.endswith("_kwargs") and not isinstance(values, Mapping):
            raise ValueError(f"{group} is {values!r:.60}; pass a dictionary of arguments.")
    if unknown := sorted(set(kwargs) - names_of(processor_kwargs, image_kwargs)):
        raise ValueError(f"{unknown} are no arguments of this processor; remove them.")
    for group, names in _names_by_group(processor_kwargs, image_kwargs).items():
        unknown = {n: value for n, value in kwargs.get(group, {}).items() if n not in names}
        if unknown:
            raise ValueError(
                f"{group} has {unknown!r:.80}, which are no arguments of {group}; correct or "
                "remove them."
            )
    of_text = set(processor_kwargs.__annotations__["text_kwargs"].__annotations__)
    read = set(TextOptions.__dataclass_fields__) | {"return_tensors"} | _TEXT_KEYS_WITHOUT_EFFECT
    passed = {**kwargs, **kwargs.get("text_kwargs", {})}
    ends = passed.get("add_special_tokens")
    if ends is not None and not ends:
        raise ValueError("add_special_tokens=False is not possible: every text ends with <end>.")
    lacking = (of_text | set(_MADE_BY_NONE)) - read - {"add_special_tokens"}
    if refused := sorted(name for name in lacking if passed.get(name)):
        raise ValueError(f"{refused} are not possible with MDM's processor; remove them.")


def names_of(processor_kwargs: type, image_kwargs: type) -> set[str]:
    """All names under which a processor may be passed something beside its named arguments."""
    groups = _names_by_group(processor_kwargs, image_kwargs)
    return {*groups, *processor_kwargs.__annotations__}.union(*groups.values())


def _names_by_group(processor_kwargs: type, image_kwargs: type) -> dict[str, set[str]]:
    """What may stand in `text_kwargs`, in `images_kwargs` and in each other such dictionary."""
    groups = {
        group: set(kind.__annotations__)
        for group, kind in processor_kwargs.__annotations__.items()
        if group.endswith("_kwargs")
    }
    groups["text_kwargs"].update(_MADE_BY_NONE)
    groups["images_kwargs"].update(image_kwargs.__annotations__)
    return groups | {"common_kwargs": groups["text_kwargs"] & groups["images_kwargs"]}
