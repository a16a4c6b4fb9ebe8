# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: where the pictures lie, how they are scaled, how captions are wrapped."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFont

from modeling_mdm.display.pictures import MARGIN, PAPER, contact_sheet, wrap_text


def sample(image=None, text=None):
    return SimpleNamespace(image=image, text=text)


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return pixels, Image.fromarray(pixels)


def test_small_pictures_grow_by_whole_factors_in_reading_order():
    arrays, pictures = zip(*(noise(28, 28, seed) for seed in range(5)), strict=True)
    sheet = np.asarray(contact_sheet([sample(p) for p in pictures], columns=3, picture_size=140))
    assert sheet.shape == (2 * (140 + MARGIN) + MARGIN, 3 * (140 + MARGIN) + MARGIN, 3)
    for i, array in enumerate(arrays):
        top, left = (MARGIN + n * (140 + MARGIN) for n in divmod(i, 3))
        cell = sheet[top : top + 140, left : left + 140]
        np.testing.assert_array_equal(cell, np.kron(array, np.ones((5, 5)))[..., None].repeat(3, 2))
    assert (sheet[-140 - MARGIN :, -140 - MARGIN :] == PAPER).all()  # the sixth place is empty


def test_captions_stand_under_their_pictures():
    _, picture = noise(28, 28)
    words = "a photo of an ankle boot that is much too long for one line of text"
    bare = contact_sheet([sample(picture)] * 2, columns=2)
    sheet = contact_sheet([sample(picture, words), sample(picture)], columns=2)
    assert sheet.width == bare.width and sheet.height > bare.height + 3 * 12
    below = np.asarray(sheet)[MARGIN + 140 :] != PAPER
    middle = sheet.width // 2
    assert below[:, :middle].any() and not below[:, middle:].any()
    ink = np.argwhere(below.any(-1))
    assert abs(ink[:, 1].min() - MARGIN) <= 2 and ink[:, 1].max() <= MARGIN + 140
    np.testing.assert_array_equal(
        np.asarray(sheet)[: MARGIN + 140], np.asarray(bare)[: MARGIN + 140]
    )


@pytest.mark.parametrize("width", [30, 70, 140])
@pytest.mark.parametrize("text", ["a photo of a dress", "x" * 80, "a " + "y" * 50 + " b", "  ", ""])
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    font = ImageFont.load_default(12)
    lines = wrap_text(text, font, width)
    assert all(font.getlength(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if width == 140:
        assert len(wrap_text("a photo of a dress", font, width)) == 1


def test_every_mode_and_size():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        assert contact_sheet([sample(Image.new(mode, (5, 9)), "x")]).mode == "RGB"
    large = contact_sheet([sample(Image.new("RGB", (900, 300)))], picture_size=100)
    assert large.size == (100 + 2 * MARGIN, 33 + 2 * MARGIN)
    clear = contact_sheet([sample(Image.new("RGBA", (10, 10), (255, 0, 0, 0)))])
    assert (np.asarray(clear) == PAPER).all()  # transparent shows the paper


def test_text_alone_and_empty_text():
    words = np.asarray(contact_sheet([sample(None, "only words")]))
    assert words.shape[0] < 60 and (words != PAPER).any()
    assert (np.asarray(contact_sheet([sample(None, " ")])) != PAPER).any()  # "(empty)" is drawn


def test_bad_arguments():
    with pytest.raises(ValueError, match="samples is empty"):
        contact_sheet([])
    with pytest.raises(ValueError, match="columns=0"):
        contact_sheet([sample(None, "x")], columns=0)
    with pytest.raises(ValueError, match="picture_size=3"):
        contact_sheet([sample(None, "x")], picture_size=3)
