# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder that is written: Parquet files, a card, licences, and one archive to carry."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .build import EditPair, Item
from .captions import dominant_colour
from .drawing import MAIN_SHARE
from .scenes import Thing
from .talks import Definition

ROWS = 1000  # of a row group
# As the Hub calls files, so that `datasets` finds the splits by their names. A card that lists them
# would have it load what it read under the same path before, whatever the files hold now.
SPLIT_FILE = "data/{}-00000-of-00001.parquet"
LICENCES, CARD, COUNTS = "LICENSES.md", "README.md", "counts.json"
EDITS, DEFINITIONS, TALKS = "edits", "definitions.jsonl", "talks"


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes its name when all is there, and goes if not.

    Raises:
        FileExistsError: if the name is taken by something that is not an empty folder.
    """
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}-unfinished")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had this number
    aside.mkdir()
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_free(folder: Path) -> None:
    """Let a name pass that nothing has, or an empty folder.

    Raises:
        FileExistsError: otherwise.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(
            f"output_dir={str(folder)!r} is there already: name a new folder, or remove it."
        )


def _features() -> Any:
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("int64")
    thing = {
        "concept": text,
        "name": text,
        "code": text,
        "count": number,
        "place": text,
        "colour": text,
        "colours": List(text),
        "boxes": List(List(number)),
    }
    question = {"kind": text, "question": text, "answer": text}
    return Features(
        {
            "id": text,
            "image": Image(),
            "text": text,
            "captions": List(text),
            "layout": text,
            "style": text,
            "background": text,
            "objects": List(thing),
            "questions": List(question),
        }
    )


def row_of(item: Item) -> dict[str, Any]:
    """Return a picture, its captions and its truth as a row."""
    scene = item.scene
    return {
        "id": item.id,
        "image": {"bytes": item.image, "path": None},
        "text": item.captions[0],
        "captions": list(item.captions),
        "layout": scene.layout,
        "style": scene.style,
        "background": scene.background,
        "objects": [
            _truth(thing, boxes) for thing, boxes in zip(scene.things, item.boxes, strict=True)
        ],
        "questions": [vars(question) for question in item.questions],
    }


def _truth(thing: Thing, boxes: Sequence[Sequence[int]]) -> dict[str, Any]:
    colours = thing.drawing.colours
    return {
        "concept": thing.concept.phrase,
        "name": thing.concept.name,
        "code": thing.concept.code,
        "count": thing.count,
        "place": thing.place,
        "colour": dominant_colour(thing.drawing),
        "colours": [name for name, share in colours.items() if share >= MAIN_SHARE],
        "boxes": [list(box) for box in boxes],
    }


def write_pictures(path: Path, items: Sequence[Item]) -> None:
    """Write pictures as Parquet, as `datasets` reads it."""
    _write_parquet(path, [row_of(item) for item in items], _features())


def write_talks(path: Path, talks: Sequence[Mapping[str, Any]]) -> None:
    """Write conversations as Parquet: `messages`, and `images` in the order they are shown in."""
    from datasets import Features, Image, List, Value

    piece = {"type": Value("string"), "text": Value("string")}
    messages = List({"role": Value("string"), "content": List(piece)})
    features = Features({"kind": Value("string"), "messages": messages, "images": List(Image())})
    _write_parquet(path, talks, features)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], features: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=9) as writer:
        for start in range(0, max(len(rows), 1), ROWS):
            table = pa.Table.from_pylist(list(rows[start : start + ROWS]), schema=schema)
            writer.write_table(table)


def write_edits(path: Path, edits: Sequence[EditPair]) -> None:
    """Write the edits of a split: two ids of its pictures, and the request between them."""
    from datasets import Features, Value

    features = Features({name: Value("string") for name in ("kind", "request", "given", "edited")})
    _write_parquet(path, [{name: getattr(e, name) for name in features} for e in edits], features)


def write_definitions(path: Path, definitions: Sequence[Definition]) -> None:
    """Write words and glosses as JSON lines."""
    _write_lines(path, [vars(definition) for definition in definitions])


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def write_archive(folder: Path, name: str) -> Path:
    """Pack all but the conversations into one file, the same bytes from the same files."""
    path = folder / name
    files = [
        p
        for p in folder.rglob("*")
        if p.is_file() and p.relative_to(folder).parts[0] != TALKS and p != path
    ]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(files):
            info = tarfile.TarInfo(f"{Path(name).stem}/{file.relative_to(folder).as_posix()}")
            info.size, info.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                archive.addfile(info, content)
    return path
