# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Steps in grey level between neighbouring pixels: across the borders of patches, across a seam.

Axis legend: picture, height, width, channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modeling_mdm.evaluation.panel import Comparison, pixels_of, ratio_of


@dataclass(frozen=True)
class BorderFigures:
    """The step across the borders of patches, relative to that within, and to real pictures.

    Steps are mean absolute differences of neighbouring pixels, in grey levels of 0 to 255.
    `ratio` is `step_across` / `step_inside`, `relative` is `ratio` / `real_ratio`: 1 where borders
    show no more than in real pictures.
    """

    num_pictures: int
    step_across: float
    step_inside: float
    ratio: float | None
    real_ratio: float | None
    relative: float | None

    def comparison(self) -> Comparison:
        """Lay them out for the table."""
        value, beside = (
            "-" if one is None else f"{one:.3f}" for one in (self.ratio, self.real_ratio)
        )
        measure = "step across patch borders / inside"
        return Comparison(measure, value, f"{beside} (real pictures)", self.relative)


class PatchBorders:
    """Measures the borders of patches in pictures, against those in real ones.

    Args:
        patch_size: side of a patch in pixels.
        real: real pictures of the size of those that are measured.

    Raises:
        ValueError: the pictures have no border between patches, or no step within one.
    """

    def __init__(self, patch_size: int, real: Sequence[Image.Image]) -> None:
        self.patch_size = patch_size
        self.real_ratio = ratio_of(*patch_steps(pixels_of(real), patch_size))

    def __call__(self, pictures: Sequence[Image.Image]) -> BorderFigures:
        """Measure pictures of one size."""
        across, inside = patch_steps(pixels_of(pictures), self.patch_size)
        ratio = ratio_of(across, inside)
        known = ratio is not None and self.real_ratio
        relative = ratio_of(ratio, self.real_ratio) if known else None
        return BorderFigures(len(pictures), across, inside, ratio, self.real_ratio, relative)


def patch_steps(pixels: np.ndarray, patch_size: int) -> tuple[float, float]:
    """Mean absolute difference of neighbours across patch borders, and within patches.

    Args:
        pixels: (picture, height, width, channels).
        patch_size: side of a patch in pixels.

    Raises:
        ValueError: the pictures have no border between patches, or no step within one.
    """
    across, inside = [], []
    for axis in (1, 2):
        steps = np.abs(np.diff(pixels, axis=axis))
        between = np.arange(1, pixels.shape[axis]) % patch_size == 0
        across.append(np.compress(between, steps, axis=axis).ravel())
        inside.append(np.compress(~between, steps, axis=axis).ravel())
    if not sum(map(len, across)) or not sum(map(len, inside)):
        raise ValueError(
            f"patch_size={patch_size} leaves pictures of {pixels.shape[1]} x {pixels.shape[2]} "
            "pixels no border between patches, or no step within one: leave borders out."
        )
    first, second = (
        float(np.concatenate(steps).mean(dtype=np.float64)) for steps in (across, inside)
    )
    return first, second


@dataclass(frozen=True)
class SeamFigures:
    """The step between the two rows that meet where a picture was repainted, and in real ones.

    Mean absolute differences in grey levels of 0 to 255.
    """

    step: float
    real_step: float
    ratio: float | None

    @classmethod
    def of(
        cls, pictures: Sequence[Image.Image], real: Sequence[Image.Image], row: int
    ) -> SeamFigures:
        """Measure between `row` and the one above it, in pictures and in real ones.

        Raises:
            ValueError: there is no row above, or no such row.
        """
        step, real_step = seam_step(pixels_of(pictures), row), seam_step(pixels_of(real), row)
        return cls(step, real_step, ratio_of(step, real_step))

    def comparison(self) -> Comparison:
        """Lay them out for the table."""
        beside = f"{self.real_step:.2f} (real pictures)"
        return Comparison("step across the seam", f"{self.step:.2f}", beside, self.ratio)


def seam_step(pixels: np.ndarray, row: int) -> float:
    """Mean absolute difference of `row` and the one above, (picture, height, width, channels).

    Raises:
        ValueError: there is no row above, or no such row.
    """
    if not 0 < row < pixels.shape[1]:
        raise ValueError(f"row={row} must be in [1, {pixels.shape[1] - 1}].")
    return float(np.abs(pixels[:, row] - pixels[:, row - 1]).mean(dtype=np.float64))
