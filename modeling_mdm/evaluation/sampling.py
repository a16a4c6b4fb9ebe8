# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the samples are made that figures are measured on, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Sampling:
    """How samples are made.

    One generator is seeded with `seed` for each figure and passed from batch to batch.
    `options` goes to `model.generate` as it is, for example `{"solver": {"text": "ddim"}}`.

    Raises:
        ValueError: if a number is below 1.
    """

    num_inference_steps: int = 30
    batch_size: int = 100
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1.")


DEFAULT_SAMPLING = Sampling()


def read_options(options: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Read arguments of `generate` from JSON, as a command line gives them; YAML gives a mapping.

    Raises:
        ValueError: the text is no JSON, or another thing than names with values.
    """
    said: Any = options
    if isinstance(options, str):
        try:
            said = json.loads(options)
        except ValueError as error:
            raise ValueError(f"generation_options={options!r} is not JSON: {error}") from error
    if not isinstance(said, Mapping):
        raise ValueError(
            f"generation_options={options!r} must hold names with values, such as "
            """'{"solver": "ddim"}'."""
        )
    return said


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards the mode is as before."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def generate(
    model: Any, processor: Any, inputs: Mapping[str, Any], evaluations: list[int], **options: Any
) -> list[Any]:
    """Process, generate and post-process one batch; note each sample's network evaluations."""
    batch = processor(**inputs, return_tensors="pt").to(model.device)
    out = model.generate(**batch, **options)
    samples = processor.post_process(out)
    evaluations += [out.num_evaluations] * len(samples)
    return samples


def batches(count: int, sampling: Sampling, name: str) -> Iterator[range]:
    """Yield the indices of each batch beside a progress bar over samples."""
    if count < 1:
        raise ValueError(f"num_samples={count} must be >= 1.")
    with tqdm(total=count, desc=name, disable=sampling.disable_tqdm) as bar:
        for start in range(0, count, sampling.batch_size):
            indices = range(start, min(start + sampling.batch_size, count))
            yield indices
            bar.update(len(indices))


def options_of(sampling: Sampling) -> dict[str, Any]:
    """Arguments of `model.generate`."""
    return {
        "num_inference_steps": sampling.num_inference_steps,
        "show_progress": False,  # the bar over samples is enough
        "generator": torch.Generator().manual_seed(sampling.seed),
        **sampling.options,
    }
