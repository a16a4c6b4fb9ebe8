# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Image processor on torchvision.

Axes: C channels, H height, W width.
"""

from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, SizeDict

from .image_processing_pil_mdm import PictureReader


class MDMImageProcessor(PictureReader, TorchvisionBackend):
    """Prepare pictures for MDM: `num_channels` channels, `size`, pixels in [-1, 1].

    Accepts PIL images of any mode (turned upright, transparency on white), paths, encoded bytes, and arrays or tensors
    of shape (H, W), (H, W, C) or (C, H, W): uint8, or float in [0, 1]. A picture of another size is resized until it
    covers `size`, and its centre is cropped.
    """

    def process_image(
        self,
        image: Any,
        num_channels: int,
        do_normalize: bool,
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Read one picture as (C, H, W), uint8 or float32."""
        pixels = torch.from_numpy(
            self.read(image, num_channels, do_normalize, input_data_format).copy()
        )
        return pixels if device is None else pixels.to(device)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float,
        image_std: float,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        pixel_values = []
        for image in images:
            image = self.fit(image, size, resample) if do_resize else image
            factor = rescale_factor if do_rescale and image.dtype == torch.uint8 else 1.0
            image = image.float() * factor
            if do_normalize:
                image = (image - image_mean) / image_std
            pixel_values.append(image)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


MDMImageProcessor.register_for_auto_class()
