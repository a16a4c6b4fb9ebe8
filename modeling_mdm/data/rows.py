# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tar shards, JSON lines and folders of pictures as a set: decoded when an item is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from modeling_mdm.data.shards import (
    Cell,
    Member,
    Row,
    is_picture,
    pick,
    read_captions,
    read_image,
    read_label,
    readers,
)
from modeling_mdm.data.sources import Source


class FirstOf(Sequence[Any]):
    """By index, the first of several columns that has a value there."""

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def __getitem__(self, index: Any) -> Any:
        found = (column[index] for column in self.columns)
        return next((value for value in found if value is not None), None)

    def lacking(self) -> list[int]:
        """Return the indices at which none has a value."""
        absent = np.ones(len(self), dtype=bool)
        for column in self.columns:
            absent &= _is_null(column)
        return np.nonzero(absent)[0].tolist()


def _is_null(column: Any) -> np.ndarray:
    """Tell where a column of `datasets` is empty, without reading what it holds."""
    dataset = column.source
    is_null = dataset.data.column(column.column_name).is_null()
    if dataset._indices is not None:
        is_null = is_null.take(dataset._indices.column(0))
    return np.asarray(is_null)


class AsStored(Sequence[Any]):
    """A column of `datasets` of which nothing is to be decoded, a hundred times as fast.

    Args:
        column: the column. field: of its structs, the only field that is read.
    """

    def __init__(self, column: Any, field: str | None = None) -> None:
        self.source, self.column_name = column.source, column.column_name
        stored = self.source.data.column(self.column_name)
        self._stored = stored if field is None else pc.struct_field(stored, field)
        indices = self.source._indices
        self._indices = None if indices is None else indices.column(0)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index if self._indices is None else self._indices[index].as_py()
        return self._stored[place].as_py()


class PathsOf(Sequence[str]):
    """By index, the path of an undecoded picture of `datasets`."""

    def __init__(self, images: Any) -> None:
        self.paths = AsStored(images, "path")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> str:
        return self.paths[index] or "in memory"


class Rows:
    """Rows of files, with features that the first value of each column tells."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.features: dict[str, Any] = {}
        for row in rows:
            for name, value in row.values.items():
                if name != "__folder__" and name not in self.features and value is not None:
                    self.features[name] = _feature(name, value)

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, image: list[str], text: list[str], label: list[str]) -> Source:
        """Make the source of a set whose roles these columns have."""

        def read_labels(row: Row) -> int | None:
            try:
                return read_label(pick(row.values, label))
            except ValueError:
                return None

        return Source(
            images=_Decoded(self.rows, image, "image"),
            texts=_Decoded(self.rows, text, "text") if text else None,
            labels=[read_labels(row) for row in self.rows] if label else None,
            names=[row.name for row in self.rows],
        )


class _Decoded(Sequence[Any]):
    """A role of rows, decoded when it is asked for."""

    def __init__(self, rows: Sequence[Row], columns: list[str], role: str) -> None:
        self.rows, self.columns, self.role = rows, columns, role

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        if row.fault is not None:
            raise ValueError(row.fault)
        value = pick(row.values, self.columns)
        if self.role == "image":
            return read_image(value, row.values.get("__folder__", ""))
        return read_captions(value, self.role)

    def lacking(self) -> list[int]:
        """Return the indices of intact rows that have no value."""
        return [
            index
            for index, row in enumerate(self.rows)
            if row.fault is None and pick(row.values, self.columns) is None
        ]


def _feature(name: str, value: Any) -> Any:
    if isinstance(value, Member):
        if is_picture(name):
            return datasets.Image()
        return datasets.Value("int64" if name == "cls" else "string")
    if isinstance(value, dict) and set(value) == {"path", "bytes"}:
        return datasets.Image()
    if isinstance(value, str):
        is_number = isinstance(value, Cell) and _is_number(value)
        return datasets.Value("float64" if is_number else "string")
    if isinstance(value, list) and all(isinstance(piece, str) for piece in value):
        return datasets.List(datasets.Value("string"))
    return datasets.Value("int64") if isinstance(value, int) else datasets.Value("binary")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def read_rows(
    name_or_path: str, data_dir: str | None, split: str, data_files: Any = None
) -> Rows | None:
    """Read a split; None where `datasets` has to.

    Raises:
        ValueError: if there is no such split.
    """
    builder = datasets.load_dataset_builder(name_or_path, data_dir=data_dir, data_files=data_files)
    files: Mapping[str, Any] = builder.config.data_files or {}
    if not files or readers(builder, next(iter(files))) is None:
        return None
    read: dict[str, list[Row]] = {}
    for name in {piece.split("[")[0].strip() for piece in split.split("+")}:
        if name not in files:
            raise ValueError(f"unknown split {name!r}: there are {[*files]}")
        read[name] = _all_rows(builder, name)
    lengths = {name: len(rows) for name, rows in read.items()}
    chosen: list[Row] = []
    for stretch in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        chosen += read[stretch.splitname][stretch.from_ : stretch.to]
    return Rows(chosen)


def _all_rows(builder: Any, split: str) -> list[Row]:
    found = readers(builder, split)
    if found is None:
        return []
    read, paths = found
    local = datasets.DownloadManager().download(paths)
    return [row for path in local for row in read(path, in_place=True)]
