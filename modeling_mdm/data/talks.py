# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations from JSON, JSON lines, Parquet or the Hub, with their pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from modeling_mdm.data.conversations import place_images, words_and_pictures
from modeling_mdm.data.damage import LISTED, MAX_SKIPPED, StandIns
from modeling_mdm.data.rows import read_rows
from modeling_mdm.data.shards import Row, read_image, read_messages, read_text

PICTURE_KEYS = ("image", "path", "url")


class Conversations(StandIns):
    """Items of `messages`, with their pictures read, upright.

    Args:
        rows: with a column `messages` and perhaps `images`; paths are relative to the row's folder.
        max_skipped: share of the conversations that may be damaged.

    Raises:
        ValueError: if a picture's file is missing; with the rows that name it.
    """

    def __init__(self, rows: Sequence[Row], max_skipped: float = MAX_SKIPPED) -> None:
        super().__init__(len(rows), max_skipped)
        self.rows = rows
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
            try:
                messages = read_messages(row.values["messages"]) or []
                said = [words_and_pictures(m)[0] for m in messages if m["role"] in roles]
            except Exception:  # read again, and reported, when it is drawn
                continue
            yield from ((self.name(index), words) for words in said)

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
        name_or_path: a file of JSON, JSON lines or Parquet, a folder of such, or an id on the Hub,
            with a column `messages` and, where messages only say `{"type": "image"}`, `images`.
        split: the split to read.
        max_skipped: see `Conversations`.

    Raises:
        ValueError: if there is no column `messages`, or a picture is missing.
    """
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
        self.data, self.folder, self.called = data, folder, name

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Row:
        if not 0 <= index < len(self.data):
            raise IndexError(index)
        values = {**self.data[index], "__folder__": self.folder}
        return Row(values, f"{self.called}, row {index + 1}")
