# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who looks at GenEval's pictures: Mask2Former finds things, CLIP names their colours.

GenEval's own detector runs in mmdet 2, which needs a Python of its time. Here it is a network of
the same kind, trained on the same pictures, from transformers: figures are close, not equal.

Axes: q queries, h height, w width, c colours, d features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerForUniversalSegmentation,
)

from modeling_mdm.evaluation.tables.geneval import COLORS, MIN_SCORE, Detection

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COLOR_MODEL = "openai/clip-vit-large-patch14"
# What GenEval calls classes of COCO differently.
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
BACKGROUND = (153, 153, 153)


class Detector:
    """Finds things in pictures.

    Args:
        name: folder or id of the Hub of a Mask2Former for instances of COCO's classes.
        device: cpu, cuda, ...

    Raises:
        OSError: there are no weights of this name.
    """

    def __init__(self, name: str = DETECTOR, device: str = "cpu") -> None:
        self.model = _load(Mask2FormerForUniversalSegmentation, name, "detector").to(device).eval()
        self.processor = _load(AutoImageProcessor, name, "detector")

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> dict[str, list[Detection]]:
        """Find things, by class, with their masks (h, w) at the picture's size."""
        picture = picture.convert("RGB")
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs),
            threshold=MIN_SCORE,
            target_sizes=[(picture.height, picture.width)],
            return_binary_maps=True,
        )
        things = defaultdict(list)
        for segment in found["segments_info"]:
            mask = found["segmentation"][segment["id"]].cpu().numpy().astype(bool)
            name = self.model.config.id2label[segment["label_id"]]
            if mask.any():
                thing = Detection(box_of(mask), float(segment["score"]), mask)
                things[RENAMED.get(name, name)].append(thing)
        return dict(things)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Put a box around a mask (h, w): left, top, right and bottom, behind its last pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ColorNamer:
    """Names the colour of things, of GenEval's ten.

    Args:
        name: folder or id of the Hub of a CLIP.
        device: cpu, cuda, ...

    Raises:
        OSError: there are no weights of this name.
    """

    def __init__(self, name: str = COLOR_MODEL, device: str = "cpu") -> None:
        self.model = _load(CLIPModel, name, "color_model").to(device).eval()
        self.processor = _load(CLIPProcessor, name, "color_model")
        self._directions: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, picture: Image.Image, things: Sequence[Detection], name: str) -> list[str]:
        """Name the colour of each of some things of one class."""
        crops = [crop(picture, thing) for thing in things]
        inputs = self.processor(images=crops, return_tensors="pt").to(self.model.device)
        seen = _unit(_features(self.model.get_image_features(**inputs)))  # (thing, d)
        return [COLORS[index] for index in (seen @ self._colors_of(name).T).argmax(-1).tolist()]

    def _colors_of(self, name: str) -> Tensor:
        """Directions of the colours of one class, (c, d): means over phrasings."""
        if name not in self._directions:
            texts = [template.format(color, name) for color in COLORS for template in TEMPLATES]
            inputs = self.processor(text=texts, return_tensors="pt", padding=True)
            said = self.model.get_text_features(**inputs.to(self.model.device))
            said = _unit(_features(said)).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._directions[name] = _unit(said.mean(1))
        return self._directions[name]


def crop(picture: Image.Image, thing: Detection) -> Image.Image:
    """Cut a thing out of a picture, on grey where its mask is not."""
    picture = picture.convert("RGB")
    if thing.mask is not None:
        blank = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, blank, Image.fromarray(thing.mask))
    return picture.crop(tuple(round(side) for side in thing.box))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _features(output: Any) -> Tensor:
    """Features are a tensor, or what holds it, as the release of transformers has it."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _load(kind: Any, name: str, argument: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"{argument}={name!r} could not be loaded: GenEval needs its weights. Name a folder "
            f"that holds them, or load them from the Hub once while there is a network. ({error})"
        ) from error
