# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The picture of samples of an evaluation, and the fixed noise that they are drawn from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from modeling_mdm.display import pictures
from modeling_mdm.training.arguments import MDMTrainingArguments

# Makes the picture of samples of an evaluation: (model, processor, args) -> picture.
SampleSheet = Callable[[nn.Module, Any, MDMTrainingArguments], Image.Image]


def joint_sample_sheet(model: Any, processor: Any, args: MDMTrainingArguments) -> Image.Image:
    """Draw pictures with their captions from nothing, and lay them out on one sheet."""
    inputs = processor(generation_mode="joint", return_tensors="pt").to(model.device)
    out = model.generate(
        **inputs,
        num_return_sequences=args.num_samples,
        num_inference_steps=args.sample_steps,
        generator=torch.Generator().manual_seed(args.sample_seed),
        show_progress=False,
    )
    columns = max(1, round(args.num_samples**0.5))
    return pictures.contact_sheet(processor.post_process(out), columns=columns)


def write_sheet(
    sheet: Image.Image, output_dir: str, step: int, callbacks: Iterable[object]
) -> None:
    """Write a picture into the run's `samples`, and show it to TensorBoard where that is open."""
    folder = Path(output_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"step-{step:07d}.png")
    for callback in callbacks:
        if (writer := getattr(callback, "tb_writer", None)) is not None:
            pixels = np.asarray(sheet.convert("RGB"))  # (height, width, 3)
            writer.add_image("samples", pixels, step, dataformats="HWC")


@contextmanager
def fixed_random_state(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch inside a `with` block; their states are as before after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
