# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: a grid of pictures with their captions under them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from modeling_mdm.processor.image_processing_pil_mdm import upright

MARGIN = 8
LINE_HEIGHT = 16
FONT_SIZE = 12
INK, PAPER = (32, 32, 32), (255, 255, 255)
NO_CAPTION = "(empty)"


def contact_sheet(samples: Iterable[Any], columns: int = 4, picture_size: int = 140) -> Image.Image:
    """Draw samples in a grid, row by row, each picture above its caption.

    Args:
        samples: objects with `.image` (a PIL picture or None) and `.text` (a string or None), as
            `processor.post_process` returns them.
        columns: pictures a row.
        picture_size: width in pixels of a cell. A smaller picture grows by a whole factor with its
            pixels kept square and sharp, a larger one shrinks.

    Raises:
        ValueError: if there are no samples, or columns or picture_size is too small.
    """
    samples = list(samples)
    if not samples:
        raise ValueError("samples is empty: a contact sheet needs at least one sample.")
    if columns < 1:
        raise ValueError(f"columns={columns} must be >= 1.")
    if picture_size < 16:
        raise ValueError(f"picture_size={picture_size} must be >= 16 pixels.")
    columns = min(columns, len(samples))
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [None if s.image is None else _fitted(s.image, picture_size) for s in samples]
    captions = [wrap_text(_caption(s), font, picture_size) for s in samples]
    cells = list(zip(pictures, captions, strict=True))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [_row_heights(row) for row in rows]
    sheet = Image.new(
        "RGB",
        (
            MARGIN + columns * (picture_size + MARGIN),
            MARGIN + sum(picture + text + MARGIN for picture, text in heights),
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, (picture_height, text_height) in zip(rows, heights, strict=True):
        for column, (picture, lines) in enumerate(row):
            left = MARGIN + column * (picture_size + MARGIN)
            if picture is not None:
                sheet.paste(picture, (left + (picture_size - picture.width) // 2, top))
            for number, line in enumerate(lines):
                below = top + picture_height + number * LINE_HEIGHT
                draw.text((left, below + 2), line, fill=INK, font=font)
        top += picture_height + text_height + MARGIN
    return sheet


def wrap_text(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines that are at most `width` pixels wide, within a word where needed."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _caption(sample: Any) -> str:
    if sample.text is None:
        return ""
    return sample.text if sample.text.strip() else NO_CAPTION


def _fitted(image: Image.Image, size: int) -> Image.Image:
    image = upright(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*PAPER, 255)), image)
    image = image.convert("RGB")
    longest = max(image.size)
    factor = size // longest if longest <= size else size / longest
    resampling = Image.Resampling.NEAREST if longest <= size else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), resampling)


def _row_heights(row: list[tuple[Image.Image | None, list[str]]]) -> tuple[int, int]:
    picture = max((p.height for p, _ in row if p is not None), default=0)
    lines = max(len(lines) for _, lines in row)
    return picture, math.ceil(lines * LINE_HEIGHT + (4 if lines else 0))
