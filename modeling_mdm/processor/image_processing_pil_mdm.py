# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Image processor on PIL and NumPy, and the reading of pictures that both back-ends share.

Axes: c channels, h height, w width. Pixels are uint8 in 0..255 or float32 in [0, 1] until the last
step, which puts them in [-1, 1].
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, load_image
from transformers.processing_utils import ImagesKwargs

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as in PIL


class MDMImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of `MDMImageProcessor` beside the usual ones."""

    num_channels: int


def upright(picture: Image.Image) -> Image.Image:
    """Decode a PIL image and turn it as its EXIF data say; the first step of all that reads one.

    What comes out says no more how to turn it, so that a second call changes nothing.

    Raises:
        ValueError: if the image is animated or truncated.
    """
    try:
        # MPO is a camera's JPEG with a preview as second frame, not an animation.
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            raise ValueError(
                f"images has an animated {picture.format} of {picture.n_frames} frames; choose one "
                "with image.seek(index) and pass image.copy()."
            )
        picture.load()
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"images has an unreadable or truncated {picture.format} image ({error}); "
            "pass an intact file."
        ) from error
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF data that cannot be read say nothing of how to turn intact pixels
        return picture


def open_picture(source: str | Path | bytes) -> Image.Image:
    """Open a picture by its path or its encoded bytes, upright.

    Raises:
        OSError: if there is no such file, or it is no picture.
        ValueError: if the picture is animated or truncated.
    """
    # Through memory, because PIL would keep a file open that turns out to be damaged.
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    return upright(Image.open(BytesIO(content)))


def read_picture(picture: Image.Image) -> np.ndarray:
    """Decode one PIL image of any mode, upright.

    Returns:
        Array (h, w) or (h, w, c) with c = 2 (grey, alpha), 3 or 4; uint8.

    Raises:
        ValueError: if the image is animated, truncated, or has pixels out of range.
    """
    picture = upright(picture)
    if picture.mode.startswith("I"):
        return _narrow(np.asarray(picture), 65535, f"mode {picture.mode}")
    if picture.mode == "F":
        return _narrow(np.asarray(picture), 255, "mode F")
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        return np.asarray(picture.convert("LA" if grey else "RGBA"))
    return np.asarray(picture.convert("L" if grey else "RGB"))


def _narrow(pixels: np.ndarray, white: int, kind: str) -> np.ndarray:
    """Scale pixels in 0..white to uint8."""
    if not (pixels.min() >= 0 and pixels.max() <= white):  # "not", because NaN compares false
        raise ValueError(
            f"images has pixels of {kind} in [{pixels.min()}, {pixels.max()}]; "
            f"scale them to 0..{white}."
        )
    return np.rint(pixels * (255 / white)).astype(np.uint8)


def read_array(
    pixels: np.ndarray, lowest: float, layout: str | ChannelDimension | None, channels_first: bool
) -> np.ndarray:
    """Check one array and put it in channel-first order.

    Args:
        pixels: (h, w), (h, w, c) or (c, h, w), c = 1..4; bool, integer, or float in [lowest, 1].
        lowest: smallest float allowed.
        layout: the order of the axes if known.
        channels_first: which order to believe when the shape fits both.

    Returns:
        Array (c, h, w), uint8 or float32.

    Raises:
        ValueError: if the shape is not one image's, or a pixel is NaN or out of range.
    """
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3:
        first, last = pixels.shape[0] in (1, 2, 3, 4), pixels.shape[-1] in (1, 2, 3, 4)
        if layout is not None:
            channels_first = ChannelDimension(layout) is ChannelDimension.FIRST
        elif first != last:
            channels_first = first
        if not (first if channels_first else last):
            raise ValueError(
                f"images has an array of shape {pixels.shape}, which is not one image; pass "
                "(H, W), (H, W, C) or (C, H, W), C = 1 to 4, and a stack of images as list(images)."
            )
        pixels = pixels if channels_first else np.moveaxis(pixels, -1, 0)
    else:
        raise ValueError(f"images has an array of shape {pixels.shape}; one image has 2 or 3 axes.")

    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        return _narrow(pixels, 65535, "uint16")
    if np.issubdtype(pixels.dtype, np.integer):
        return _narrow(pixels, 255, str(pixels.dtype))
    pixels = pixels.astype(np.float32)
    if not (pixels.min() >= lowest and pixels.max() <= 1):  # "not", because NaN compares false
        raise ValueError(
            f"images has float pixels in [{pixels.min()}, {pixels.max()}]; remove NaN and give "
            f"floats in [{lowest:g}, 1], or uint8 in 0..255. For pixels in [-1, 1] already, pass "
            "images_kwargs={'do_normalize': False}."
        )
    return pixels


def set_channels(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    """Put transparent pixels on white and convert between grey and RGB.

    Args:
        pixels: (c, h, w), c = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        num_channels: 1 or 3.

    Returns:
        Array (num_channels, h, w) of the same dtype.
    """
    integer = pixels.dtype == np.uint8
    if len(pixels) in (2, 4):
        white = np.float32(255 if integer else 1)
        opacity = pixels[-1:] / white
        pixels = pixels[:-1] * opacity + white * (1 - opacity)
    if len(pixels) == 3 and num_channels == 1:
        pixels = np.tensordot(LUMA, pixels.astype(np.float32), axes=1)[None]
    elif len(pixels) == 1 and num_channels == 3:
        pixels = np.repeat(pixels, 3, axis=0)
    if integer and pixels.dtype != np.uint8:
        pixels = np.rint(pixels).astype(np.uint8)
    return pixels


def per_channel(values: float | tuple[float, ...]) -> np.ndarray:
    """Shape one number, or one for each channel, so that it fits (c, h, w)."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)


class PictureReader:
    """What both back-ends share: defaults, reading pictures, fitting them, and the way back."""

    # Bilinear, because it cannot overshoot: both back-ends then agree to one grey level on any CPU.
    resample = PILImageResampling.BILINEAR
    size = {"height": 28, "width": 28}
    image_mean = 0.5
    image_std = 0.5
    do_resize = True
    do_rescale = True
    do_normalize = True
    num_channels = 3

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels={self.num_channels!r} must be 1 (grey) or 3 (RGB).")

    def to_dict(self) -> dict[str, Any]:
        """Serialise; either back-end names both, and each machine takes the one that it can run."""
        # Only here, because that file needs this one; the import has it copied beside this one.
        from .image_processing_mdm import MDMImageProcessor

        config = super().to_dict()
        both = [
            f"{back_end.__module__.split('.')[-1]}.{back_end.__name__}"
            for back_end in (MDMImageProcessorPil, MDMImageProcessor)
        ]
        if config.get("auto_map", {}).get("AutoImageProcessor") in both:
            config["auto_map"]["AutoImageProcessor"] = both
        return config

    def fetch_images(self, images: Any) -> Any:
        """Open paths, URLs and encoded bytes within any nesting of lists; all of them upright."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, Image.Image):
            return upright(images)
        if isinstance(images, str | Path | bytes):
            try:
                if isinstance(images, bytes) or Path(images).is_file():
                    return open_picture(images)
                return load_image(str(images))
            except (OSError, ValueError) as error:
                name = f"{len(images)} bytes" if isinstance(images, bytes) else str(images)[:200]
                raise ValueError(
                    f"images has {name!r}, which cannot be read as an image ({error}); "
                    "pass the path of an intact image file, a PIL image or an array."
                ) from error
        return images

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        images = self.fetch_images(images)
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
            return list(images)
        return images if isinstance(images, list) else [images]

    def read(
        self,
        image: Any,
        num_channels: int | None,
        do_normalize: bool,
        input_data_format: str | ChannelDimension | None,
    ) -> np.ndarray:
        """Read one picture.

        Args:
            image: PIL image, NumPy array or tensor; see `read_picture` and `read_array`.
            num_channels: 1 (grey), 3 (RGB), or None for those that it has.
            do_normalize: False says that float pixels are in [-1, 1] already.
            input_data_format: order of an array's axes if its shape does not tell.

        Returns:
            Array (num_channels, h, w), uint8 or float32.
        """
        layout = input_data_format
        channels_first = False
        if isinstance(image, Image.Image):
            image, layout = read_picture(image), ChannelDimension.LAST
        elif isinstance(image, torch.Tensor):
            channels_first = True
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        elif not isinstance(image, np.ndarray):
            raise ValueError(
                f"images has a {type(image).__name__}; pass PIL images, arrays, tensors or paths."
            )
        if 0 in image.shape:
            raise ValueError(
                f"images has an image of zero size, shape {image.shape}; "
                "every side needs at least 1 pixel."
            )
        pixels = read_array(image, 0.0 if do_normalize else -1.0, layout, channels_first)
        return pixels if num_channels is None else set_channels(pixels, num_channels)

    def fit(self, image: Any, size: SizeDict, resample: Any) -> Any:
        """Resize (..., h, w) until it covers `size`, in proportion, and crop the centre."""
        height, width = image.shape[-2:]
        if (height, width) == (size.height, size.width):
            return image
        scale = max(size.height / height, size.width / width)
        cover = SizeDict(
            height=max(size.height, round(height * scale)),
            width=max(size.width, round(width * scale)),
        )
        return self.center_crop(self.resize(image, cover, resample=resample), size)

    def post_process(self, image: torch.Tensor | np.ndarray) -> Image.Image:
        """Turn one generated image into a picture; values beyond [-1, 1] are clipped.

        Args:
            image: (c, h, w) float, c = 1 or 3.

        Raises:
            ValueError: if the shape is another, or a value is NaN.
        """
        pixels = image.detach().float().cpu().numpy() if isinstance(image, torch.Tensor) else image
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise ValueError(f"image has shape {tuple(pixels.shape)}; pass (1, H, W) or (3, H, W).")
        if np.isnan(pixels).any():
            raise ValueError("image has NaN values; check the model's weights and its precision.")
        pixels = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


class MDMImageProcessorPil(PictureReader, PilBackend):
    """Prepare pictures for MDM with PIL and NumPy.

    Accepts what `MDMImageProcessor` accepts and gives the same pixels to one grey level.
    """

    valid_kwargs = MDMImageProcessorKwargs

    def process_image(
        self,
        image: Any,
        num_channels: int,
        do_normalize: bool,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Read one picture as (c, h, w), uint8 or float32."""
        channels = None if do_convert_rgb is False else num_channels
        return self.read(image, channels, do_normalize, input_data_format)

    def resize(
        self, image: np.ndarray, size: SizeDict, resample: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """Resize (c, h, w) channel by channel, which keeps float pixels float."""
        side = (size.width, size.height)
        return np.stack(
            [np.asarray(Image.fromarray(channel).resize(side, resample)) for channel in image]
        )

    def _preprocess(
        self,
        images: list[np.ndarray],
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
        pixel_values = []
        for image in images:
            image = self.fit(image, size, resample) if do_resize else image
            factor = rescale_factor if do_rescale and image.dtype == np.uint8 else 1.0
            image = image.astype(np.float32) * np.float32(factor)
            if do_normalize:
                image = (image - per_channel(image_mean)) / per_channel(image_std)
            pixel_values.append(image)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


MDMImageProcessorPil.register_for_auto_class()
