# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawings: icons turned into pixels, what colours they have, and how alike two of them are.

Axis legend: height, width, channel.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

CANVAS = 64  # pixels of a picture, each way
DRAWN = 60  # pixels of an icon that is alone
MIN_COVERED = 0.005  # share of its pixels below which nothing was drawn

BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "grey": (158, 158, 158),
    "black": (24, 24, 24),
    "red": (214, 48, 49),
    "orange": (245, 140, 30),
    "yellow": (250, 221, 70),
    "green": (64, 168, 84),
    "blue": (52, 110, 220),
    "purple": (132, 70, 176),
    "pink": (246, 150, 196),
}

# What a colour is called, by examples; the nearest in CIELAB names a pixel.
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "red": ("e53935", "d32f2f", "b71c1c", "ff3b30", "dd2e44"),
    "orange": ("ff9800", "f57c00", "ff7043", "f4900c", "ffa726"),
    "yellow": ("ffeb3b", "fdd835", "ffcc4d", "ffd54f", "fff176", "fbc02d"),
    "green": ("4caf50", "2e7d32", "8bc34a", "1b5e20", "00a651", "77b255", "9ccc65", "26a69a"),
    "blue": ("2196f3", "1565c0", "03a9f4", "0d47a1", "55acee", "81d4fa", "3f51b5", "4fc3f7"),
    "purple": ("9c27b0", "6a1b9a", "7e57c2", "4a148c", "aa8dd8", "b388ff"),
    "pink": ("f48fb1", "ec407a", "f8bbd0", "ea596e", "ff80ab", "ffa7c4"),
    "brown": ("795548", "5d4037", "8d6e63", "4e342e", "a1662f", "c1694f", "855c52", "662113"),
    "beige": ("f5deb3", "ffdbb4", "ffdc5d", "e6c9a8", "ffe0b2", "f7dece"),
    "black": ("000000", "212121", "31373d", "292f33"),
    "grey": ("9e9e9e", "757575", "bdbdbd", "616161", "99aab5", "78909c", "b0bec5"),
    "white": ("ffffff", "f5f5f5", "eeeeee", "e6e7e8"),
}
COLOURS = tuple(_EXAMPLES)
MAIN_SHARE, DOMINANT_SHARE = 0.25, 0.6


class NothingDrawnError(ValueError):
    """An icon that cannot be drawn, or of which nothing is seen."""


def draw(icon: Mapping[str, Any], size: int = DRAWN) -> np.ndarray:
    """Draw an icon of iconify's, as large as fits, in the middle.

    Args:
        icon: with `body`, `left`, `top`, `width`, `height`.
        size: pixels each way.

    Returns:
        (size, size, 4), uint8, not premultiplied.

    Raises:
        NothingDrawnError: if it is no SVG, or empty.
        ImportError: if resvg-py is missing.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(f"{error}: icons are drawn by resvg-py") from error

    box = " ".join(str(icon[key]) for key in ("left", "top", "width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{size}" height="{size}">{icon["body"]}</svg>'
    )
    try:  # without the machine's fonts, which differ
        drawn = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        pixels = np.asarray(Image.open(io.BytesIO(bytes(drawn))).convert("RGBA"))
    except (ValueError, OSError) as error:
        raise NothingDrawnError(f"it does not draw: {error}") from error
    if pixels.shape != (size, size, 4):
        raise NothingDrawnError(f"it draws {pixels.shape} pixels, not {size} x {size}")
    if (pixels[..., 3] > 127).mean() < MIN_COVERED:
        raise NothingDrawnError("nothing of it is seen")
    return pixels


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize a drawing, its colours weighted by how opaque they are: (size, size, 4)."""
    if size == len(pixels):
        return pixels
    premultiplied = Image.fromarray(pixels).convert("RGBa")  # else edges take on hidden colours
    small = premultiplied.resize((size, size), Image.Resampling.HAMMING)
    return np.asarray(small.convert("RGBA"))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Turn sRGB in [0, 1] into CIELAB (white point D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * f[..., 1] - 16
    return np.stack(
        [lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


_OWNERS = np.array([n for n, codes in enumerate(_EXAMPLES.values()) for _ in codes])
_PLACES = _lab(
    np.array([[*bytes.fromhex(code)] for codes in _EXAMPLES.values() for code in codes]) / 255
)


def colours_of(pixels: np.ndarray) -> dict[str, float]:
    """Return the share of each colour among the opaque pixels of a drawing, largest first."""
    some = pixels[::2, ::2]  # a quarter tells as much
    seen = some[some[..., 3] > 127][:, :3].astype(np.float64) / 255  # (pixel, 3)
    distance = ((_lab(seen)[:, None] - _PLACES) ** 2).sum(-1)  # (pixel, example)
    counts = np.bincount(_OWNERS[distance.argmin(1)], minlength=len(COLOURS)) / max(len(seen), 1)
    order = np.argsort(-counts, kind="stable")
    return {COLOURS[n]: float(counts[n]) for n in order if counts[n] > 0}


def nearest_error(first: np.ndarray, second: np.ndarray, backgrounds: Iterable[str]) -> float:
    """Return the least mean squared error of two drawings on one of some backgrounds, in [-1, 1].

    With premultiplied colours p and opacities a, pixels on a background b are p + (1 - a) b, so the
    squared difference of two is (dp - da b)^2, quadratic in b: one pass serves all backgrounds.
    Without any background they are never alike.
    """
    colour, opacity = (x - y for x, y in zip(_layers(first), _layers(second), strict=True))
    squares, mixed = (colour**2).mean((0, 1)), (colour * opacity).mean((0, 1))  # (channel,)
    opaque = float((opacity**2).mean())
    share = (DRAWN / CANVAS) ** 2  # the rim is background in both
    levels = [2 * np.array(BACKGROUNDS[name]) / 255 for name in backgrounds]
    errors = [float((squares - 2 * b * mixed + b**2 * opaque).mean()) for b in levels]
    return share * min(errors, default=float("inf"))


def _layers(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return premultiplied colours, as they differ in [-1, 1], and opacities."""
    shares = pixels.astype(np.float64) / 255
    return 2 * shares[..., :3] * shares[..., 3:], shares[..., 3:]
