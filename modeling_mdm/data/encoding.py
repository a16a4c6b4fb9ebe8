# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encodes data once: pictures to codes or to the model's size, words to ids, into Parquet shards.

Shard after shard is written aside and named when it is whole. What was killed goes on after the
last one; of a stream it holds the place, so that nothing is decoded twice.

Axis legend: batch; channels, height, width (of pixels); rows, columns (of codes).
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from tqdm import tqdm

from modeling_mdm.data.damage import check_skipped
from modeling_mdm.data.encoded import (
    MANIFEST,
    READ_AT_ONCE,
    SHARD,
    Encoding,
    code_type,
    describe_processor,
    describe_vq,
    differences,
    read_manifest,
)
from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.data.stream_sources import StreamSource
from modeling_mdm.data.streams import JUDGED_FROM, crop_to_ratio, decode_row
from modeling_mdm.processor.features import encode_texts
from modeling_mdm.processor.request import TextOptions

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("fault", pa.string()),
        ("image", pa.binary()),
        ("text", pa.list_(pa.string())),
        ("text_ids", pa.list_(pa.list_(pa.int32()))),
        ("prompt", pa.list_(pa.string())),
        ("prompt_ids", pa.list_(pa.list_(pa.int32()))),
        ("label", pa.int64()),
    ]
)
PLACE = b"mdm_place"  # of a stream after the last sample of a shard, in its metadata


class Sample(NamedTuple):
    """A sample as it was read: decoded, with all of its texts and prompts; or why it cannot be."""

    name: str
    image: Image.Image | None = None
    texts: list[str] | None = None
    prompts: list[str] | None = None
    label: int | None = None
    fault: str | None = None


def _reason(error: Exception) -> str:
    """Say why a sample cannot be read, the same in every run: without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(error))


class OfSet:
    """The samples of a set, in order.

    Args:
        data: the set. said: by what it was named; what must be the same to go on.
    """

    def __init__(self, data: PictureDataset, said: dict[str, Any]) -> None:
        self.data = data
        labels = None if data.source.labels is None else list(data.source.class_names or ())
        self.description = {**said, "streamed": False, "labels": labels}
        self.total: int | None = len(data)

    def read(self, start: int, place: Any) -> Iterator[tuple[Sample, Any]]:
        """Give each sample from number `start` on."""
        labels, names = self.data.labels, self.data.source.names
        for index in range(start, len(self.data)):
            label = None if labels is None else labels[index]
            name = f"item {index}" if names is None else names[index]
            try:
                image, texts = self.data._read(index)
                yield Sample(name, image, texts, label=label), None
            except Exception as error:  # whatever a decoder raises
                yield Sample(name, label=label, fault=_reason(error)), None


class OfStream:
    """The samples of a stream, in order.

    Args:
        source: of the stream. size: (height, width) that pictures are cut to the ratio of.
    """

    def __init__(self, source: StreamSource, size: tuple[int, int], said: dict[str, Any]) -> None:
        self.source, self.size = source, size
        self.description = {**said, "streamed": True, "labels": None}
        self.total: int | None = None

    def read(self, start: int, place: Any) -> Iterator[tuple[Sample, Any]]:
        """Give each sample from number `start` on, and the place in the stream after it."""
        stream = self.source.open()
        if place is not None:
            stream.load_state_dict(place)
        rows = iter(stream) if place is not None else islice(stream, start, None)
        for number, raw in enumerate(rows, start):
            row = pickle.loads(raw["row"])
            name = row["name"] or f"sample {number}"
            try:
                found = decode_row(row)
                image = found.image
                if image is not None:
                    image = crop_to_ratio(image, self.size)
                sample = Sample(name, image, found.texts, found.prompts, found.label)
            except Exception as error:
                sample = Sample(name, fault=_reason(error))
            yield sample, stream.state_dict()


class Encoder:
    """Makes rows of shards of samples.

    Args:
        processor: an `MDMProcessor`.
        front_end: the VQ-VAE whose codes pictures become; None keeps pixels.
        device: where it runs.
    """

    def __init__(self, processor: Any, front_end: Any = None, device: str = "cpu") -> None:
        self.processor = processor
        self.front_end = None if front_end is None else front_end.to(device).eval()
        self.device = device
        self.settings = {**describe_processor(processor), **describe_vq(front_end)}
        if front_end is not None:
            self.settings["dtype"] = code_type(len(front_end.codebook))

    def encode(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Make a row of each sample."""
        rows = [self._row(sample) for sample in samples]
        having = [n for n, sample in enumerate(samples) if sample.image is not None]
        pictures = [samples[n].image for n in having]
        try:
            stored: list[Any] = self._pictures(pictures)
        except ValueError:  # of one of them
            stored = [self._alone(picture) for picture in pictures]
        for n, content in zip(having, stored, strict=True):
            if isinstance(content, bytes):
                rows[n]["image"] = content
            else:
                rows[n]["fault"] = _reason(content)
        return rows

    def _row(self, sample: Sample) -> dict[str, Any]:
        texts, prompts = sample.texts, sample.prompts
        return {
            "name": sample.name,
            "fault": sample.fault,
            "image": None,
            "text": texts,
            "text_ids": None if texts is None else self._words(texts),
            "prompt": prompts,
            "prompt_ids": None if prompts is None else self._words(prompts),
            "label": sample.label,
        }

    def _words(self, texts: list[str]) -> list[list[int]]:
        """Find the ids of all words, however long: what is too long is cut in training."""
        longest = max(map(len, texts)) + 2  # in letters, of four bytes at most
        options = TextOptions(truncation=True, max_length=4 * longest)
        found = encode_texts(list(texts), self.processor.tokenizer, options, 0)
        return [words or [] for words in found]

    def _alone(self, picture: Any) -> bytes | Exception:
        try:
            return self._pictures([picture])[0]
        except ValueError as error:
            return error

    def _pictures(self, pictures: list[Any]) -> list[bytes]:
        if not pictures:
            return []
        if self.front_end is None:
            fit = {"do_rescale": False, "do_normalize": False}
            fitted = self.processor(images=pictures, return_tensors="pt", **fit)["pixel_values"]
            channels_last = fitted.movedim(1, -1).numpy().astype(np.uint8)
            return [pixels.tobytes() for pixels in channels_last]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        codes = self.front_end(pixels.to(self.device)).cpu().numpy()  # (batch, rows * columns)
        return [own.astype(self.settings["dtype"]).tobytes() for own in codes]


def encode_split(
    samples: OfSet | OfStream,
    encoder: Encoder,
    folder: str | Path,
    shard_size: int = 4096,
    batch_size: int = 32,
    max_skipped: float = 1.0,
) -> Encoding:
    """Encode a split into a folder, or go on where that was cut off.

    Args:
        shard_size: samples of a shard. batch_size: samples that are encoded at once.
        max_skipped: share of the samples that may be damaged.

    Raises:
        ValueError: if the folder holds shards of another model, processor, source or setting.
        TooManySkippedError: if more samples are damaged.
    """
    folder = Path(folder)
    settings = {**encoder.settings, "source": samples.description, "shard_size": shard_size}
    settings = json.loads(json.dumps(settings))
    there = read_manifest(folder).settings if (folder / MANIFEST).is_file() else settings
    if wrong := differences(there, settings):
        raise ValueError(
            f"output_dir: {str(folder)!r} holds shards of other settings: {'; '.join(wrong)}. "
            "Name another folder, or the settings of those shards."
        )
    folder.mkdir(parents=True, exist_ok=True)
    finished = _Finished.read(folder)
    _write_manifest(folder, {"settings": settings})  # not finished, as far as is known
    read = samples.read(finished.samples, finished.place)
    name = "/".join(folder.parts[-2:])
    with tqdm(desc=name, unit=" samples", initial=finished.samples, total=samples.total) as bar:
        while shard := list(islice(read, shard_size)):
            rows: list[dict[str, Any]] = []
            for start in range(0, len(shard), batch_size):
                batch = [sample for sample, _ in shard[start : start + batch_size]]
                rows += encoder.encode(batch)
                bar.update(len(batch))
            finished.write(rows, shard[-1][1])
            finished.check(max(finished.samples, JUDGED_FROM), max_skipped)
    if not finished.samples:
        raise ValueError(f"{samples.description} holds no samples: name data that has some.")
    finished.check(finished.samples, max_skipped)
    counts = {"samples": finished.samples, "shards": finished.shards}
    counts["damaged"] = len(finished.faults)
    _write_manifest(folder, {"settings": settings, **counts})
    return Encoding(folder, settings, **counts)


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


@dataclass
class _Finished:
    """The shards of a folder that are whole.

    faults: what is damaged, by name, and why. place: in the stream, after them.
    """

    folder: Path
    shards: int = 0
    samples: int = 0
    faults: list[str] = field(default_factory=list)
    place: Any = None

    @classmethod
    def read(cls, folder: Path) -> _Finished:
        found = cls(folder)
        while (path := folder / SHARD.format(found.shards)).is_file():
            table = parquet.read_table(path, columns=["name", "fault"])
            place = (table.schema.metadata or {}).get(PLACE)
            found._count(table.to_pylist(), None if place is None else json.loads(place))
        return found

    def _count(self, rows: list[dict[str, Any]], place: Any) -> None:
        self.shards, self.samples, self.place = self.shards + 1, self.samples + len(rows), place
        self.faults += [
            f"{row['name']}: {row['fault']}" for row in rows if row["fault"] is not None
        ]

    def write(self, rows: list[dict[str, Any]], place: Any) -> None:
        """Write the next shard aside, and name it when it is on the disk."""
        path = self.folder / SHARD.format(self.shards)
        partial = path.with_name(path.name + ".partial")
        table = pa.Table.from_pylist(rows, SCHEMA)
        if place is not None:
            table = table.replace_schema_metadata({PLACE: json.dumps(place)})
        with open(partial, "wb") as file:
            parquet.write_table(table, file, row_group_size=READ_AT_ONCE)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        self._count(rows, place)

    def check(self, total: int, max_skipped: float) -> None:
        check_skipped(len(self.faults), total, max_skipped, self.faults)
