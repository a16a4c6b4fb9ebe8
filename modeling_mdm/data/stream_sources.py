# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the items of a stream come from: a split of a set, and its columns by role."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mdm_cli.places import require_place
from modeling_mdm.data.encoded import encoded_rows, is_encoded, open_encoding
from modeling_mdm.data.shards import PEEKED, Row, alternatives, pick, readers

ROLES = ("image", "text", "prompt", "label", "messages")
APART = ("name", "split", "key", "of")  # what says where pictures lie


@dataclass(frozen=True)
class StreamSource:
    """Where items come from.

    Args:
        path: an id on the Hub, a folder, also one that `mdm encode` has written, or a builder of
            `datasets` such as `"parquet"` or `"webdataset"` (tar shards), with `data_files`.
        weight: how often it is drawn from, beside the others; > 0.
        columns: its columns by role: image, text, prompt, label, messages. Of `messages`, the first
            question is the prompt and its answer the text. Several columns, of which an item has
            one, are written as WebDataset does, `"jpg;png"`, or as a list.
        split: the split to read.
        name: configuration of the set, where it has several.
        data_files: files or patterns.
        pictures: where pictures lie apart from what is said of them: `name` and `split` of the
            configuration that holds them, `key`, its column by which they are found, and `of`, the
            column here that names one. It is not streamed, but loaded.

    Where prompts are a list, as many texts belong to them, and a pair is drawn. `messages` may also
    be such pairs, `{"user": ..., "assistant": ...}`. A list of pictures holds one.

    Raises:
        ValueError: if weight is not above 0, a role is unknown, or pictures are not told so.
    """

    path: str
    weight: float = 1.0
    columns: Mapping[str, str | list[str]] = field(
        default_factory=lambda: {"image": "image", "text": "text"}
    )
    split: str = "train"
    name: str | None = None
    data_files: Any = None
    pictures: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight={self.weight} of {self.path!r} must be > 0.")
        if not self.columns or (unknown := sorted(set(self.columns) - set(ROLES))):
            unknown = sorted(set(self.columns) - set(ROLES))
            raise ValueError(f"columns of {self.path!r} has the roles {unknown}: use {[*ROLES]}.")
        if self.pictures is not None and set(self.pictures) != set(APART):
            raise ValueError(
                f"pictures={dict(self.pictures)} of {self.path!r} must name {[*APART]}."
            )

    def open(self, number: int = 0) -> Any:
        """Return a stream of raw items, `{role: value}` in one pickled column `row`.

        Nothing is decoded, and `datasets` is not shown what they hold: it would take the types of
        the first items for those of all.

        `source` is the number of this source, `name` and `fault` say what an item is called and
        why it cannot be read, `holds` which columns have a value.

        Raises:
            ValueError: if there is no such split, or none of the columns of a role.
        """
        import datasets

        require_place("path", self.path)
        by_role = {role: alternatives(names) for role, names in self.columns.items()}
        if is_encoded(self.path):
            builder, found = None, (encoded_rows, open_encoding(self.path, self.split).files)
        else:
            builder = datasets.load_dataset_builder(
                self.path, self.name, data_files=self.data_files
            )
            found = readers(builder, self.split)
        apart = None if self.pictures is None else _Apart(self.path, self.pictures, by_role)
        if found is None:
            stream = _undecoded(builder.as_streaming_dataset(split=self.split), by_role)
            known = stream.column_names
        else:
            read, files = found
            if not files:
                splits = [*(builder.config.data_files or {})]
                raise ValueError(f"split={self.split!r} of {self.path!r}: there are {splits}.")
            stream = datasets.IterableDataset.from_generator(
                _rows, _opaque(), gen_kwargs={"read": read, "files": files}
            )
            peeked = (row for file in files for row in read(file) if row.fault is None)
            known = {name for row in islice(peeked, PEEKED) for name in row.values}
        self._check_columns(
            by_role, known if apart is None or not known else {*known, *apart.added}
        )
        rename = partial(
            _by_role, by_role=by_role, number=number, is_read=found is not None, apart=apart
        )
        return stream.map(rename, remove_columns=stream.column_names, features=_opaque())

    def _check_columns(self, by_role: Mapping[str, list[str]], known: Any) -> None:
        for role, names in by_role.items():
            if known and not set(names) & set(known):
                shown = sorted(name for name in known if name != "__folder__")
                raise ValueError(
                    f"columns of {self.path!r} names {names} as its {role}: there are {shown}."
                )


def _by_role(
    row: dict[str, Any],
    by_role: Mapping[str, list[str]],
    number: int,
    is_read: bool,
    apart: _Apart | None = None,
) -> dict[str, bytes]:
    """Bring a row to raw values by role; `is_read` tells rows of our own readers."""
    if is_read:
        values, name, fault = pickle.loads(row["row"])
    else:
        values, name, fault = row, _path_of(pick(row, by_role.get("image", []))), None
    if apart is not None and fault is None:
        values, fault = apart.beside(values)
    raw = {
        **{role: pick(values, by_role.get(role, [])) for role in ROLES},
        "source": number,
        "folder": values.get("__folder__", ""),
        "holds": [name for name, value in values.items() if value is not None],
        "name": name,
        "fault": fault,
    }
    return {"row": pickle.dumps(raw)}


class _Apart:
    """Pictures of another configuration of a set, found by a key."""

    def __init__(
        self, path: str, said: Mapping[str, str], by_role: Mapping[str, list[str]]
    ) -> None:
        import datasets

        table = datasets.load_dataset(path, said["name"], split=said["split"])
        self.added = [name for name in by_role.get("image", []) if name in table.column_names]
        for name in self.added:
            table = table.cast_column(name, datasets.Image(decode=False))
        if said["key"] not in table.column_names or not self.added:
            raise ValueError(
                f"pictures={dict(said)} of {path!r}: there are the columns {table.column_names}, "
                f"which must hold the key and one of {by_role.get('image', [])}."
            )
        self.table, self.of = table.select_columns(self.added), said["of"]
        self.places = {key: place for place, key in enumerate(table[said["key"]])}

    def beside(self, values: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Put its picture beside what is said of it; or say that there is none."""
        key = values.get(self.of)
        if key not in self.places:
            return values, f"its {self.of} is {key!r}, and there is no such picture"
        return {**values, **self.table[self.places[key]]}, None


def _undecoded(stream: Any, by_role: Mapping[str, list[str]]) -> Any:
    """Leave pictures and texts as the bytes that they are."""
    import datasets

    features = stream.features or {}
    for role, names in by_role.items():
        for name in names:
            if role == "image" and (not features or name in features):
                kind: Any = datasets.Image(decode=False)
                if isinstance(features.get(name), (datasets.List, datasets.LargeList)):
                    kind = datasets.List(kind)
                stream = stream.cast_column(name, kind)
            elif role in ("text", "prompt") and is_string(features.get(name)):
                stream = stream.cast_column(name, datasets.Value("binary"))
    return stream


def _rows(read: Callable[[str], Iterator[Row]], files: list[str]) -> Iterator[dict[str, Any]]:
    for file in files:
        for row in read(file):
            yield {"row": pickle.dumps(tuple(row))}


def _opaque() -> Any:
    import datasets

    return datasets.Features({"row": datasets.Value("binary")})


def _path_of(image: Any) -> str | None:
    return image.get("path") if isinstance(image, dict) else None


def is_string(feature: Any) -> bool:
    """Tell whether a feature of `datasets` is a text."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def read_recipe(path: str | Path) -> list[StreamSource]:
    """Read the sources of a mixture from a YAML file: a list of `StreamSource`'s fields.

    What `mdm encode` has written is found beside the file.

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
        beside = Path(path).parent / str(entry.get("path"))
        if is_encoded(beside):
            entry["path"] = str(beside)
    return [StreamSource(**entry) for entry in content]
