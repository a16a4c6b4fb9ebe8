# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Image processor on torchvision.

Axes: c channels, h height, w width.
"""

from itertools import groupby
from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, SizeDict

from .image_processing_pil_mdm import MDMImageProcessorKwargs, PictureReader, per_channel


class MDMImageProcessor(PictureReader, TorchvisionBackend):
    """Prepare pictures for MDM: `num_channels` channels, `size`, pixels in [-1, 1].

    Accepts PIL images of any mode (turned upright, transparency on white), paths, URLs, encoded
    bytes, and arrays or tensors of shape (h, w), (h, w, c) or (c, h, w): uint8, or float in [0, 1].
    A picture of another size is resized until it covers `size`, and its centre is cropped.

    Args:
        num_channels: 1 (grey) or 3 (RGB).
        size: `{"height": H, "width": W}` of what comes out.
        do_normalize: False if float pixels are in [-1, 1] already.
        do_convert_rgb: False to keep as many channels as an array or tensor has.
        input_data_format: order of an array's axes where its shape fits two ("channels_first" or
            "channels_last"; tensors are taken for the first, arrays for the second).

    Raises:
        ValueError: for a picture that is unreadable, truncated, animated or of zero size, and for
            pixels that are NaN or out of range.
    """

    valid_kwargs = MDMImageProcessorKwargs

    def process_image(
        self,
        image: Any,
        num_channels: int,
        do_normalize: bool,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Read one picture as (c, h, w), uint8 or float32."""
        channels = None if do_convert_rgb is False else num_channels
        pixels = torch.from_numpy(
            self.read(image, channels, do_normalize, input_data_format).copy()
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
        image_mean: float | tuple[float, ...],
        image_std: float | tuple[float, ...],
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        pixel_values: list[torch.Tensor] = []
        mean, std = per_channel(image_mean), per_channel(image_std)  # (c or 1, 1, 1)
        for (_, dtype), alike in groupby(images, key=lambda image: (image.shape, image.dtype)):
            pixels = torch.stack(list(alike))  # (pictures, c, h, w)
            pixels = self.fit(pixels, size, resample) if do_resize else pixels
            pixels = pixels.float() * (rescale_factor if do_rescale and dtype == torch.uint8 else 1)
            if do_normalize:
                pixels = (pixels - torch.from_numpy(mean)) / torch.from_numpy(std)
            pixel_values += pixels
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


MDMImageProcessor.register_for_auto_class()
