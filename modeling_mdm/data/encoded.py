# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sets that `mdm encode` has written: pictures as codes or as the model sees them, words with ids.

A folder holds one of each split, and that Parquet shards and `encoding.json`: what they were made
by and, once all are there, how many samples they hold. A damaged sample is a row that says why, so
that samples keep their places, and with them what is drawn for them.

Axis legend: rows, columns (of codes); height, width, channels (of pixels).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from modeling_mdm.data.shards import CodedPicture, Row, TokenizedText
from modeling_mdm.data.sources import Source

MANIFEST = "encoding.json"
SHARD = "shard-{:05}.parquet"
ROLES = ("image", "text", "prompt", "label")
CODES, PIXELS = "codes", "pixels"
# Rows that are read of a shard at once.
READ_AT_ONCE = 64
# What of an image processor decides which pixels a model sees.
OF_PICTURES = (
    *("size", "num_channels", "do_resize", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


class Encoding(NamedTuple):
    """An encoded split: its folder, what made it, and how many samples and shards there are.

    `samples` is None as long as it is not finished.
    """

    folder: Path
    settings: dict[str, Any]
    samples: int | None = None
    shards: int = 0
    damaged: int = 0

    @property
    def files(self) -> list[str]:
        """Its shards, in order."""
        return [str(self.folder / SHARD.format(number)) for number in range(self.shards)]


def is_encoded(place: str | Path) -> bool:
    """Tell whether a place is a folder that `mdm encode` has written."""
    return Path(place).is_dir() and any(Path(place).glob(f"*/{MANIFEST}"))


def read_manifest(folder: Path) -> Encoding:
    """Read what is said of an encoded split."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names = ("settings", "samples", "shards", "damaged")
    return Encoding(folder, **{name: content[name] for name in names if name in content})


def open_encoding(place: str | Path, split: str) -> Encoding:
    """Find an encoded split that is whole.

    Raises:
        ValueError: if there is no such split, it is not finished, or shards are missing.
    """
    folder = Path(place) / split
    if not (folder / MANIFEST).is_file():
        there = sorted(path.parent.name for path in Path(place).glob(f"*/{MANIFEST}"))
        raise ValueError(f"split={split!r} is not in {str(place)!r}: use one of {there}.")
    encoding = read_manifest(folder)
    if encoding.samples is None:
        raise ValueError(
            f"{str(folder)!r} is not finished: run the same `mdm encode` again, which goes on."
        )
    if missing := [file for file in encoding.files if not Path(file).is_file()]:
        raise ValueError(
            f"{str(folder)!r} lacks {len(missing)} of its {encoding.shards} shards, such as "
            f"{missing[0]}: copy it again, or run the same `mdm encode`, which makes them anew."
        )
    return encoding


# --- rows


def encoded_rows(path: str, in_place: bool = False) -> Iterator[Row]:
    """Read the samples of a shard; what they were called stays their name."""
    from pyarrow import parquet

    settings = read_manifest(Path(path).parent).settings
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(READ_AT_ONCE):
            for values in batch.to_pylist():
                yield _row(values, settings)


def _row(values: Mapping[str, Any], settings: Mapping[str, Any]) -> Row:
    image = values["image"]
    found: dict[str, Any] = {
        role: _with_ids(values[role], values[f"{role}_ids"]) for role in ("text", "prompt")
    }
    found["image"] = None if image is None else read_stored(image, settings)
    found["label"] = values["label"]
    return Row(found, values["name"], values["fault"])


def _with_ids(texts: list[str] | None, ids: list[list[int]] | None) -> list[str] | None:
    return None if texts is None else list(map(TokenizedText, texts, ids or ()))


def read_stored(stored: bytes, settings: Mapping[str, Any]) -> CodedPicture | Image.Image:
    """Read a picture as a shard holds it."""
    height, width = settings["height"], settings["width"]
    if settings["pictures"] == CODES:
        patch = settings["patch_size"]
        codes = np.frombuffer(stored, settings["dtype"]).reshape(height // patch, width // patch)
        return CodedPicture(codes.astype(np.int32))
    pixels = np.frombuffer(stored, np.uint8).reshape(height, width, -1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


# --- sets


def read_encoded(place: str, split: str) -> Source:
    """Read an encoded split as a set.

    Raises:
        ValueError: as `open_encoding`, or if its samples have prompts, which only streams give.
    """
    import datasets

    encoding = open_encoding(place, split)
    if encoding.settings["source"].get("streamed"):
        raise ValueError(
            f"{place!r} was encoded from a stream: name the recipe beside it, a YAML file, as the "
            "dataset."
        )
    data = datasets.load_dataset("parquet", data_files=encoding.files, split="train")
    return Source(
        images=_Pictures(data, encoding.settings),
        texts=_Texts(data),
        labels=None if encoding.settings["source"]["labels"] is None else list(data["label"]),
        class_names=encoding.settings["source"]["labels"] or None,
        names=data["name"],
    )


class _Pictures(Sequence[Any]):
    """Pictures of a table, read when they are asked for."""

    def __init__(self, data: Any, settings: Mapping[str, Any]) -> None:
        self.data = data.select_columns(["image", "fault"])
        self.settings = settings
        self.is_coded = settings["pictures"] == CODES

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        row = self.data[index]
        if row["fault"] is not None:
            raise ValueError(row["fault"])
        return None if row["image"] is None else read_stored(row["image"], self.settings)


class _Texts(Sequence[Any]):
    """Texts of a table, with their ids."""

    def __init__(self, data: Any) -> None:
        self.data = data.select_columns(["text", "text_ids"])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> list[str] | None:
        row = self.data[index]
        return _with_ids(row["text"], row["text_ids"])


# --- what a set was made by


def describe_processor(processor: Any) -> dict[str, Any]:
    """Say what of a processor decides what a set holds."""
    said = processor.image_processor.to_dict()
    size = processor.image_processor.size
    words = processor.tokenizer.backend_tokenizer.to_str().encode()
    return {
        "height": size.height,
        "width": size.width,
        "patch_size": processor.patch_size,
        "image_processor": json.loads(json.dumps({n: said.get(n) for n in OF_PICTURES})),
        "tokenizer": hashlib.sha256(words).hexdigest(),
    }


def describe_vq(front_end: Any) -> dict[str, Any]:
    """Say which VQ-VAE makes codes of pictures: by its weights, in float32; none reads pixels."""
    if front_end is None:
        return {"pictures": PIXELS, "vq_model": None}
    found = hashlib.sha256()
    for name, value in sorted(front_end.model.state_dict().items()):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return {"pictures": CODES, "vq_model": found.hexdigest()}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name the settings in which two encodings differ, with both values."""
    return [
        f"{name} is {_shown(found.get(name))} there and {_shown(value)} here"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def check_encoding(place: str, split: str, processor: Any, vq: dict[str, Any]) -> None:
    """Refuse shards that another processor or another VQ-VAE has made.

    Args:
        vq: from `describe_vq`, of the model that is to learn from them.

    Raises:
        ValueError: names what differs.
    """
    settings = open_encoding(place, split).settings
    wrong = differences(settings, {**describe_processor(processor), **vq})
    if wrong:
        raise ValueError(
            f"{place!r} was encoded for another model or processor: {'; '.join(wrong)}. Use those, "
            "or encode the data anew into another folder."
        )


def code_type(num_codes: int) -> str:
    """Choose the smallest type that holds a code, low byte first."""
    return "<u2" if num_codes <= 2**16 else "<u4"


def stack_codes(images: Sequence[Any]) -> torch.Tensor:
    """Stack the codes of pictures (batch, rows, columns); 0 where an item has none.

    Raises:
        ValueError: if some pictures are coded and some are not.
    """
    present = [image for image in images if image is not None]
    if not all(isinstance(image, CodedPicture) for image in present):
        raise ValueError(
            "a batch holds pictures as codes and others as pixels: encode all sources by `mdm "
            "encode`, or none."
        )
    codes = np.zeros((len(images), *present[0].codes.shape), np.int64)
    for row, image in enumerate(images):
        if image is not None:
            codes[row] = image.codes
    return torch.from_numpy(codes)
