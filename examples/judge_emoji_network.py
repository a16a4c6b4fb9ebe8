# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The judge of the emoji world: it says what is where, how many, on what, in which style.

Axis legend: batch, channels, height, width, region, feature, class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from mdm_cli.places import require_folder
from modeling_mdm.evaluation.judge_network import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    JudgeConfig,
    JudgeNetwork,
    Refinement,
    normalised,
    pictures_to_tensor,
    to_unit_range,
)

WIDTHS = {"convolutional": (48, 96, 192), "mixer": (48, 96)}
# What is seen of the whole picture; concepts are seen in each region.
WHOLE_HEADS = ("background", "style", "count", "place")
CONCEPT = "concept"
# In which region of a picture the thing of a place lies; one that is in the middle, or several of
# one, fill the whole.
REGIONS = ("whole", "left", "right", "above", "below")
REGION_OF = {"centre": "whole", "": "whole", **{name: name for name in REGIONS[1:]}}
STYLE = "style"
STYLE_WIDTHS = (48, 96, 128)  # of the layers that see strokes, the first at full size
DROPOUT = 0.1  # of what they see
LEVELS = 4  # of each colour, in the histogram
HIDDEN = 256
AT_ONCE = 250


@dataclass(frozen=True)
class EmojiJudgeConfig:
    """The shape of a judge.

    Args:
        names: the classes of each head: background, style, count, place, and concepts, the most
            frequent first.
        image_size: side of the pictures, in pixels; others are resized.
        architecture: of the features: "convolutional" or "mixer".
        widths: of its stages; None for `WIDTHS`.

    Raises:
        ValueError: if a head has fewer than two classes, or as `JudgeConfig` does.
    """

    names: Mapping[str, Sequence[str]]
    image_size: int = 32
    architecture: str = "convolutional"
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {name: list(own) for name, own in self.names.items()})
        if set(self.names) != {*WHOLE_HEADS, CONCEPT} or min(map(len, self.names.values())) < 2:
            sizes = {name: len(own) for name, own in self.names.items()}
            raise ValueError(
                f"names has {sizes}: a judge needs two classes or more of each of "
                f"{', '.join((*WHOLE_HEADS, CONCEPT))}."
            )
        widths = WIDTHS.get(self.architecture) if self.widths is None else tuple(self.widths)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "widths", self.features.widths)  # or its error

    @property
    def features(self) -> JudgeConfig:
        """The shape of the layers that read pixels."""
        size = (self.image_size, self.image_size)
        return JudgeConfig(2, size, 3, self.widths, architecture=self.architecture)


def soft_histogram(images: Tensor) -> Tensor:
    """Share of the pixels that each colour of a grid has, between neighbours in proportion.

    Args:
        images: (batch, 3, height, width) in [-1, 1].

    Returns:
        (batch, LEVELS^3), the square root of shares that sum to 1.
    """
    levels = torch.linspace(-1, 1, LEVELS, device=images.device)
    distance = (images.flatten(2)[..., None] - levels).abs()  # (batch, 3, pixel, level)
    near = (1 - distance * (LEVELS - 1) / 2).clamp(min=0)
    red, green, blue = near.unbind(1)
    pairs = (red[..., :, None] * green[..., None, :]).flatten(2)  # (batch, pixel, level^2)
    return (pairs.transpose(1, 2) @ blue / images[0, 0].numel()).flatten(1).sqrt()


class StrokeStatistics(nn.Module):
    """Means and maxima of what convolutions see near by, wherever it is, at three sizes.

    A style is in strokes, shades and edges, not in what is drawn where: a head that reads the
    features which tell concepts learns which drawing was in which style.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *STYLE_WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(
                normalised(nn.Conv2d(before, width, 3, 1 if before == 3 else 2, 1, bias=False)),
                Refinement(width),
            )
            for before, width in pairwise(inputs)
        )
        self.width = 2 * sum(STYLE_WIDTHS)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, width) of images (batch, 3, height, width)."""
        seen, found = images, []
        for stage in self.stages:
            seen = stage(seen)
            found += [seen.float().mean((2, 3)), seen.float().amax((2, 3))]
        return torch.cat(found, -1)


class EmojiJudge(nn.Module):
    """Features of cells, the largest of each region, and a histogram of colours; then heads.

    Style alone is told by `StrokeStatistics` and colours.
    """

    def __init__(self, config: EmojiJudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.description: dict[str, Any] = {}
        self.layers = JudgeNetwork(config.features).layers
        width = config.features.widths[-1]
        colours = LEVELS**3
        self.whole = _perceptron(len(REGIONS) * width + colours)
        self.region = _perceptron(width + colours)
        self.strokes = StrokeStatistics()
        self.style = nn.Sequential(_perceptron(self.strokes.width + colours), nn.Dropout(DROPOUT))
        sizes = {name: len(own) for name, own in config.names.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(HIDDEN, size) for name, size in sizes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits of images (batch, 3, height, width) in [-1, 1].

        Returns:
            (batch, class) for each head of the whole picture, and for concepts (batch, region,
            class), the regions as in `REGIONS`.
        """
        cells = self.layers(images).float()  # (batch, feature, rows, columns)
        rows, columns = cells.shape[2] // 2, cells.shape[3] // 2
        parts = (
            *(cells, cells[..., :columns], cells[..., columns:]),
            *(cells[..., :rows, :], cells[..., rows:, :]),
        )
        seen = torch.stack([part.amax((2, 3)) for part in parts], 1)  # (batch, region, feature)
        colours = soft_histogram(images.float())
        whole = self.whole(torch.cat([seen.flatten(1), colours], -1))
        each = colours[:, None].expand(-1, len(REGIONS), -1)
        region = self.region(torch.cat([seen, each], -1))
        logits = {name: self.heads[name](whole) for name in WHOLE_HEADS if name != STYLE}
        style = self.style(torch.cat([self.strokes(images), colours], -1))
        logits[STYLE] = self.heads[STYLE](style)
        return logits | {CONCEPT: self.heads[CONCEPT](region)}

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[Image.Image] | Tensor) -> dict[str, Tensor]:
        """Return what `forward` does as probabilities, for pictures of any size or uint8 pixels."""
        images = self.pixels(pictures)
        was_training, device = self.training, next(self.parameters()).device
        self.eval()
        found: dict[str, list[Tensor]] = {}
        for batch in images.split(AT_ONCE) if len(images) else ():
            for name, logits in self(to_unit_range(batch.to(device))).items():
                found.setdefault(name, []).append(logits.softmax(-1).cpu())
        self.train(was_training)
        return {name: torch.cat(own) for name, own in found.items()}

    def pixels(self, pictures: Sequence[Image.Image] | Tensor) -> Tensor:
        """Return uint8 pixels (batch, 3, height, width) of pictures of any size."""
        if isinstance(pictures, Tensor):
            return pictures
        return pictures_to_tensor(pictures, self.config.features)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights in half precision, and judge.json with the shape and the description."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
        }
        safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        content = {"config": asdict(self.config), **self.description}
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, argument: str = "judge") -> EmojiJudge:
        """Read a judge that `save_pretrained` wrote, ready to look at pictures.

        Args:
            folder: where it is. argument: what errors call the folder.

        Raises:
            FileNotFoundError: if the folder or one of its two files is missing.
            ValueError: if the two do not belong together.
        """
        folder = Path(folder)
        require_folder(argument, str(folder))
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{argument}={str(folder)!r} has no {name}: train a judge with "
                    "`python examples/judge_emoji.py --output_dir ...`."
                )
        try:
            content = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
            judge = cls(EmojiJudgeConfig(**content.pop("config")))
            judge.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
        except (
            RuntimeError,
            TypeError,
            ValueError,
            KeyError,
            safetensors.SafetensorError,
        ) as error:
            raise ValueError(
                f"{argument}={str(folder)!r} is no judge of the emoji world: {str(error)[:400]}"
            ) from error
        judge.description = content
        return judge.eval()


def _perceptron(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.ReLU())
