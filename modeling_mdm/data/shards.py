# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of tar shards, JSON lines and folders of pictures, as they lie there.

The readers of `datasets` decode what they read, and one byte that is wrong ends them. These decode
nothing: what is damaged is a row with a `fault`, which says where it lies and can be passed over.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, Any, NamedTuple, cast

import numpy as np
from PIL import Image

from modeling_mdm.processor.image_processing_pil_mdm import open_picture, read_picture, upright

JSON_MEMBERS = ("json", "jsn")
PEEKED = 5  # rows that tell which columns there are


class Row(NamedTuple):
    """One row: its values by column, not decoded; what it is called; why it cannot be read."""

    values: dict[str, Any]
    name: str
    fault: str | None = None


class Cell(str):
    """A value of a table of text, in which nothing tells a number from a word."""


class TokenizedText(str):
    """A text that brings the ids of its words, so that nobody has to find them again."""

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int]) -> TokenizedText:
        """Put the ids beside the text."""
        made = super().__new__(cls, text)
        made.ids = list(ids)
        return made

    def __reduce__(self) -> Any:
        return TokenizedText, (str(self), self.ids)


class CodedPicture(NamedTuple):
    """A picture as the codes (rows, columns) that a VQ-VAE has made of it."""

    codes: np.ndarray


class Member(NamedTuple):
    """A file within a tar shard: bytes, or where they lie in the shard."""

    column: str
    content: bytes | None
    shard: str = ""
    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            ValueError: if there are none.
        """
        content = self.content
        if content is None:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        if not content:
            raise ValueError(f"its {self.column} is empty")
        return content


def readers(builder: Any, split: str) -> tuple[Callable[..., Iterator[Row]], list[str]] | None:
    """Find what reads a split of a `datasets` builder row by row, and its files.

    Returns:
        None where `datasets` has to read it.
    """
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    files = [str(path) for path in (builder.config.data_files or {}).get(split, [])]
    if isinstance(builder, WebDataset):
        return tar_rows, files
    if isinstance(builder, Json) and builder.config.field is None:
        return json_rows, files
    if isinstance(builder, Csv):
        return partial(csv_rows, separator=builder.config.sep or ","), files
    if isinstance(builder, ImageFolder):
        known = ("metadata.jsonl", "metadata.csv")
        lists = [path for path in files if os.path.basename(path) in known]
        if lists:
            return picture_rows, lists
    return None


class _StrictHeader(tarfile.TarInfo):
    """A header without which the rest of a shard is lost, where tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictHeader:
        try:
            return cast(_StrictHeader, super().fromtarfile(tar))
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


def tar_rows(path: str, in_place: bool = False) -> Iterator[Row]:
    """Read the samples of a tar shard as WebDataset writes them: files of one name in a row.

    Args:
        path: the shard; local, or an address that `datasets` knows.
        in_place: leave what files hold in the shard, which must be local.
    """
    values: dict[str, Any] = {}
    key, fault = None, None
    try:
        with _opened(path) as file:
            seeks = in_place and not isinstance(file, gzip.GzipFile)
            mode = "r:" if seeks else "r|*"
            with tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictHeader) as tar:  # type: ignore[call-overload]
                for info in tar:
                    match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", info.name)
                    if not info.isfile() or match is None:
                        continue
                    if match[1] != key and key is not None:
                        yield Row(values, f"{path}: {key}", fault)
                        values, fault = {}, None
                    key, column = match[1], match[2].lower()
                    if column in values:
                        fault = f"it has two files of the kind {column}"
                    if seeks:
                        place = (str(path), info.offset_data, info.size)
                        if info.offset_data + info.size > os.path.getsize(path):
                            raise tarfile.ReadError("unexpected end of data")
                        values[column] = Member(column, None, *place)
                    else:
                        values[column] = Member(column, cast(Any, tar.extractfile(info)).read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        yield Row({}, str(path), f"what follows {key or 'its beginning'} is lost: {error}")
        return
    if key is not None:
        yield Row(values, f"{path}: {key}", fault)


def json_rows(path: str, in_place: bool = False) -> Iterator[Row]:
    """Read the objects of a file of JSON lines, or of one JSON list."""
    folder = os.path.dirname(path)
    with _opened(path) as file:
        start = file.readline()
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            try:
                whole = json.loads(start + file.read())
            except ValueError as error:
                raise ValueError(f"{path} is no JSON list: {error}") from error
            for number, value in enumerate(whole, 1):
                yield _json_row(value, f"{path}, item {number}", folder)
            return
        number, line = 1, start
        while line:
            if line.strip():
                try:
                    value = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
                except ValueError as error:  # UnicodeDecodeError is one
                    value = error
                yield _json_row(value, f"{path}, line {number}", folder)
            number, line = number + 1, file.readline()


def _json_row(value: Any, name: str, folder: str) -> Row:
    if isinstance(value, ValueError):
        return Row({}, name, f"it is no JSON: {value}")
    if isinstance(value, str):  # `datasets` calls the column of a list of strings so
        value = {"text": value}
    if not isinstance(value, dict):
        return Row({}, name, f"it is a JSON {type(value).__name__}, no object")
    return Row({**value, "__folder__": folder}, name)


def csv_rows(path: str, in_place: bool = False, separator: str = ",") -> Iterator[Row]:
    """Read a table whose first line names the columns; what is no UTF-8 stays in escapes.

    A value that is no number is a text, an empty one is none.
    """
    folder = os.path.dirname(path)
    with _opened(path) as file:
        lines = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.DictReader(lines, delimiter=separator)
        for values in reader:
            name = f"{path}, line {reader.line_num}"
            found = {key: Cell(value) if value else None for key, value in values.items() if key}
            fault = "it has more values than there are columns" if None in values else None
            yield Row({**found, "__folder__": folder}, name, fault)


def picture_rows(path: str, in_place: bool = False) -> Iterator[Row]:
    """Read a metadata file, whose `file_name` is a picture beside it or below."""
    for row in (json_rows if path.endswith(".jsonl") else csv_rows)(path):
        values, fault = dict(row.values), row.fault
        if fault is None and "file_name" in values:
            name = values.pop("file_name")
            values["image"] = {"path": None, "bytes": None}
            if not isinstance(name, str):
                fault = f"its file_name is {name!r:.80}, no string"
            elif os.path.isabs(name) or "://" in name or ".." in name.replace("\\", "/").split("/"):
                fault = f"its file_name {name!r:.200} does not lie in the folder"
            else:
                values["image"]["path"] = os.path.join(os.path.dirname(path), name)
                row = row._replace(name=f"{row.name}, {values['image']['path']}")
        elif fault is None:
            fault = "it has no file_name"
        yield Row(values, row.name, fault)


def _open_anywhere(path: str) -> IO[bytes]:
    """Open a local file, or an address that `datasets` knows."""
    if "://" not in path:
        return open(path, "rb")
    from datasets.utils.file_utils import xopen

    return cast(IO[bytes], xopen(path, "rb"))


def _opened(path: str) -> IO[bytes]:
    file = _open_anywhere(path)
    return cast(IO[bytes], gzip.open(file) if str(path).endswith(".gz") else file)


# From what lies there to what it means


def is_picture(column: str) -> bool:
    """Tell whether files of a kind, such as "png" or "left.jpg", are pictures."""
    return f".{column.rsplit('.', 1)[-1]}" in Image.registered_extensions()


def read_image(value: Any, folder: str = "") -> Any:
    """Decode a picture, upright: encoded bytes, a path, or what `datasets` holds of one.

    One that was coded stays so.

    Raises:
        Exception: whatever a decoder raises.
    """
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"it shows {len(value)} pictures: an item of a stream has one")
        (value,) = value
    if value is None or isinstance(value, CodedPicture):
        return value
    if isinstance(value, Image.Image):
        picture = upright(value)
    elif isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None:
        raise ValueError("its picture has neither bytes nor a path")
    else:
        picture = open_picture(_content(value, folder))
    if picture.mode.startswith("I") or picture.mode == "F":
        read_picture(picture)  # its pixels may be out of range
    return picture


def _content(value: Any, folder: str) -> bytes:
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, Member):
        return value.read()
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"its picture is {type(value).__name__}, no path")
    path = value if "://" in value else os.path.join(folder, value)
    try:
        with _open_anywhere(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error


def read_text(value: Any, role: str) -> str | None:
    """Decode a text.

    Raises:
        ValueError: if it is no UTF-8, no JSON, or no string.
    """
    if isinstance(value, Member):
        content = value.read()
        value = json.loads(content) if _is_json(value) else content
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"its {role} is {type(value).__name__}, no string")
    value.encode("utf-8")  # half a surrogate is none
    return value


def read_captions(value: Any, role: str = "text") -> list[str] | None:
    """Decode the texts of an item: one string, or a list of strings of which one is drawn.

    Raises:
        ValueError: if one is no UTF-8, no JSON, or no string, or if the list is empty.
    """
    if isinstance(value, Member) and _is_json(value):
        value = json.loads(value.read())
    if not isinstance(value, list):
        text = read_text(value, role)
        return None if text is None else [text]
    if not value:
        raise ValueError(f"its {role} is an empty list: give a string or more, or null for none")
    for number, text in enumerate(value):
        if not isinstance(text, str):
            raise ValueError(
                f"its {role} is a list whose item {number} is {type(text).__name__}, no string: "
                "give strings alone"
            )
    return [cast(str, read_text(text, role)) for text in value]


def read_label(value: Any) -> int | None:
    """Decode a class.

    Raises:
        ValueError: if it is no whole number.
    """
    if isinstance(value, Member):
        value = value.read().decode("ascii")
    if value is None:
        return None
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError(f"its label is {value!r}, no whole number")
    return int(value) if int(value) >= 0 else None  # `datasets` marks a missing one with -1


def read_messages(value: Any) -> list[dict[str, Any]] | None:
    """Decode a conversation.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, Member):
        value = json.loads(value.read())
        value = value["messages"] if isinstance(value, dict) else value
    if value is not None and not isinstance(value, list):
        raise ValueError(f"its messages are {type(value).__name__}, no list")
    return value


def asked_and_answered(messages: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Find what was asked and what was answered: the first of a conversation, or of each pair.

    Pairs, as the sets of The Cauldron hold them, are `{"user": ..., "assistant": ...}`, each about
    the picture and none about another.

    Returns:
        A prompt and a text, or lists of as many.

    Raises:
        ValueError: if there is no answer.
    """
    if any("user" in message for message in messages):
        return [pair["user"] for pair in messages], [pair["assistant"] for pair in messages]
    if len(messages) < 2:
        raise ValueError("its messages have no answer")
    first, second = messages[:2]
    return first["content"], second["content"]


def _is_json(member: Member) -> bool:
    return member.column.rsplit(".", 1)[-1] in JSON_MEMBERS


def alternatives(columns: Any) -> list[str]:
    """Split what a role is given: one column, several as `"jpg;png"`, or a list of them."""
    names = columns.split(";") if isinstance(columns, str) else list(columns or [])
    return [name.strip() for name in names]


def pick(values: dict[str, Any], columns: list[str]) -> Any:
    """Return the value of the first of several columns that has one."""
    return next((values[name] for name in columns if values.get(name) is not None), None)
