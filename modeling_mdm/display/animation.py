# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A picture above its words, and a sample's whole trajectory, animated or as a strip."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..generation_outputs import MDMGenerateOutput
from .pictures import contact_sheet

ANIMATED = {".gif": "GIF", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP"}
CAPTION_HEIGHT = 16


def captioned(image: Image.Image | None, text: str, size: int = 224) -> Image.Image:
    """Draw a picture, enlarged by a whole factor to at most `size` pixels, over its words."""
    canvas = Image.new("RGB", (size, (size if image else 0) + CAPTION_HEIGHT), "white")
    if image is not None:
        factor = max(1, size // max(image.size))
        shown = image.convert("RGB").resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
        shown.thumbnail((size, size))
        canvas.paste(shown, ((size - shown.width) // 2, (size - shown.height) // 2))
    place = (2, canvas.height - CAPTION_HEIGHT + 2)
    ImageDraw.Draw(canvas).text(place, text, fill="black", font=ImageFont.load_default(11))
    return canvas


def save_trajectory(
    output: MDMGenerateOutput,
    path: str | Path,
    processor: Any,
    item: int = 0,
    milliseconds: int = 80,
    size: int = 224,
) -> Path:
    """Save the trajectory of one sample as an animated GIF, PNG or WebP.

    Args:
        output: of `generate(..., output_trajectory=True)`.
        path: its ending chooses the format: .gif, .png, .apng or .webp.
        processor: the `MDMProcessor` that decodes it.
        item: which of the samples.
        milliseconds: of each step; the last one stays for a second longer.
        size: pixels of the picture's side.

    Raises:
        ValueError: no trajectory, no such sample, or another ending.
    """
    path = Path(path)
    if path.suffix.lower() not in ANIMATED:
        raise ValueError(f"`path` is {str(path)!r}: use one of the endings {', '.join(ANIMATED)}.")
    shown = shown_steps(output, processor, item)
    frames = [captioned(step.image, step.text or "", size) for step in shown]
    durations = [milliseconds] * (len(frames) - 1) + [milliseconds + 1000]
    frames[0].save(
        path,
        format=ANIMATED[path.suffix.lower()],
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
    )
    return path


class ShownStep(NamedTuple):
    """What a sample was at one step of its run: None for what was not written."""

    image: Image.Image | None
    text: str | None


def shown_steps(output: MDMGenerateOutput, processor: Any, item: int = 0) -> list[ShownStep]:
    """Decode the clean estimate of every step of one sample.

    Raises:
        ValueError: no trajectory, or no such sample.
    """
    trajectory = output.trajectory
    if not trajectory:
        raise ValueError("`output` has no trajectory: call `generate(output_trajectory=True)`.")
    count, steps = next(iter(trajectory.values())).shape[:2]
    if not 0 <= item < count:
        raise ValueError(f"`item` is {item}: this output has the samples 0 to {count - 1}.")
    shown = []
    for step in range(steps):
        image, words = (
            trajectory[modality][item, step] if modality in trajectory else None
            for modality in ("image", "text")
        )
        picture = None if image is None else processor.image_processor.post_process(image)
        text = None if words is None else _words_to_text(processor.tokenizer, words)
        shown.append(ShownStep(picture, text))
    return shown


def trajectory_strip(
    output: MDMGenerateOutput,
    processor: Any,
    items: Sequence[int] = (0,),
    columns: int = 8,
    picture_size: int = 112,
) -> Image.Image:
    """Draw a row for each sample: how its picture and its words become clear, side by side.

    Args:
        output: of `generate(..., output_trajectory=True)`.
        processor: the `MDMProcessor` that decodes it.
        items: which of the samples.
        columns: steps a row, evenly spaced, the first and the last among them.
        picture_size: width in pixels of a step.

    Raises:
        ValueError: no trajectory, no such sample, or fewer than two columns.
    """
    if columns < 2:
        raise ValueError(f"`columns` is {columns}: show at least the first step and the last, 2.")
    rows = [shown_steps(output, processor, item) for item in items]
    count = min(columns, len(rows[0])) if rows else columns
    chosen = [round(n * (len(rows[0]) - 1) / max(1, count - 1)) for n in range(count)]
    return contact_sheet(
        [row[step] for row in rows for step in chosen], columns=count, picture_size=picture_size
    )


def _words_to_text(tokenizer: Any, words: Tensor) -> str:
    row = words.tolist()
    end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
    return tokenizer.decode(row[:end], skip_special_tokens=True)


__all__ = ["save_trajectory", "trajectory_strip"]
