# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations from JSON, JSON lines, Parquet or the Hub, with their pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.features.features import require_decoding

from modeling_mdm.data.archives import is_archive, unpacked
from modeling_mdm.data.conversations import place_images, words_and_pictures
from modeling_mdm.data.damage import LISTED, MAX_SKIPPED, StandIns
from modeling_mdm.data.rows import AsStored, read_rows
from modeling_mdm.data.shards import Row, read_image, read_messages, read_text
from modeling_mdm.data.sources import Chosen

PICTURE_KEYS = ("image", "path", "url")


class Conversations(StandIns):
    """Items of `messages`, with their pictures read, upright.

    Args:
        rows: with a column `messages` and perhaps `images`; paths are relative to the row's folder.
        max_skipped: share of the conversations that may be damaged.
    """

    def __init__(self, rows: Sequence[Row], max_skipped: float = MAX_SKIPPED) -> None:
        super().__init__(len(rows), max_skipped)
        self.rows = rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"messages": self._read_near(index)[1]}

    def name(self, index: int) -> str:
        """Say in which file and line a conversation is."""
        return self.rows[index].name

    def answers(self) -> Iterator[tuple[str, str]]:
        """Give the name and the words of each answer that can be read."""
        return self.texts(("assistant",))

    def texts(self, roles: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Give the name and the words of each message of some roles that can be read."""
        for index, row in enumerate(self.rows):
            yield from ((self.name(index), words) for words in _said(row, roles))

    def without(self, answers: Collection[str]) -> Conversations:
        """Leave out the conversations that have one of some answers."""
        left = [n for n, row in enumerate(self.rows) if set(answers).isdisjoint(_said(row))]
        return self._chosen(left)

    def parts(
        self, weights: Mapping[str, float] | None = None
    ) -> list[tuple[Conversations, float]]:
        """Part conversations by how many pictures they show, the ones to be drawn included.

        Rows of one batch are as long as the longest, so each part is to have batches of its own.

        Args:
            weights: how often each kind, of the column `kind`, is drawn, beside the others; one
                that is not named is never drawn, and each has parts of its own. None draws
                conversations as often as they are there.

        Returns:
            the parts, and how often each is to be drawn.

        Raises:
            ValueError: if there is no such kind, a weight is no number >= 0, or all are 0.
        """
        if not len(self):
            raise ValueError("there are no conversations, or each has an answer that is too long.")
        kinds = ["" if weights is None else str(row.values.get("kind")) for row in self.rows]
        weights = {"": 1.0} if weights is None else weights
        if unknown := sorted(set(weights) - set(kinds)):
            there = ", ".join(sorted(set(kinds) - {"None"})) or "none: there is no column `kind`"
            raise ValueError(f"weights names {unknown}: the kinds of conversations are {there}.")
        if not all(_is_weight(weight) for weight in weights.values()):
            raise ValueError(f"weights={dict(weights)} must be numbers >= 0.")
        if not any(weights.values()):
            raise ValueError(f"weights={dict(weights)} must hold one above 0.")
        shown = [_num_pictures(row) for row in self.rows]
        known = Counter(number for number in shown if number is not None)
        usual = max(known, key=lambda number: known[number], default=0)
        of_kind = Counter(kinds)
        places: dict[tuple[str, int], list[int]] = {}
        for index, (kind, number) in enumerate(zip(kinds, shown, strict=True)):
            if weights.get(kind, 0) > 0:
                # What cannot be read is reported when it is drawn, and another stands in for it.
                places.setdefault((kind, usual if number is None else number), []).append(index)
        return [
            (self._chosen(own), weights[kind] * len(own) / of_kind[kind])
            for (kind, _), own in sorted(places.items())
        ]

    def _chosen(self, indices: list[int]) -> Conversations:
        return Conversations(Chosen(self.rows, np.array(indices, dtype=int)), self.max_skipped)

    def _read(self, index: int) -> list[dict[str, Any]]:
        row = self.rows[index]
        if row.fault is not None:
            raise ValueError(row.fault)
        messages = read_messages(row.values.get("messages"))
        if not messages or not any(message["role"] == "assistant" for message in messages):
            raise ValueError("its messages have no answer of the assistant")
        folder = row.values.get("__folder__", "")
        images = [_open(value, folder) for value in row.values.get("images") or []]
        placed = place_images(messages, images)
        for message in placed:
            for piece in message["content"]:
                if piece["type"] == "text":
                    read_text(piece["text"], "text")
                key = next((key for key in PICTURE_KEYS if key in piece), None)
                if piece["type"] == "image" and key is not None:
                    piece["image"] = _open(piece.pop(key), folder)
        return placed


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")


def _said(row: Row, roles: Sequence[str] = ("assistant",)) -> list[str]:
    """Return the words of the messages of some roles; none where a row cannot be read."""
    try:
        messages = read_messages(row.values["messages"]) or []
        return [words_and_pictures(m)[0] for m in messages if m["role"] in roles]
    except Exception:  # read again, and reported, when it is drawn
        return []


def _num_pictures(row: Row) -> int | None:
    """Count the pictures that a row shows; None where it cannot be read."""
    try:
        messages = read_messages(row.values["messages"]) or []
        contents = [message["content"] for message in messages]
        pieces = [piece for content in contents if isinstance(content, list) for piece in content]
        return sum(piece["type"] == "image" for piece in pieces) if messages else None
    except Exception:
        return None


def _require_pictures(rows: Sequence[Row]) -> None:
    """Raise a ValueError if a picture's file is missing, with the rows that name it."""
    missing = [
        f"{row.name}: {path}"
        for row in rows
        for path in map(_local_path, *zip(*_pictures(row), strict=True))
        if path is not None and not os.path.isfile(path)
    ]
    if missing:
        listed = "".join(f"\n  {name}" for name in missing[:LISTED])
        raise ValueError(
            f"{len(missing)} pictures are missing. Paths are absolute, or relative to the "
            f"folder of the file that names them:{listed}"
        )


def _pictures(row: Row) -> list[tuple[Any, str]]:
    """Return what a row says of its pictures, each with the row's folder."""
    found = list(row.values.get("images") or [])
    try:
        for message in read_messages(row.values.get("messages")) or []:
            pieces = message["content"] if isinstance(message["content"], list) else []
            found += [piece.get(key) for piece in pieces for key in PICTURE_KEYS]
    except (ValueError, KeyError, TypeError, AttributeError):  # reported when it is drawn
        pass
    return [(value, row.values.get("__folder__", "")) for value in (*found, None)]


def _local_path(value: Any, folder: str) -> str | None:
    """Return the path that a value names; None for bytes, addresses and base64."""
    if isinstance(value, dict):
        value = None if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, str) or "://" in value or value.startswith("data:"):
        return None
    return os.path.join(folder, value) if "." in value else None


def _open(value: Any, folder: str) -> Any:
    path = _local_path(value, folder)
    if path is not None:
        return read_image(path)
    return value if isinstance(value, str) else read_image(value)


def load_talks(
    name_or_path: str, split: str = "train", max_skipped: float = MAX_SKIPPED
) -> Conversations:
    """Load conversations.

    Args:
        name_or_path: a file of JSON, JSON lines or Parquet, a folder of such, one packed into a tar
            file, or an id on the Hub, with a column `messages` and, where messages only say
            `{"type": "image"}`, `images`.
        split: the split to read.
        max_skipped: see `Conversations`.

    Raises:
        ValueError: if there is no column `messages`, or a picture is missing.
    """
    if is_archive(name_or_path):
        name_or_path = unpacked(name_or_path) or name_or_path
    path = Path(name_or_path)
    kind, files = name_or_path, None
    if path.is_file():
        kind, files = ("parquet" if path.suffix == ".parquet" else "json"), str(path.absolute())
    read = read_rows(kind, None, split, files)
    rows = read.rows if read is not None else _rows_of_datasets(kind, split, files)
    columns = {name for row in rows for name in row.values if name != "__folder__"}
    if "messages" not in columns:
        raise ValueError(
            f"dataset={name_or_path!r} has the columns {sorted(columns)}: it needs `messages`."
        )
    _require_pictures(rows)
    return Conversations(rows, max_skipped)


def _rows_of_datasets(kind: str, split: str, files: str | None) -> Sequence[Row]:
    data = datasets.load_dataset(kind, data_files=files, split=split)
    data = data.cast(datasets.Features({k: _undecoded(v) for k, v in data.features.items()}))
    folder = os.path.dirname(files) if files else str(Path(kind).absolute())
    return _LazyRows(data, folder if files or Path(kind).is_dir() else "", files or kind)


def _undecoded(feature: Any) -> Any:
    """Have pictures come as bytes or paths, however deep they lie."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature))
    if isinstance(feature, dict):
        return {name: _undecoded(piece) for name, piece in feature.items()}
    return feature


class _LazyRows(Sequence[Row]):
    """Rows of a set of `datasets`, read when they are asked for."""

    def __init__(self, data: Any, folder: str, name: str) -> None:
        self.length, self.folder, self.called = len(data), folder, name
        self.columns = {
            name: data[name] if require_decoding(feature) else AsStored(data[name])
            for name, feature in data.features.items()
        }

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Row:
        if not 0 <= index < self.length:
            raise IndexError(index)
        values = {name: column[index] for name, column in self.columns.items()}
        return Row(values | {"__folder__": self.folder}, f"{self.called}, row {index + 1}")
