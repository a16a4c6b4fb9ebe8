# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Inpainting: half of a picture is repainted without words; is it still what it was, and one piece.

What the given half tells of the class bounds what a model can know of it: a judge that sees that
half alone says how much that is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.evaluation.borders import SeamFigures
from modeling_mdm.evaluation.figures import Figures, Row, Seen, labels_of, share_and_second, weakest
from modeling_mdm.evaluation.judge import JudgeArguments, train_judge
from modeling_mdm.evaluation.judge_network import JudgeNetwork, hidden_rows
from modeling_mdm.evaluation.panel import (
    NO_PANEL,
    SHEET_SAMPLES,
    Comparison,
    Panel,
    as_seen,
)
from modeling_mdm.evaluation.sampling import (
    DEFAULT_SAMPLING,
    Sampling,
    batches,
    evaluating,
    generate,
    options_of,
)

# The half that is repainted, and the one that is given.
HALVES = {"lower": "upper", "upper": "lower"}


@dataclass(frozen=True)
class InpaintingFigures(Figures):
    """Pictures of which one half was repainted: does a judge name the true class, and the seam.

    `share_right_of_given` and `mean_probability_of_given` are what a judge that sees the given half
    alone makes of the same pictures: its share of right classes, and its mean probability of the
    true one.
    """

    repainted: str
    num_samples: int
    share_right: float
    share_right_by_class: list[float | None]  # None: no picture of that class
    confusion: list[list[int]]  # [true][seen]
    share_right_of_given: float
    mean_probability_of_given: float
    seam: SeamFigures
    mean_evaluations: float
    seconds: float
    second_judge: Seen | None = None

    def rows(self, names: Sequence[str]) -> list[Row]:
        """Two rows: the repainted pictures, and the given half alone."""
        count, given = str(self.num_samples), HALVES[self.repainted]
        share = share_and_second(self.share_right, self.second_judge)
        worst = weakest(self.share_right_by_class, names)
        alone = f"{self.share_right_of_given:.1%}, mean p {self.mean_probability_of_given:.2f}"
        return [
            (f"inpainting, {self.repainted} half repainted", count, "-", share, worst),
            (f"the {given} half alone, by a judge of it", count, "-", alone, "-"),
        ]

    def comparisons(self) -> list[tuple[str, Comparison]]:
        """The seam."""
        return [(f"inpainting, {self.repainted} half", self.seam.comparison())]


def half_judges(
    folder: str | None, train: PictureDataset | None, test: PictureDataset, wanted: JudgeArguments
) -> dict[str, JudgeNetwork]:
    """Read or train a judge of each half, by what it sees: "upper" and "lower".

    Args:
        folder: has a judge in each of the folders `upper` and `lower`; None trains them.
        train, test: splits that they learn from and are measured on.
        wanted: how they are trained.

    Raises:
        FileNotFoundError: a judge is missing.
        ValueError: one sees something else.
    """
    if folder is None:
        return {
            visible: train_judge(train, test, replace(wanted, visible=visible))
            for visible in HALVES.values()
        }
    judges = {
        name: JudgeNetwork.from_pretrained(Path(folder) / name, "half_judges")
        for name in HALVES.values()
    }
    for name, judge in judges.items():
        if judge.config.visible != name:
            raise ValueError(
                f"half_judges={folder!r}: the judge in its folder {name} sees "
                f"{judge.config.visible!r}: train one with --visible {name}."
            )
    return judges


def inpainting_figures(
    model: Any,
    processor: Any,
    judge: JudgeNetwork,
    half_judges: Mapping[str, JudgeNetwork],
    dataset: PictureDataset,
    num_samples: int = 500,
    sampling: Sampling = DEFAULT_SAMPLING,
    panel: Panel = NO_PANEL,
) -> list[InpaintingFigures]:
    """Repaint the lower, then the upper half of the first pictures of a labelled set.

    Args:
        model, processor: what is measured.
        judge: says what a repainted picture shows.
        half_judges: by the half that each sees.
        dataset: pictures with labels.
        num_samples: how many of them.
        sampling, panel: how samples are made, and what else looks at them.

    Raises:
        ValueError: if num_samples is below 1 or an item has no label.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be >= 1.")
    count = min(num_samples, len(dataset))
    labels_of(dataset, count)
    items = [dataset[n] for n in range(count)]
    real = as_seen(processor, [item["image"] for item in items])
    labels = [item["label"] for item in items]  # a damaged one's stand-in has its own
    figures = []
    for repainted, given in HALVES.items():
        start, evaluations = time.perf_counter(), list[int]()
        hidden = hidden_rows(given, real[0].height)
        made = _repainted(model, processor, real, hidden, repainted, sampling, evaluations)
        _keep_sheet(panel, f"inpainting_{repainted}", real, hidden, made)
        half = half_judges[given]
        probability = half.probabilities(real)  # (picture, classes)
        figures.append(
            InpaintingFigures(
                repainted=repainted,
                num_samples=count,
                **vars(Seen.by(judge, made, labels)),
                share_right_of_given=Seen.by(half, real, labels).share_right,
                mean_probability_of_given=float(probability[range(count), labels].mean()),
                seam=SeamFigures.of(made, real, hidden.start or hidden.stop),
                mean_evaluations=float(np.mean(evaluations)),
                seconds=round(time.perf_counter() - start, 1),
                second_judge=panel.second(Seen.by, made, labels),
            )
        )
    return figures


def _repainted(
    model: Any,
    processor: Any,
    real: Sequence[Image.Image],
    hidden: slice,
    name: str,
    sampling: Sampling,
    evaluations: list[int],
) -> list[Image.Image]:
    mask = torch.zeros(real[0].height, real[0].width)
    mask[hidden] = 1
    options = options_of(sampling)
    made: list[Image.Image] = []
    with evaluating(model):
        for chosen in batches(len(real), sampling, f"inpainting, {name} half"):
            images = list(real[chosen.start : chosen.stop])
            inputs = {"images": images, "image_mask": mask, "generation_mode": "image"}
            samples = generate(model, processor, inputs, evaluations, **options)
            made += [sample.image for sample in samples]
    return made


def _keep_sheet(
    panel: Panel,
    name: str,
    real: Sequence[Image.Image],
    hidden: slice,
    made: Sequence[Image.Image],
    columns: int = 10,
) -> None:
    """Three rows for each ten pictures: as they were, what was given, what was made of it."""
    cells = []
    for start in range(0, min(len(real), SHEET_SAMPLES), columns):
        block = slice(start, start + columns)
        given = [_without(picture, hidden) for picture in real[block]]
        for title, row in (("original", real[block]), ("given", given), ("repainted", made[block])):
            row = [SimpleNamespace(text=title, image=picture) for picture in row]
            cells += row + [SimpleNamespace(text=None, image=None)] * (columns - len(row))
    panel.keep(name, cells, columns)


def _without(picture: Image.Image, hidden: slice) -> Image.Image:
    given = picture.copy()
    grey = (128,) * len(picture.getbands())
    given.paste(grey if len(grey) > 1 else 128, (0, hidden.start, picture.width, hidden.stop))
    return given
