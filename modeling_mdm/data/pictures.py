# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures with captions, labels or both, one item at a time.

Axis legend: item, height, width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.columns import read_columns
from modeling_mdm.data.damage import MAX_SKIPPED, StandIns
from modeling_mdm.data.encoded import is_encoded, read_encoded
from modeling_mdm.data.known_sets import FASHION_MNIST_ID, read_digits, read_fashion_mnist
from modeling_mdm.data.shards import read_captions, read_image
from modeling_mdm.data.sources import Source, split_off
from modeling_mdm.processor.image_processing_pil_mdm import read_picture, set_channels

CAPTION_STREAM, AUGMENT_STREAM = 0, 1


class Item(TypedDict):
    """One training item: a picture, its caption and its class."""

    image: Image.Image | None
    text: str | None
    label: int | None


class PictureDataset(StandIns):
    """Pictures whose captions are drawn afresh in every epoch.

    A picture has one text, or a list of several of which one is drawn, each equally often. What
    item `index` is depends on (seed, epoch, index) alone, never on the order of access, so a run
    that was cut off and resumed sees the same captions and the same augmentation. In place of an
    item that cannot be read the next one is given that can, so that batches keep their shape;
    each is counted in `skipped` and warned of once, by its name.

    Args:
        source: the pictures with their texts, labels or both.
        captions: the table from which a labelled picture without a text of its own gets one.
        seed: seed of captions and augmentation, >= 0.
        augment: flip half of the pictures left to right and shift each by up to one pixel.
        limit: use the first `limit` items only.
        max_skipped: share of the items that may be damaged.

    Raises:
        ValueError: if seed is negative, limit is below 1, max_skipped is no share, or a label has
            no row in captions.
        TooManySkippedError: when an item is asked for, if more items are damaged.
    """

    def __init__(
        self,
        source: Source,
        captions: CaptionTable | None = None,
        seed: int = 0,
        augment: bool = False,
        limit: int | None = None,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} must be >= 1, or None for all items.")
        self.source = source
        self.captions = captions
        self.seed = seed
        self.augment = augment
        self.left_out: Collection[str] = frozenset()  # texts that are never drawn
        super().__init__(min(len(source.images), limit or len(source.images)), max_skipped)
        # In shared memory: a set_epoch in the main process reaches persistent workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if captions is not None and source.labels is not None:
            highest = max((int(x) for x in source.labels if x is not None), default=-1)
            if highest >= captions.num_classes:
                raise ValueError(
                    f"captions has names for {captions.num_classes} classes and the data has the "
                    f"label {highest}: give a table with a row for every class."
                )

    @property
    def epoch(self) -> int:
        """The epoch whose captions are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose captions and augmentation are drawn."""
        self._epoch.fill_(epoch)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None where items have no labels."""
        if self.source.labels is None:
            return None
        if self.source.class_names is not None:
            return len(self.source.class_names)
        return max((int(x) for x in self.source.labels if x is not None), default=-1) + 1

    @property
    def labels(self) -> list[int | None] | None:
        """The label of every item, without decoding a picture; None where there are no labels."""
        if self.source.labels is None:
            return None
        return [_label_or_none(self.source.labels[i]) for i in range(self._length)]

    def __getitem__(self, index: int) -> Item:
        number, (image, texts) = self._read_near(index)
        if self.augment and image is not None:
            image = flip_and_shift(image, self._rng(number, AUGMENT_STREAM))
        labels = self.source.labels
        label = None if labels is None else _label_or_none(labels[number])
        return {"image": image, "text": self._caption(number, texts, label), "label": label}

    def _caption(self, number: int, texts: list[str] | None, label: int | None) -> str | None:
        rng = self._rng(number, CAPTION_STREAM)
        if texts is not None:
            return texts[int(rng.integers(len(texts)))]
        if label is not None and self.captions is not None:
            return self.captions.draw(label, rng)
        return None

    def texts(self) -> Iterator[tuple[str, str]]:
        """Give each text that may be drawn of those that items have, and its item's name."""
        for index in range(self._length if self.source.texts is not None else 0):
            try:
                texts = self._texts(index)
            except Exception:  # read again, and reported, when it is drawn
                continue
            name = self.name(index)
            yield from ((name, text) for text in texts or ())

    def name(self, index: int) -> str:
        """Say where an item comes from."""
        names = self.source.names
        return f"item {index}" + (f", {names[index]}" if names is not None else "")

    def _texts(self, index: int) -> list[str] | None:
        texts = self.source.texts
        found = None if texts is None else read_captions(texts[index])
        if not found or not self.left_out:
            return found
        if left := [text for text in found if text not in self.left_out]:
            return left
        raise ValueError(f"each of its texts is left out, such as {found[0]!r:.60}")

    def _read(self, index: int) -> tuple[Image.Image | None, list[str] | None]:
        image = self.source.images[index]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image = read_image(image)
        own = self._texts(index)
        if image is None and own is None and self.source.labels is None:
            raise ValueError("it holds neither a picture nor a text")
        return image, own

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, index, stream))


def _label_or_none(value: Any) -> int | None:
    # `datasets` marks a missing label of a test split with -1.
    return None if value is None or value < 0 else int(value)


def plain_picture(image: Image.Image) -> Image.Image:
    """Turn any picture upright and make it grey or RGB, on white where it is transparent."""
    pixels = read_picture(image)  # (height, width[, channels])
    if pixels.ndim == 3:
        channels = np.moveaxis(pixels, -1, 0)
        colours = set_channels(channels, 1 if len(channels) == 2 else 3)
        pixels = colours[0] if len(colours) == 1 else np.moveaxis(colours, 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def flip_and_shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror and shift a picture, see `mirrored_and_shifted`."""
    return Image.fromarray(mirrored_and_shifted(np.asarray(plain_picture(image)), rng))


def mirrored_and_shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror pixels (height, width, ...) left to right half of the time, shift them by up to one.

    The row or column that enters repeats the border.
    """
    flip = bool(rng.integers(2))
    down, right = (int(x) for x in rng.integers(0, 3, size=2))
    height, width = pixels.shape[:2]
    padded = np.pad(
        pixels[:, ::-1] if flip else pixels,
        ((1, 1), (1, 1)) + ((0, 0),) * (pixels.ndim - 2),
        "edge",
    )
    return padded[down : down + height, right : right + width].copy()


def load_training_data(
    name_or_path: str,
    split: str = "train",
    data_dir: str | None = None,
    captions: CaptionTable | str | Path | None = None,
    columns: Mapping[str, str | list[str]] | None = None,
    seed: int = 0,
    augment: bool = False,
    limit: int | None = None,
    held_out: float = 0.0,
    takes_held_out: bool = False,
    max_skipped: float = MAX_SKIPPED,
) -> PictureDataset:
    """Load one split of a data set of pictures with texts, labels or both.

    Args:
        name_or_path: `"digits"` (scikit-learn, 8 x 8), `"fashion_mnist"`, a folder that `datasets`
            can read (pictures with metadata.jsonl or in one folder a class, Parquet, JSON lines,
            CSV, tar shards, `save_to_disk`), such a folder packed into one tar file, a tar shard,
            what `mdm encode` has written, or the id of a data set on the Hub.
        split: `"train"`, `"test"` or, for `datasets`, any split or slice.
        data_dir: for `"fashion_mnist"`, the folder with its four IDX files; None takes the Hub's.
            For other names, `datasets`' argument of that name.
        captions: table (or the path of one) for labelled pictures without a text. None makes one
            from the set's own class names.
        columns: `datasets` columns by role, for example `{"image": "scan", "text": "title"}`. Roles
            that are not named are found by feature type. Several columns, of which an item has one,
            are `"jpg;png"`, as WebDataset writes them, or a list. A text column may hold lists of
            strings: of a picture's several captions one is drawn each time.
        seed: seed of captions and augmentation.
        augment: see `PictureDataset`.
        limit: use the first `limit` items only.
        held_out: share of the split that is kept apart, the same items at every call.
        takes_held_out: load these instead of all others.
        max_skipped: see `PictureDataset`.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if a whole file is damaged, a column is absent or ambiguous, or an argument is
            wrong.
    """
    if is_encoded(name_or_path):
        source = read_encoded(name_or_path, split)
        if augment and getattr(source.images, "is_coded", False):
            raise ValueError(
                f"augment=True cannot mirror or shift the codes of {name_or_path!r}: leave it out, "
                "or train on the pictures themselves."
            )
    elif name_or_path == "digits":
        source = read_digits(split)
    elif name_or_path == "fashion_mnist" and data_dir is not None:
        source = read_fashion_mnist(Path(data_dir), split)
    else:
        place = FASHION_MNIST_ID if name_or_path == "fashion_mnist" else name_or_path
        source = read_columns(place, split, data_dir, columns)
    if held_out:
        source = split_off(source, held_out, takes_held_out)
    if isinstance(captions, (str, Path)):
        captions = CaptionTable.from_json(captions)
    if captions is None and source.class_names is not None:
        captions = CaptionTable.from_names(source.class_names)
    return PictureDataset(
        source, captions, seed=seed, augment=augment, limit=limit, max_skipped=max_skipped
    )
