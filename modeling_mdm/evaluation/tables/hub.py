# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Readers of the vision sets as `datasets` has them: an id of the Hub, or a copy of one on disk.

The ids, configurations and splits are those of lm-eval and lmms-eval; a set of another id has the
same columns and splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from modeling_mdm.evaluation.tables.estimates import by_id
from modeling_mdm.evaluation.tables.readers import Asked, Captioned, Picture
from modeling_mdm.processor.image_processing_pil_mdm import open_picture, upright

NAME_COLUMNS = ("filename", "question_id", "img_id", "id")
IMAGENET = ("FID", "IS", "Precision", "Recall", "FPS, log scale")  # of one set
CAPTION_COLUMNS = ("captions", "caption", "answer")
# Of each column the split, and the id where the Hub has a set that is the column's.
VISION_SETS: dict[str, tuple[str, str | None]] = {
    "FID": ("train", "ILSVRC/imagenet-1k"),
    "COCO FID": ("val", "lmms-lab-encoder/COCO-Caption"),
    "Flickr30K": ("test", None),  # the sets there are not split as Karpathy's
    "COCO": ("test", None),  # as these, or without their pictures
    "VQAv2": ("validation", "lmms-lab-encoder/VQAv2"),
    "VizWiz": ("val", "lmms-lab-encoder/VizWiz-VQA"),
    "OKVQA": ("val2014", "lmms-lab-encoder/OK-VQA"),
}


@dataclass(frozen=True)
class HubPicture:
    """The picture of a row, read when it is asked for."""

    rows: Any
    index: int

    def open(self) -> Image.Image:
        """Give it, upright."""
        picture = self.rows[self.index]["image"]
        return upright(picture) if isinstance(picture, Image.Image) else open_picture(picture)


def hub_ids(
    words: Sequence[str], columns: Sequence[str], text_columns: Sequence[str]
) -> dict[str, str | None]:
    """Read `COLUMN` and `COLUMN=ID`; None is lm-eval's own id of a column of texts.

    Args:
        words: what was said. columns: the table's. text_columns: whose ids lm-eval knows.

    Raises:
        ValueError: a column is unknown or comes twice, has no set on the Hub, or has an empty id.
    """
    known = [name for name in columns if name in (*VISION_SETS, *text_columns)]
    found = by_id((_pair(word) for word in words), "from_hub")
    for column, name in found.items():
        if column not in known:
            raise ValueError(f"from_hub={column!r} is none that can be read so: use {known}.")
        if name is None and column in VISION_SETS:
            found[column] = name = VISION_SETS[column][1]
        if (not name and column not in text_columns) or name == "":
            raise ValueError(
                f"from_hub={column!r} has no id: name a set as {column}=ID, with the columns "
                "`image`, `caption` (several) and `filename`."
            )
    return found


def _pair(word: str) -> tuple[str, str | None]:
    column, is_named, name = word.partition("=")
    return column, name if is_named else None


@contextmanager
def reading(column: str, name: str | None) -> Iterator[None]:
    """Name the set that could not be read.

    Raises:
        OSError: what went wrong, and what can be done.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        shown = column if name is None else f"{column}={name}"
        raise OSError(
            f"from_hub={shown!r} could not be read ({error}): load it once while the Hub can be "
            f"reached, name a copy on disk ({column}=FOLDER), or put its files below data_root."
        ) from error


def rows_of(column: str, name: str) -> Any:
    """Give the rows of a set.

    Raises:
        OSError: it cannot be read.
    """
    import datasets

    with reading(column, name):
        rows = datasets.load_dataset(name, split=VISION_SETS[column][0])
        _require_columns(rows, "image")
        return rows


def hub_classes(name: str) -> dict[str, list[Picture]]:
    """List the pictures of a set with the column `label` by class, in the order of labels.

    Raises:
        OSError: it cannot be read. ValueError: a class has no picture.
    """
    rows = rows_of("FID", name)
    with reading("FID", name):
        _require_columns(rows, "label")
    labels = list(rows["label"])
    names = getattr(rows.features["label"], "names", None) or map(str, range(max(labels) + 1))
    found: list[tuple[str, list[Picture]]] = [(one, []) for one in names]
    for index, label in enumerate(labels):
        found[label][1].append(HubPicture(rows, index))
    if empty := [one for one, pictures in found if not pictures]:
        raise ValueError(f"from_hub={name!r} has no pictures of class {empty[0]!r}.")
    return dict(found)


def hub_captions(column: str, name: str) -> list[Captioned]:
    """Read pictures and their captions.

    Raises:
        OSError: the set cannot be read. ValueError: a name comes twice.
    """
    rows = rows_of(column, name)
    with reading(column, name):
        key, said = _first(rows, NAME_COLUMNS), _first(rows, CAPTION_COLUMNS)
    found = [
        Captioned(str(row[key]), HubPicture(rows, index), tuple(row[said]))
        for index, row in enumerate(_words(rows))
    ]
    by_id(((one.name, None) for one in found), f"from_hub={name!r}")
    return found


def hub_questions(column: str, name: str) -> list[Asked]:
    """Read questions of pictures, and people's answers.

    Raises:
        OSError: the set cannot be read. ValueError: an id comes twice, or one has no answers.
    """
    rows = rows_of(column, name)
    with reading(column, name):
        _require_columns(rows, "question_id", "question", "answers")
    found = [
        Asked(
            str(row["question_id"]),
            HubPicture(rows, index),
            row["question"],
            tuple(map(_answer, row["answers"] or ())),
        )
        for index, row in enumerate(_words(rows))
    ]
    by_id(((one.name, None) for one in found), f"from_hub={name!r}")
    if silent := [one.name for one in found if not one.answers]:
        raise ValueError(f"from_hub={name!r}: {silent[0]!r} has no answers.")
    return found


def _words(rows: Any) -> Any:
    """Rows without their pictures, which need not be decoded."""
    return rows.remove_columns("image")


def _answer(answer: str | Mapping[str, str]) -> str:
    return answer if isinstance(answer, str) else answer["answer"]


def _first(rows: Any, names: Sequence[str]) -> str:
    for name in names:
        if name in rows.column_names:
            return name
    raise ValueError(f"it has the columns {rows.column_names} and none of {list(names)}")


def _require_columns(rows: Any, *names: str) -> None:
    for name in names:
        _first(rows, (name,))
