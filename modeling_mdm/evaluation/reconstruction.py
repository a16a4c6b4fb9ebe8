# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What encoding and decoding alone make of pictures: the best that samples can look like.

Axis legend: picture, channels, height, width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from modeling_mdm.evaluation.figures import Figures, Row, Seen, share_and_second, weakest
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.panel import NO_PANEL, Comparison, Measured, Panel
from modeling_mdm.evaluation.sampling import DEFAULT_SAMPLING, Sampling, batches, evaluating
from modeling_mdm.generation_outputs import OutputWriter


@dataclass(frozen=True)
class ReconstructionFigures(Figures):
    """Pictures that were encoded to posterior means and decoded: is the true class still seen."""

    num_samples: int
    share_right: float
    share_right_by_class: list[float | None]  # None: no picture of that class
    confusion: list[list[int]]  # [true][seen]
    seconds: float
    second_judge: Seen | None = None
    measures: dict[str, Measured] = field(default_factory=dict)

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how often the judge still sees the true class."""
        share = share_and_second(self.share_right, self.second_judge)
        worst = weakest(self.share_right_by_class, names)
        return [("reconstruction", str(self.num_samples), "-", share, worst)]

    def comparisons(self) -> list[tuple[str, Comparison]]:
        """What else was measured of the pictures."""
        return [("reconstruction", measured.comparison()) for measured in self.measures.values()]


def reconstruction_figures(
    model: Any,
    processor: Any,
    judge: JudgeNetwork,
    pictures: Sequence[Image.Image],
    classes: Sequence[int],
    sampling: Sampling = DEFAULT_SAMPLING,
    panel: Panel = NO_PANEL,
) -> ReconstructionFigures:
    """Measure what encoding and decoding leave of pictures of these classes.

    Raises:
        ValueError: if there are no pictures.
    """
    start = time.perf_counter()
    made: list[Image.Image] = []
    with evaluating(model):
        for chosen in batches(len(pictures), sampling, "reconstruction"):
            made += reconstructed(model, processor, pictures[chosen.start : chosen.stop])
    return ReconstructionFigures(
        num_samples=len(pictures),
        **vars(Seen.by(judge, made, classes)),
        seconds=round(time.perf_counter() - start, 1),
        second_judge=panel.second(Seen.by, made, classes),
        measures=panel.measure(made),
    )


def reconstructed(model: Any, processor: Any, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Encode pictures to posterior means, and decode these."""
    reader = processor.image_processor
    pixels = reader(list(pictures), return_tensors="pt")["pixel_values"].to(model.device)
    encoded = model.encode_inputs(pixel_values=pixels)
    writer = OutputWriter(model, encoded, {"pixel_values": pixels})
    images = writer.pictures(encoded.content["image"].latents)  # (picture, channels, height, width)
    return [reader.post_process(image) for image in images]
