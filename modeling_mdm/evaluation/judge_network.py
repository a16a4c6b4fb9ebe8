# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The judge: a small classifier that says what a generated picture shows.

Axis legend: batch, channels, height, width, classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from mdm_cli.places import require_folder
from modeling_mdm.processor.image_processing_pil_mdm import upright

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "judge.json"


@dataclass(frozen=True)
class JudgeConfig:
    """The shape of a judge and of the pictures that it reads.

    With `mirror`, a picture is classified together with its mirror image: for pictures that keep
    their meaning, that is 0.3 points of accuracy on Fashion-MNIST.

    Raises:
        ValueError: if a value is out of range.
    """

    num_classes: int
    image_size: tuple[int, int] = (28, 28)  # (height, width)
    num_channels: int = 1
    widths: tuple[int, ...] = (48, 128)
    mirror: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}: a judge needs at least 2 classes.")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels={self.num_channels} must be 1 (grey) or 3 (colour).")
        if not self.widths or min(self.image_size) < 2 ** len(self.widths):
            raise ValueError(
                f"widths={self.widths} halve a picture {len(self.widths)} times, which "
                f"image_size={self.image_size} does not allow: give fewer widths."
            )


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


class _Refinement(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = _normalised(nn.Conv2d(width, width, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class JudgeNetwork(nn.Module):
    """A residual convolutional classifier of small pictures.

    Each stage halves the grid, widens the features and refines them twice.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.description: dict[str, Any] = {}
        layers: list[nn.Module] = []
        width = config.num_channels
        for i, outputs in enumerate(config.widths):
            if i == 0:
                # Halved by the stride: at full size the first stage would take half of the time.
                widen = nn.Conv2d(width, outputs, 4, stride=2, padding=1, bias=False)
            else:
                layers.append(nn.MaxPool2d(2))
                widen = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
            layers += [_normalised(widen), _Refinement(outputs), _Refinement(outputs)]
            width = outputs
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width) in [-1, 1].

        Raises:
            ValueError: if the images are not of the shape that the judge was trained on.
        """
        expected = (self.config.num_channels, *self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images has the shape {tuple(images.shape)}: this judge reads (batch, "
                f"{', '.join(map(str, expected))}). `classify` takes PIL pictures of any size."
            )
        features = self.layers(images)  # (batch, widths[-1], height / 2^stages, width / 2^stages)
        return self.head(features.amax(dim=(2, 3)).float())  # (batch, classes)

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image], batch_size: int = 250) -> list[int]:
        """Return the class that each picture shows; other sizes and modes are converted."""
        return self._classes(pictures_to_tensor(pictures, self.config), batch_size)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return `accuracy` and `accuracy_by_class` on uint8 images and their labels."""
        right = torch.tensor(self._classes(images, 250)) == labels
        by_class = [
            float(right[labels == label].float().mean()) if (labels == label).any() else None
            for label in range(self.config.num_classes)
        ]
        return {"accuracy": float(right.float().mean()), "accuracy_by_class": by_class}

    def _classes(self, images: Tensor, batch_size: int) -> list[int]:
        was_training, device = self.training, self.head.weight.device
        self.eval()
        found = []
        for batch in images.split(batch_size) if len(images) else ():
            batch = to_unit_range(batch.to(device))
            log_probability = self(batch).log_softmax(-1)  # (batch, classes)
            if self.config.mirror:
                log_probability = log_probability + self(batch.flip(-1)).log_softmax(-1)
            found.append(log_probability.argmax(-1).cpu())
        self.train(was_training)
        return torch.cat(found).tolist() if found else []

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights (safetensors) and judge.json with the shape and the description."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        content = {"config": asdict(self.config), **self.description}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> JudgeNetwork:
        """Read a judge that `save_pretrained` wrote, ready to classify.

        Raises:
            FileNotFoundError: if the folder or one of its two files is missing.
            ValueError: if the weights do not belong to the description.
        """
        folder = Path(folder)
        require_folder("judge", str(folder))
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"judge={str(folder)!r} has no {name}: train one with "
                    "`python -m modeling_mdm.evaluation.judge --output_dir ...`."
                )
        content = json.loads((folder / DESCRIPTION_FILE).read_text())
        judge = cls(JudgeConfig(**content.pop("config")))
        judge.description = content
        try:
            judge.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"judge={str(folder)!r}: {WEIGHTS_FILE} does not fit {DESCRIPTION_FILE}: "
                f"{str(error)[:400]}"
            ) from error
        return judge.eval()


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 pixels to floats in [-1, 1]."""
    return images.float() / 127.5 - 1


def pictures_to_tensor(pictures: Sequence[Image.Image], config: JudgeConfig) -> Tensor:
    """Convert pictures to uint8 (batch, channels, height, width) as a judge reads them."""
    mode, (height, width) = ("L" if config.num_channels == 1 else "RGB"), config.image_size
    batch = torch.empty((len(pictures), config.num_channels, height, width), dtype=torch.uint8)
    for row, picture in zip(batch, map(upright, pictures), strict=True):
        if picture.mode != mode:
            picture = picture.convert(mode)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.array(picture).reshape(height, width, config.num_channels)
        row.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return batch
