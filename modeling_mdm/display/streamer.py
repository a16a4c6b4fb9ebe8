# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Watching a sample become clear: a streamer for terminals and notebooks.

A streamer follows transformers: `put` takes words that are final (the prompt first), `put_draft` a
draft that the next one replaces, `end` closes. Besides, MDM passes pictures as `image=` to
`put_draft`, and the finished one to `put_image`, of streamers that have it.

Axes: b batch (1 here), t words.
"""

import importlib
import sys
import time
from dataclasses import replace
from typing import Any, TextIO

from PIL import Image
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..processor.samples import MDMSample
from .animation import captioned

RESET = "\033[0m"


class MDMStreamer(BaseStreamer):
    """
    Shows text and a preview of the picture at every step of `generate(..., streamer=...)`.

    On a terminal each draft is drawn over the last, the picture in half blocks of 24-bit colour; in
    a notebook it replaces the last one; where output goes to a file only what is final is printed.
    A subclass shows drafts elsewhere by a `show` of its own.

    Args:
        processor: an `MDMProcessor`, which decodes words and pictures.
        skip_prompt: do not show the words that were given.
        width: characters a line of the picture has at most.
        sleep_time: seconds to wait after each draft.
        file: where text goes; standard output if None.
        decode_kwargs: for the tokenizer's `decode`; special tokens are skipped by default.
    """

    def __init__(
        self,
        processor: Any,
        skip_prompt: bool = False,
        width: int = 40,
        sleep_time: float | None = None,
        file: TextIO | None = None,
        **decode_kwargs: Any,
    ) -> None:
        if width < 1:
            raise ValueError(f"`width` is {width}: a line needs at least 1 character.")
        self.processor, self.skip_prompt, self.width = processor, skip_prompt, width
        self.sleep_time, self.file = sleep_time, sys.stdout if file is None else file
        self.decode_kwargs = {"skip_special_tokens": True, **decode_kwargs}
        self._handle = _notebook_handle() if file is None else None
        self._is_terminal = self._handle is None and self.file.isatty()
        self._start()

    def _start(self) -> None:
        self._awaits_prompt, self._lines = True, 0
        self._sample = MDMSample()

    def put(self, value: Tensor) -> None:
        """Take final words (1, t) or (t,): the prompt first, then what was written."""
        text = self._decode(value)
        if self._awaits_prompt:
            self._awaits_prompt = False
            self._sample.prompt = None if self.skip_prompt else text
        else:
            self._sample.text = text
            self.show(replace(self._sample))

    def put_draft(self, value: Tensor | None = None, image: Tensor | None = None) -> None:
        """Take the words (1, t) and / or the picture (1, channels, height, width) of a step."""
        if value is not None:
            self._sample.text = self._decode(value)
        if image is not None:
            self._sample.image = self._picture(image)
        self.show(replace(self._sample))
        if self.sleep_time is not None:
            time.sleep(self.sleep_time)

    def put_image(self, image: Tensor) -> None:
        """Take the finished picture (1, channels, height, width) in [-1, 1]."""
        self._sample.image = self._picture(image)
        self.show(replace(self._sample))

    def show(self, sample: MDMSample) -> None:
        """Draw what is known by now over what was drawn last."""
        if self._handle is not None:
            words = " ".join(self._rendered(sample, coloured=False))
            self._handle.update(captioned(sample.image, words))
        elif self._is_terminal:
            lines = self._rendered(sample, coloured=True)
            above = f"\033[{self._lines}F" if self._lines else ""
            self.file.write(f"{above}\033[J" + "".join(line + "\n" for line in lines))
            self.file.flush()
            self._lines = len(lines)

    def end(self) -> None:
        """Leave what is final, and be ready for the next call."""
        if self._handle is None and not self._is_terminal:
            self.file.write("\n".join(self._rendered(self._sample, coloured=False)) + "\n")
        self.file.flush()
        if self._handle is not None:
            self._handle = _notebook_handle()
        self._start()

    def _decode(self, value: Tensor) -> str:
        row = value[0] if value.dim() > 1 else value
        return self.processor.tokenizer.decode(row.tolist(), **self.decode_kwargs)

    def _picture(self, image: Tensor) -> Image.Image:
        return self.processor.image_processor.post_process(image[0])

    def _rendered(self, sample: MDMSample, coloured: bool) -> list[str]:
        lines = [line for line in (sample.prompt, sample.text) if line]
        if sample.image is not None and coloured:
            lines += half_blocks(sample.image, self.width)
        return lines


def half_blocks(image: Image.Image, width: int) -> list[str]:
    """Draw a picture in lines of at most `width` half blocks, two pixels above each other in one.

    A larger picture shrinks; every line ends with the reset of its colours.
    """
    columns = min(width, image.width)
    rows = max(2, 2 * round(image.height * columns / image.width / 2))
    pixels = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX).load()
    lines = []
    for row in range(0, rows, 2):
        blocks = [
            "\033[38;2;{};{};{}m\033[48;2;{};{};{}m▀".format(
                *pixels[column, row], *pixels[column, row + 1]
            )
            for column in range(columns)
        ]
        lines.append("".join(blocks) + RESET)
    return lines


def _notebook_handle() -> Any | None:
    """Open a place for drafts in the output of a notebook's cell; None elsewhere."""
    try:
        shell = importlib.import_module("IPython").get_ipython()
        if type(shell).__name__ != "ZMQInteractiveShell":
            return None
        display = importlib.import_module("IPython.display").display
    except ImportError:
        return None
    return display(captioned(None, "..."), display_id=True)


__all__ = ["MDMStreamer"]
