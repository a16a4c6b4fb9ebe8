# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Readers of the data sets as they are distributed: items, and which files they want.

All paths are below `--data_root`; `docs/command_line.md` shows the tree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from modeling_mdm.evaluation.panel import as_seen
from modeling_mdm.evaluation.tables.estimates import by_id
from modeling_mdm.processor.image_processing_pil_mdm import open_picture

PICTURE_ENDINGS = {".jpg", ".jpeg", ".png"}


class Picture(Protocol):
    """A picture that is read when it is asked for."""

    def open(self) -> Image.Image:
        """Give it, upright."""


@dataclass(frozen=True)
class FilePicture:
    """A picture of a file."""

    file: Path

    def open(self) -> Image.Image:
        """See `Picture`."""
        return open_picture(self.file)


@dataclass(frozen=True)
class Captioned:
    """A picture and what people wrote of it."""

    name: str
    picture: Picture
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A question of a picture, and people's answers."""

    name: str
    picture: Picture
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class SeenPictures(Sequence[Image.Image]):
    """Pictures at the size and in the colours of a model, read as they are asked for."""

    pictures: Sequence[Picture]
    processor: Any

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Any) -> Any:
        (picture,) = as_seen(self.processor, [self.pictures[index].open()])
        return picture


def class_folders(root: Path) -> dict[str, list[Picture]]:
    """List the pictures of an ImageNet folder, `CLASS/PICTURE`, by class in the order of names.

    Raises:
        ValueError: a class has no picture.
    """
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    found: dict[str, list[Picture]] = {
        folder.name: [
            FilePicture(file)
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in PICTURE_ENDINGS
        ]
        for folder in folders
    }
    for name, pictures in found.items():
        if not pictures:
            raise ValueError(f"{str(root / name)!r} has no pictures: each folder is a class.")
    return found


def coco_captions(annotations: Path, pictures: Path) -> list[Captioned]:
    """Read COCO's caption annotations (`captions_val2014.json`).

    Raises:
        ValueError: a caption is of a picture that the file does not list, or an id comes twice.
        FileNotFoundError: a picture is missing.
    """
    content = _read(annotations, "images", "annotations")
    files = by_id(((one["id"], one["file_name"]) for one in content["images"]), str(annotations))
    by_id(((one["id"], None) for one in content["annotations"]), f"annotations of {annotations}")
    captions: dict[Any, list[str]] = {picture: [] for picture in files}
    for one in content["annotations"]:
        if one["image_id"] not in captions:
            raise ValueError(
                f"{annotations}: annotation {one['id']!r} is of picture {one['image_id']!r}, which "
                "`images` does not list."
            )
        captions[one["image_id"]].append(one["caption"])
    return [
        Captioned(str(picture), require_picture(pictures / name), tuple(captions[picture]))
        for picture, name in files.items()
        if captions[picture]
    ]


def karpathy_captions(file: Path, pictures: Path, split: str = "test") -> list[Captioned]:
    """Read a split of Karpathy's files (`dataset_coco.json`, `dataset_flickr30k.json`).

    Raises:
        ValueError: a name comes twice, or the split is empty.
        FileNotFoundError: a picture is missing.
    """
    chosen = [one for one in _read(file, "images")["images"] if one["split"] == split]
    if not chosen:
        raise ValueError(f"{file} has no picture of split {split!r}.")
    by_id(((one["filename"], None) for one in chosen), str(file))
    return [
        Captioned(
            one["filename"],
            require_picture(pictures / one.get("filepath", "") / one["filename"]),
            tuple(sentence["raw"] for sentence in one["sentences"]),
        )
        for one in chosen
    ]


def vqa_questions(questions: Path, annotations: Path, pictures: Path, name: str) -> list[Asked]:
    """Read questions and annotations as VQAv2 and OKVQA have them.

    Args:
        questions, annotations: the two files. pictures: folder of the pictures.
        name: of a picture's file, its id put in: `COCO_val2014_{:012d}.jpg`.

    Raises:
        ValueError: a question has no annotation, an annotation no question, or an id comes twice.
        FileNotFoundError: a picture is missing.
    """
    asked = _read(questions, "questions")["questions"]
    found = _read(annotations, "annotations")["annotations"]
    answers = by_id(((one["question_id"], one) for one in found), str(annotations))
    by_question = by_id(((one["question_id"], one) for one in asked), str(questions))
    if lost := sorted(by_question.keys() ^ answers.keys()):
        raise ValueError(
            f"{len(lost)} questions are in one of {questions} and {annotations} alone, first "
            f"{lost[0]!r}: take files of one split."
        )
    return [
        Asked(
            str(one),
            require_picture(pictures / name.format(by_question[one]["image_id"])),
            by_question[one]["question"],
            tuple(answer["answer"] for answer in answers[one]["answers"]),
        )
        for one in by_question
    ]


def vizwiz_questions(annotations: Path, pictures: Path) -> list[Asked]:
    """Read VizWiz's annotations (`val.json`): a list with a picture and a question each.

    Raises:
        ValueError: a picture comes twice, or has no answers.
        FileNotFoundError: a picture is missing.
    """
    found = json.loads(annotations.read_text(encoding="utf-8"))
    by_id(((one["image"], None) for one in found), str(annotations))
    if silent := [one["image"] for one in found if not one.get("answers")]:
        raise ValueError(f"{annotations}: {silent[0]!r} has no answers; the test split has none.")
    return [
        Asked(
            one["image"],
            require_picture(pictures / one["image"]),
            one["question"],
            tuple(answer["answer"] for answer in one["answers"]),
        )
        for one in found
    ]


def drawn(items: Sequence[Any], count: int | None, seed: int) -> list[Any]:
    """Take `count` of the items, the same for the same seed, in their order; None takes all."""
    if count is None or count >= len(items):
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), count, replace=False)
    return [items[index] for index in sorted(chosen)]


def require_picture(file: Path) -> FilePicture:
    """Give a picture that is there.

    Raises:
        FileNotFoundError: it is missing.
    """
    if not file.is_file():
        raise FileNotFoundError(f"picture {str(file)!r} is missing, which an annotation names.")
    return FilePicture(file)


def _read(file: Path, *keys: str) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if missing := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise ValueError(f"{file} has no {missing[0]!r}: it is another kind of file.")
    return content
