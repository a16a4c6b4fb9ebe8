# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Steps across patch borders and seams, on pictures whose steps are known."""

import numpy as np
import pytest
from PIL import Image

from modeling_mdm.evaluation.borders import PatchBorders, SeamFigures, patch_steps, seam_step
from modeling_mdm.evaluation.panel import pixels_of


def stairs(inside, across, size=6, patch_size=3):
    """Grey levels that rise by `inside` to the right and down, by `across` into a new patch."""
    steps = np.where(np.arange(1, size) % patch_size == 0, across, inside)
    levels = np.concatenate([[0], np.cumsum(steps)])
    return Image.fromarray((levels[:, None] + levels[None]).astype(np.uint8))


def test_the_steps_of_stairs():
    pixels = pixels_of([stairs(2, 11), stairs(4, 11)])
    assert pixels.shape == (2, 6, 6, 1)
    assert patch_steps(pixels, 3) == pytest.approx((11.0, 3.0))


def test_steps_are_those_of_single_pixels_counted_one_by_one():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 8, 12, 3)).astype(np.float32)
    across, inside = [], []
    for picture in pixels:
        for row in range(8):
            for column in range(12):
                for down, right in ((1, 0), (0, 1)):
                    other = row + down, column + right
                    if other[0] < 8 and other[1] < 12:
                        same = (row // 4, column // 4) == (other[0] // 4, other[1] // 4)
                        step = np.abs(picture[row, column] - picture[other])
                        (inside if same else across).append(step.mean())
    assert patch_steps(pixels, 4) == pytest.approx((np.mean(across), np.mean(inside)), rel=1e-6)


def test_borders_are_relative_to_real_pictures():
    measure = PatchBorders(3, [stairs(4, 6)])
    found = measure([stairs(2, 9), stairs(2, 9), stairs(2, 9)])
    assert found.num_pictures == 3
    assert (found.step_across, found.step_inside) == (9, 2)
    assert (found.ratio, found.real_ratio) == (4.5, 1.5)
    assert found.relative == pytest.approx(3.0)
    assert measure([stairs(4, 6)]).relative == 1
    row = found.comparison()
    assert (row.value, row.ratio) == ("4.500", pytest.approx(3.0)) and "1.500" in row.beside


def test_flat_pictures_have_no_ratio():
    flat = PatchBorders(3, [stairs(4, 6)])([Image.new("L", (6, 6), 7)])
    assert (flat.step_across, flat.step_inside, flat.ratio, flat.relative) == (0, 0, None, None)
    assert flat.comparison().value == "-" and flat.comparison().ratio is None
    against_flat = PatchBorders(3, [Image.new("L", (6, 6), 7)])([stairs(4, 6)])
    assert against_flat.ratio == 1.5 and against_flat.relative is None


@pytest.mark.parametrize("patch_size", [1, 6])
def test_pictures_without_borders_are_refused(patch_size):
    with pytest.raises(ValueError, match=rf"patch_size={patch_size} leaves pictures of 6 x 6"):
        PatchBorders(patch_size, [stairs(1, 1)])


def test_the_seam():
    def halves(level, below):
        pixels = np.full((5, 4, 3), level, np.uint8)
        pixels[2:] = below
        return Image.fromarray(pixels)

    made = [halves(10, 50), halves(80, 60)]
    assert seam_step(pixels_of(made), 2) == 30
    assert seam_step(pixels_of(made), 3) == 0
    found = SeamFigures.of(made, [halves(0, 20)], 2)
    assert (found.step, found.real_step, found.ratio) == (30, 20, 1.5)
    assert found.comparison().beside == "20.00 (real pictures)"
    assert SeamFigures.of(made, [halves(9, 9)], 2).ratio is None
    for row in (0, 5, -1):
        with pytest.raises(ValueError, match=rf"row={row} must be in \[1, 4\]"):
            seam_step(pixels_of(made), row)
