# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What looks at generated pictures beside the judge: a second one, and measures of all of them.

Axis legend: picture, height, width, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.evaluation.judge_network import JudgeNetwork

SHEET_SAMPLES = 40


class Comparison(NamedTuple):
    """What was measured of pictures, beside what it is compared with, and their ratio."""

    measure: str
    value: str
    beside: str
    ratio: float | None  # None: what it is compared with is 0


class Measured(Protocol):
    """The figures of one measure."""

    def comparison(self) -> Comparison:
        """Lay them out for the table."""


@dataclass(frozen=True)
class Panel:
    """What looks at generated pictures beside the judge.

    Args:
        second_judge: classifies the same pictures.
        measures: by name, what is measured of all pictures of a task together.
        samples_dir: where sheets of the first samples go; None for none.
    """

    second_judge: JudgeNetwork | None = None
    measures: Mapping[str, Callable[[Sequence[Image.Image]], Measured]] = field(
        default_factory=dict
    )
    samples_dir: Path | None = None

    def second(self, look: Callable[..., Any], *what: Any) -> Any:
        """Let the second judge look, as `look(judge, *what)` does; None where there is none."""
        return None if self.second_judge is None else look(self.second_judge, *what)

    def measure(self, pictures: Sequence[Image.Image]) -> dict[str, Measured]:
        """Measure the pictures of one task."""
        return {name: measure(pictures) for name, measure in self.measures.items()}

    def keep(self, name: str, samples: Sequence[Any], columns: int = 10) -> None:
        """Write a sheet of samples, if there is a folder for it."""
        if self.samples_dir is not None:
            self.samples_dir.mkdir(parents=True, exist_ok=True)
            contact_sheet(samples, columns, 84).save(self.samples_dir / f"{name}.png")


NO_PANEL = Panel()


def ratio_of(value: float, other: float) -> float | None:
    """Divide, or None by 0, which JSON has no number for."""
    return value / other if other else None


def pixels_of(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Stack pictures of one size and mode: (picture, height, width, channels), 0 to 255."""
    stack = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return stack if stack.ndim == 4 else stack[..., None]


def as_seen(processor: Any, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Give pictures at the size and in the colours that the model sees them in."""
    reader = processor.image_processor
    pixels = reader(list(pictures), return_tensors="pt")["pixel_values"]
    return [reader.post_process(image) for image in pixels]


def balanced(dataset: PictureDataset, count: int, num_classes: int) -> list[Image.Image]:
    """Take `count` pictures whose classes take turns, each class's in the order of the set.

    Picture n is of class n modulo `num_classes`, as text to image asks for them.

    Raises:
        ValueError: an item has no label, or a class has too few pictures.
    """
    labels = dataset.labels
    if labels is None or any(label is None for label in labels):
        raise ValueError("dataset has items without a label: real pictures are taken by class.")
    chosen = [0] * count
    for label in range(num_classes):
        wanted = range(label, count, num_classes)
        own = list(islice((i for i, found in enumerate(labels) if found == label), len(wanted)))
        if len(own) < len(wanted):
            raise ValueError(
                f"num_samples={count} is compared with {len(wanted)} real pictures of class "
                f"{label}, of which dataset has {len(own)}: pass at most "
                f"{len(own) * num_classes}, or another split."
            )
        for place, index in zip(wanted, own, strict=True):
            chosen[place] = index
    return [dataset[index]["image"] for index in chosen]
