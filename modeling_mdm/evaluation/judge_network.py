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
DEFAULT_WIDTHS = {"convolutional": (48, 128), "mixer": (48, 96)}
NUM_MIXINGS = 4
VISIBLE = ("all", "upper", "lower")


@dataclass(frozen=True)
class JudgeConfig:
    """The shape of a judge and of the pictures that it reads.

    With `mirror`, a picture is classified together with its mirror image: for pictures that keep
    their meaning, that is 0.3 points of accuracy on Fashion-MNIST. With `visible` "upper" or
    "lower", it sees that half of the rows alone: what a half tells bounds what can be known of the
    other. `widths` None takes the architecture's `DEFAULT_WIDTHS`.

    Raises:
        ValueError: if a value is out of range.
    """

    num_classes: int
    image_size: tuple[int, int] = (28, 28)  # (height, width)
    num_channels: int = 1
    widths: tuple[int, ...] | None = None
    mirror: bool = False
    architecture: str = "convolutional"  # or "mixer"
    visible: str = "all"

    def __post_init__(self) -> None:
        if self.architecture not in DEFAULT_WIDTHS:
            raise ValueError(
                f"architecture={self.architecture!r} must be one of {list(DEFAULT_WIDTHS)}."
            )
        if self.visible not in VISIBLE:
            raise ValueError(f"visible={self.visible!r} must be one of {list(VISIBLE)}.")
        widths = DEFAULT_WIDTHS[self.architecture] if self.widths is None else self.widths
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "widths", tuple(widths))
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}: a judge needs at least 2 classes.")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels={self.num_channels} must be 1 (grey) or 3 (colour).")
        if not self.widths or min(self.image_size) < 2 ** len(self.widths):
            raise ValueError(
                f"widths={self.widths} halve a picture {len(self.widths)} times, which "
                f"image_size={self.image_size} does not allow: give fewer widths."
            )


def normalised(convolution: nn.Conv2d) -> nn.Sequential:
    """A convolution, batch norm and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


class Refinement(nn.Module):
    """Adds what one more convolution sees."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = normalised(nn.Conv2d(width, width, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, feature, height, width) in and out."""
        return x + self.inner(x)


def _convolutions(config: JudgeConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = config.num_channels
    for i, outputs in enumerate(config.widths):
        if i == 0:
            # Halved by the stride: at full size the first stage would take half of the time.
            widen = nn.Conv2d(width, outputs, 4, stride=2, padding=1, bias=False)
        else:
            layers.append(nn.MaxPool2d(2))
            widen = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        layers += [normalised(widen), Refinement(outputs), Refinement(outputs)]
        width = outputs
    return layers


class _Mixing(nn.Module):
    """Mixes the cells of a grid, then the features of each cell (MLP-Mixer, arXiv 2105.01601)."""

    def __init__(self, width: int, num_cells: int) -> None:
        super().__init__()
        self.across, self.within = _perceptron(num_cells), _perceptron(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norms[1](x))  # (batch, cells, width)


def _perceptron(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


class _Cells(nn.Module):
    """A row of layers over the cells of a grid, (batch, width, rows, columns) in and out."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        cells = x.flatten(2).transpose(1, 2)  # (batch, cells, width)
        return self.layers(cells).transpose(1, 2).unflatten(2, x.shape[2:])


def _mixer(config: JudgeConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    (height, width), inputs = config.image_size, config.num_channels
    for outputs in config.widths:  # each halves the grid: cells of 4 x 4 pixels after two
        halve = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        layers += [normalised(halve), Refinement(outputs)]
        height, width, inputs = height // 2, width // 2, outputs
    mixing = [_Mixing(inputs, height * width) for _ in range(NUM_MIXINGS)]
    # Perceptrons refine the cells in the place of the last convolution.
    return [*layers[:-1], _Cells(*mixing, nn.LayerNorm(inputs))]


_LAYERS = {"convolutional": _convolutions, "mixer": _mixer}


class JudgeNetwork(nn.Module):
    """A small classifier of small pictures, of the architecture that its configuration names.

    Convolutional: each stage halves the grid, widens the features and refines them twice.
    Mixer: convolutions halve the grid, then perceptrons mix its cells and their features in turn.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.description: dict[str, Any] = {}
        self.layers = nn.Sequential(*_LAYERS[config.architecture](config))
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width) in [-1, 1].

        Raises:
            ValueError: if the images are not of the shape that the judge was trained on.
        """
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer reads, (batch, widths[-1]), of images as `forward` takes them.

        Raises:
            ValueError: see `forward`.
        """
        expected = (self.config.num_channels, *self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images has the shape {tuple(images.shape)}: this judge reads (batch, "
                f"{', '.join(map(str, expected))}). `classify` takes PIL pictures of any size."
            )
        if self.config.visible != "all":
            images = images.clone()
            images[..., hidden_rows(self.config.visible, images.shape[-2]), :] = 0
        cells = self.layers(images)  # (batch, widths[-1], height / 2^stages, width / 2^stages)
        return cells.amax(dim=(2, 3)).float()

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image], batch_size: int = 250) -> list[int]:
        """Return the class that each picture shows; other sizes and modes are converted."""
        return self._classes(pictures_to_tensor(pictures, self.config), batch_size)

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[Image.Image], batch_size: int = 250) -> Tensor:
        """Return the probability of each class, (batch, classes), for pictures as `classify`'s."""
        images = pictures_to_tensor(pictures, self.config)
        return self._log_probabilities(images, batch_size).softmax(-1)

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
        return self._log_probabilities(images, batch_size).argmax(-1).tolist()

    def _log_probabilities(self, images: Tensor, batch_size: int) -> Tensor:
        """Up to a constant of each picture; a mirroring judge takes the mean with the mirror's."""
        was_training, device = self.training, self.head.weight.device
        self.eval()
        found = [torch.empty(0, self.config.num_classes)]
        for batch in images.split(batch_size) if len(images) else ():
            batch = to_unit_range(batch.to(device))
            log_probability = self(batch).log_softmax(-1)  # (batch, classes)
            if self.config.mirror:
                log_probability = (log_probability + self(batch.flip(-1)).log_softmax(-1)) / 2
            found.append(log_probability.cpu())
        self.train(was_training)
        return torch.cat(found)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights (safetensors) and judge.json with the shape and the description."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        content = {"config": asdict(self.config), **self.description}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, argument: str = "judge") -> JudgeNetwork:
        """Read a judge that `save_pretrained` wrote, ready to classify.

        Args:
            folder: where it is. argument: what errors call the folder.

        Raises:
            FileNotFoundError: if the folder or one of its two files is missing.
            ValueError: if the weights do not belong to the description.
        """
        folder = Path(folder)
        require_folder(argument, str(folder))
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{argument}={str(folder)!r} has no {name}: train one with "
                    "`python -m modeling_mdm.evaluation.judge --output_dir ...`."
                )
        content = json.loads((folder / DESCRIPTION_FILE).read_text())
        judge = cls(JudgeConfig(**content.pop("config")))
        judge.description = content
        try:
            judge.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{argument}={str(folder)!r}: {WEIGHTS_FILE} does not fit {DESCRIPTION_FILE}: "
                f"{str(error)[:400]}"
            ) from error
        return judge.eval()


def hidden_rows(visible: str, height: int) -> slice:
    """The rows that are not of the visible half; the lower half has the middle row."""
    return slice(height // 2, height) if visible == "upper" else slice(0, height // 2)


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
