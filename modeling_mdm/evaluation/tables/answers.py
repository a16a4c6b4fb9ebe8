# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What has been answered, on disk: a run that was killed goes on, and nothing is drawn twice.

A folder holds `settings.json`, `answers/COLUMN.PROCESS.jsonl`, a line for each item, and
`samples/COLUMN/ITEM.png`, the pictures. It belongs to one set of settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_mdm.evaluation.tables.estimates import by_id
from modeling_mdm.evaluation.tables.processes import rank, wait_for_all
from modeling_mdm.evaluation.writing import write_json

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Answers:
    """The answers of one folder.

    Args:
        folder: where they are.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Answers:
        """Begin a folder, or go on with one of the same settings.

        Raises:
            ValueError: the folder was made with other settings; names them.
        """
        file = folder / SETTINGS_FILE
        given = json.loads(json.dumps(settings))
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            differing = [
                f"{name}={found.get(name)!r}, now {given.get(name)!r}"
                for name in sorted(found.keys() | given.keys())
                if found.get(name) != given.get(name)
            ]
            if differing:
                raise ValueError(
                    f"{str(folder)!r} holds answers of other settings ({'; '.join(differing)}): "
                    "name another output_dir, or take the old settings."
                )
        wait_for_all()  # nobody writes before all have compared
        if rank() == 0:
            write_json(file, given)
        wait_for_all()
        return cls(folder)

    def add(self, column: str, item: Any, **answer: Any) -> None:
        """Keep the answer to one item; what is kept outlives a kill."""
        file = self.folder / "answers" / f"{column}.{rank()}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            if _ends_torn(file):
                stream.write(b"\n")
            stream.write((json.dumps({"item": item, **answer}) + "\n").encode())

    def of(self, column: str) -> dict[Any, dict[str, Any]]:
        """Read all answers of a column, by item.

        Raises:
            ValueError: an item was answered twice.
        """
        files = sorted((self.folder / "answers").glob(f"{column}.*.jsonl"))
        lines = [line for file in files for line in _whole_lines(file)]
        return by_id(((line.pop("item"), line) for line in lines), f"answers of {column}")

    def picture(self, column: str, item: Any) -> Path:
        """Where the picture of an item is kept."""
        return self.folder / "samples" / column / f"{item}.png"

    def keep(self, column: str, item: Any, picture: Image.Image) -> None:
        """Keep the picture of an item, whole or not at all."""
        file = self.picture(column, item)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{rank()}.partial")
        picture.save(partial, format="PNG")
        os.replace(partial, file)


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield what each line says; a line that a kill tore was never answered."""
    for line in file.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _ends_torn(file: Path) -> bool:
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
