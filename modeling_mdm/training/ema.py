# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The moving average of the weights, which is what a finished model is made of (Sec. 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

EMA_FILE = "ema.safetensors"
_NUM_UPDATES = "num_updates"


class ExponentialMovingAverage:
    """The moving average of a model's trainable parameters, in float32 or better.

    After update n = 0, 1, ... the average is decay_n * average + (1 - decay_n) * parameter with
    decay_n = min(decay, (1 + n) / (10 + n)), so that a short run is not an average over its
    random start. Buffers (such as the running statistics of the latents) are averages already and
    stay the model's own.

    Args:
        model: the model that is trained; its parameters may be replaced in place, never exchanged.
        decay: how much of the average stays in each update, in [0, 1).

    Raises:
        ValueError: if decay is outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must be in [0, 1); 0 follows the weights exactly.")
        self.decay = decay
        self.num_updates = 0
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {
            name: parameter.detach().to(_at_least_float32(parameter), copy=True)
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present parameters."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = list(self.averages.values())
        present = [
            parameter.detach().to(average.dtype)
            for parameter, average in zip(self._parameters.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, present, 1.0 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the averages into the model for good."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.averages[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averaged weights inside a `with` block, and its own back after it."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(own[name])

    def save(self, path: str | Path) -> None:
        """Write the averages and the number of updates to a safetensors file."""
        tensors = {name: average.contiguous() for name, average in self.averages.items()}
        save_file(tensors, str(path), metadata={_NUM_UPDATES: str(self.num_updates)})

    def load(self, path: str | Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            ValueError: if the file's parameters are not those of the model.
        """
        with safe_open(str(path), framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            expected = {name: list(average.shape) for name, average in self.averages.items()}
            if found != expected:
                differing = sorted(
                    name
                    for name in found.keys() | expected.keys()
                    if found.get(name) != expected.get(name)
                )
                raise ValueError(
                    f"path={str(path)!r} is the average of another model; these differ: "
                    f"{', '.join(differing[:5])}. Use the checkpoint of a model of this shape."
                )
            for name, average in self.averages.items():
                average.copy_(file.get_tensor(name))
            self.num_updates = int((file.metadata() or {})[_NUM_UPDATES])


def load_averaged_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Put the averaged weights of a training checkpoint into a model.

    A checkpoint's own `model.safetensors` holds the weights that training goes on from.

    Raises:
        FileNotFoundError: if the checkpoint was written without an average.
        ValueError: if it belongs to another model.
    """
    path = Path(checkpoint) / EMA_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint={str(checkpoint)!r} has no {EMA_FILE}: it was trained with ema_decay=0."
        )
    average = ExponentialMovingAverage(model)
    average.load(path)
    average.copy_to_model()


def _at_least_float32(parameter: torch.Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
