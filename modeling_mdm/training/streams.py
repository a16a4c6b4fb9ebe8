# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams of items from several sources: read as they come, never whole, and gone on with exactly.

Axis legend: height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from modeling_mdm.image_processing_pil_mdm import open_picture, upright

logger = logging.get_logger(__name__)

ROLES = ("image", "text", "prompt", "label", "messages")


@dataclass(frozen=True)
class StreamSource:
    """Where items come from.

    Args:
        path: an id on the Hub, a folder, or a builder of `datasets` such as `"parquet"` or
            `"webdataset"` (tar shards), with `data_files`.
        weight: how often it is drawn from, beside the others; > 0.
        columns: its columns by role: image, text, prompt, label, messages. Of `messages`, the first
            question is the prompt and its answer the text.
        split: the split to read.
        name: configuration of the set, where it has several.
        data_files: files or patterns.

    Raises:
        ValueError: if weight is not above 0, or a role is unknown.
    """

    path: str
    weight: float = 1.0
    columns: Mapping[str, str] = field(default_factory=lambda: {"image": "image", "text": "text"})
    split: str = "train"
    name: str | None = None
    data_files: Any = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight={self.weight} of {self.path!r} must be > 0.")
        if not self.columns or (unknown := sorted(set(self.columns) - set(ROLES))):
            unknown = sorted(set(self.columns) - set(ROLES))
            raise ValueError(f"columns of {self.path!r} has the roles {unknown}: use {[*ROLES]}.")

    def open(self) -> Any:
        """Return a stream of raw items, `{role: value}`, with pictures not decoded."""
        import datasets

        stream = datasets.load_dataset(
            self.path, self.name, data_files=self.data_files, split=self.split, streaming=True
        )
        if "image" in self.columns:
            undecoded = datasets.Image(decode=False)
            stream = stream.cast_column(self.columns["image"], undecoded)
        known = stream.column_names
        if absent := sorted(set(self.columns.values()) - set(known or self.columns.values())):
            raise ValueError(f"columns of {self.path!r} names {absent}: there are {known}.")
        by_role, where = dict(self.columns), self.path

        def rename(row: dict[str, Any]) -> dict[str, Any]:
            return {**{role: row.get(by_role.get(role)) for role in ROLES}, "source": where}

        return stream.map(rename, remove_columns=known)


def read_recipe(path: str | Path) -> list[StreamSource]:
    """Read the sources of a mixture from a YAML file: a list of `StreamSource`'s fields.

    Raises:
        ValueError: if it is no such list, or has unknown keys.
    """
    import yaml

    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    known = {f.name for f in fields(StreamSource)}
    if not isinstance(content, list) or not content:
        raise ValueError(f"path={str(path)!r} must hold a list of sources.")
    for entry in content:
        if unknown := sorted(set(entry) - known):
            raise ValueError(f"path={str(path)!r} has the unknown keys {unknown}: use {[*known]}.")
    return [StreamSource(**entry) for entry in content]


class MixedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Items of several sources, drawn by weight, until the first source is at its end.

    A sample that cannot be read is skipped, counted in `skipped` and warned of. `state_dict` and
    `load_state_dict` go on in the middle, with no item twice and none lost; so does a Trainer that
    is resumed, because the order is fixed by (seed, epoch). What is drawn for an item depends on
    its `seed`, which depends on (seed, epoch, place in the stream).

    Args:
        sources: at least one.
        size: (height, width) that pictures are for: they are cut, at the middle, to this ratio of
            sides, so that resizing does not stretch them. None leaves them as they are.
        seed: seed of the mixture and of items, >= 0.
        batch_size: items of like length come in groups of this size.
        buckets: groups that are sorted by length together; 0 keeps the order of the stream.

    Raises:
        ValueError: if sources is empty, or batch_size or buckets is out of range.
    """

    def __init__(
        self,
        sources: list[StreamSource],
        size: tuple[int, int] | None = None,
        seed: int = 0,
        batch_size: int = 1,
        buckets: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("sources is empty: name at least one.")
        if batch_size < 1 or buckets < 0:
            raise ValueError(f"batch_size={batch_size} must be >= 1 and buckets={buckets} >= 0.")
        self.sources, self.size, self.seed = sources, size, seed
        self.batch_size, self.block = batch_size, max(1, batch_size * buckets)
        # In shared memory: workers read the one and write the other.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(len(sources), dtype=torch.int64).share_memory_()
        self._state: dict[str, Any] | None = None
        self._start: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the seeds of items."""
        self._epoch.fill_(epoch)

    @property
    def skipped(self) -> dict[str, int]:
        """How many samples of each source could not be read."""
        counts: dict[str, int] = {}
        for source, count in zip(self.sources, self._skipped.tolist(), strict=True):
            counts[source.path] = counts.get(source.path, 0) + count
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Say where in the stream the last item was given out; of use to `load_state_dict`."""
        return dict(self._state or {"stream": None, "place": 0, "given": 0})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass where `state_dict` was called."""
        self._start = dict(state)

    def _open(self) -> Any:
        import datasets

        streams = [source.open() for source in self.sources]
        if len(streams) == 1:
            return streams[0]
        weights = np.array([source.weight for source in self.sources])
        seed = int(np.random.SeedSequence((self.seed, int(self._epoch))).generate_state(1)[0])
        shares = (weights / weights.sum()).tolist()
        return datasets.interleave_datasets(streams, probabilities=shares, seed=seed)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"dataloader_num_workers={worker.num_workers}: a stream has one order, use 0 or 1."
            )
        stream = self._open()
        start, self._start = self._start or {"stream": None, "place": 0, "given": 0}, None
        if start["stream"] is not None:
            stream.load_state_dict(start["stream"])
        place, given = start["place"], start["given"]
        rows = iter(stream)
        while True:
            here = {"stream": stream.state_dict() if place else start["stream"], "place": place}
            block, place, is_over = self._read_block(rows, place)
            for number, item in enumerate(self._in_buckets(block, here["place"])):
                if number >= given:
                    self._state = {**here, "given": number + 1}
                    yield item
            given = 0
            if is_over:
                return

    def _read_block(
        self, rows: Iterator[dict[str, Any]], place: int
    ) -> tuple[list[dict[str, Any]], int, bool]:
        """Read so many good items, and say the next place and whether the stream is over."""
        block: list[dict[str, Any]] = []
        while len(block) < self.block:
            try:
                row = next(rows)
            except StopIteration:
                return block, place, True
            if (item := self._read(row, place)) is not None:
                block.append(item)
            place += 1
        return block, place, False

    def _read(self, row: dict[str, Any], place: int) -> dict[str, Any] | None:
        """Decode one row; None, with a warning, where it is damaged."""
        try:
            item = {role: row[role] for role in ("text", "prompt", "label")}
            if row["messages"]:
                first, second = row["messages"][:2]
                item |= {"prompt": first["content"], "text": second["content"]}
            for role in ("text", "prompt"):
                if item[role] is not None and not isinstance(item[role], str):
                    raise ValueError(f"its {role} is {type(item[role]).__name__}, no string")
            item["image"] = None if row["image"] is None else self._decode(row["image"])
            if item["image"] is None and item["text"] is None:
                raise ValueError("it holds neither a picture nor a text")
        except Exception as error:  # whatever a decoder raises, a run of weeks goes on
            number = [source.path for source in self.sources].index(row["source"])
            self._skipped[number] += 1
            logger.warning(f"sample {place}, of {row['source']!r}, is skipped: {error}.")
            return None
        entropy = np.random.SeedSequence((self.seed, int(self._epoch), place))
        return {**item, "seed": int(entropy.generate_state(1, np.uint64)[0])}

    def _decode(self, image: Any) -> Image.Image:
        content = image.get("bytes")
        picture = open_picture(image["path"] if content is None else content)
        return picture if self.size is None else crop_to_ratio(picture, self.size)

    def _in_buckets(self, block: list[dict[str, Any]], place: int) -> list[dict[str, Any]]:
        """Sort by length, cut into groups, and shuffle the groups."""
        if self.block == 1:
            return block
        block = sorted(block, key=lambda item: len(item["prompt"] or "") + len(item["text"] or ""))
        starts = list(range(0, len(block), self.batch_size))
        np.random.default_rng((self.seed, int(self._epoch), place)).shuffle(starts)
        return [item for start in starts for item in block[start : start + self.batch_size]]


def crop_to_ratio(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut the middle out of a picture, as large as possible in the ratio of (height, width)."""
    image = upright(image)
    height, width = size
    scale = min(image.height / height, image.width / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (image.width - wide) // 2, (image.height - tall) // 2
    return image.crop((left, top, left + wide, top + tall))
