# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Watching a sample become clear: a streamer for terminals and notebooks, and animated pictures.

A streamer follows transformers: `put` takes words that are final (the prompt first), `put_draft` a
draft that the next one replaces, `end` closes. Besides, MDM passes pictures as `image=` to
`put_draft`, and the finished one to `put_image`, of streamers that have it.

Axes: b batch (1 here), t words.
"""

import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from .inputs import EncodedInputs
from .samples import MDMSample
from .sampling import StepInfo

if TYPE_CHECKING:
    from .generation_mdm import MDMGenerationMixin
    from .generation_outputs import MDMGenerateOutput

ANIMATED = {".gif": "GIF", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP"}
RESET = "\033[0m"
CAPTION_HEIGHT = 16


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


class StreamFeed:
    """Gives a streamer the prompt, what every step of `generate` decodes to, and what it ends at.

    Raises:
        ValueError: the call has several items, of which a streamer could show one.
    """

    def __init__(
        self,
        streamer: BaseStreamer,
        model: "MDMGenerationMixin",
        encoded: EncodedInputs,
        inputs: dict[str, Tensor],
    ) -> None:
        batch = encoded.has_class.shape[0]
        if batch != 1:
            raise ValueError(
                f"`streamer` shows one item, but this call writes {batch}: pass one, with "
                "`num_return_sequences` = 1."
            )
        self.streamer, self.model, self.encoded, self.inputs = streamer, model, encoded, inputs
        if "text" in encoded.modalities:
            part = encoded.modalities["text"]
            self.prompt = part.content.prompt()
            streamer.put(part.target[self.prompt][None].cpu())

    def step(self, info: StepInfo) -> None:
        """Decode the estimates of a step and pass them on as a draft."""
        if not hasattr(self.streamer, "put_draft"):
            return
        draft: dict[str, Tensor] = {}
        if "text" in info.clean_estimates:
            words = self.model.write_text(info.clean_estimates["text"], self.encoded)
            draft["value"] = self._region(words)
        if "image" in info.clean_estimates and hasattr(self.streamer, "put_image"):
            estimate = info.clean_estimates["image"]
            image = self.model.write_images(estimate, self.encoded, self.inputs)
            draft["image"] = image.float().cpu()
        if draft:
            self.streamer.put_draft(**draft)

    def end(self, output: "MDMGenerateOutput") -> None:
        """Pass on what is final."""
        if output.sequences is not None:
            self.streamer.put(self._region(output.sequences))
        if output.images is not None and hasattr(self.streamer, "put_image"):
            self.streamer.put_image(output.images.float().cpu())
        self.streamer.end()

    def _region(self, words: Tensor) -> Tensor:
        """Words (1, t) without the prompt, up to the first `<end>`."""
        content = self.encoded.content["text"]
        region = words[content.valid & ~self.prompt]
        end = (region == self.model.config.eos_token_id).nonzero()
        return (region[: int(end[0]) + 1] if len(end) else region)[None].cpu()


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
    output: "MDMGenerateOutput",
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
    trajectory = output.trajectory
    if not trajectory:
        raise ValueError("`output` has no trajectory: call `generate(output_trajectory=True)`.")
    count, steps = next(iter(trajectory.values())).shape[:2]
    if not 0 <= item < count:
        raise ValueError(f"`item` is {item}: this output has the samples 0 to {count - 1}.")
    frames = []
    for step in range(steps):
        image, words = (
            trajectory[g][item, step] if g in trajectory else None for g in ("image", "text")
        )
        picture = None if image is None else processor.image_processor.post_process(image)
        text = "" if words is None else _words_to_text(processor.tokenizer, words)
        frames.append(captioned(picture, text, size))
    durations = [milliseconds] * (steps - 1) + [milliseconds + 1000]
    frames[0].save(
        path,
        format=ANIMATED[path.suffix.lower()],
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
    )
    return path


def _words_to_text(tokenizer: Any, words: Tensor) -> str:
    row = words.tolist()
    end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
    return tokenizer.decode(row[:end], skip_special_tokens=True)


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


__all__ = ["MDMStreamer", "save_trajectory"]
