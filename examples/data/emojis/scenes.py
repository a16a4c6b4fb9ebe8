# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scenes: which objects stand where, on which background, in which style; and their pictures.

Axis legend: height, width, channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import NamedTuple

import numpy as np

from .drawing import BACKGROUNDS, CANVAS, DRAWN, MAIN_SHARE, colours_of, resized
from .names import Concept

MIDDLE, NEAR, FAR = CANVAS // 2, CANVAS // 4, 3 * CANVAS // 4
# Where the middle of an object lies, as (right, down).
PLACES: Mapping[str, tuple[int, int]] = {
    "centre": (MIDDLE, MIDDLE),
    "left": (NEAR, MIDDLE),
    "right": (FAR, MIDDLE),
    "above": (MIDDLE, NEAR),
    "below": (MIDDLE, FAR),
}
CORNERS = ((NEAR, NEAR), (FAR, NEAR), (NEAR, FAR), (FAR, FAR))
BESIDE, STACKED = ("left", "right"), ("above", "below")
SMALLEST, LARGEST, SHIFT = 27, 30, 1  # of an object in a scene, pixels
MAX_COUNT = 4


class Box(NamedTuple):
    """What an object covers: pixels [left, right) by [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, eq=False)
class Drawing:
    """One drawing of a concept in a style.

    Args:
        concept: what it shows.
        style: the word of its style.
        number: which of several.
        pixels: (60, 60, 4), uint8.
    """

    concept: Concept
    style: str
    number: int
    pixels: np.ndarray

    @cached_property
    def colours(self) -> dict[str, float]:
        """Return the share of each colour, largest first."""
        return colours_of(self.pixels)


@dataclass(frozen=True)
class Spot:
    """Where one copy of an object is drawn: its middle and its size in pixels."""

    right: int
    down: int
    size: int


@dataclass(frozen=True)
class Thing:
    """An object of a scene: a drawing, its place in words, and the spots of its copies."""

    drawing: Drawing
    place: str
    spots: tuple[Spot, ...]

    @property
    def concept(self) -> Concept:
        """What it is."""
        return self.drawing.concept

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.spots)


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    Args:
        layout: "single" (one object that fills it), "count" (two to four of one), "beside" or
            "stacked" (two objects), "alone" (one small object at a place).
        background: the name of its colour.
        things: its objects; of two, the left or upper one first.
    """

    layout: str
    background: str
    things: tuple[Thing, ...]

    @property
    def style(self) -> str:
        """The style of all its objects."""
        return self.things[0].drawing.style

    @property
    def combination(self) -> tuple[str, ...]:
        """What a split may hold alone: a pair of concepts, or a concept with its count or place."""
        first = self.things[0]
        if len(self.things) == 2:
            return tuple(sorted(thing.concept.code for thing in self.things))
        return (first.concept.code, first.place if self.layout == "alone" else str(first.count))

    def on(self, background: str) -> Scene:
        """Return the same on another background."""
        return replace(self, background=background)


def single(drawing: Drawing, background: str) -> Scene:
    """Make the picture of one object."""
    spot = Spot(*PLACES["centre"], DRAWN)
    return Scene("single", background, (Thing(drawing, "centre", (spot,)),))


def spot_at(place: tuple[int, int], rng: Random) -> Spot:
    """Draw a spot near a place."""
    right, down = (x + rng.randint(-SHIFT, SHIFT) for x in place)
    return Spot(right, down, rng.randint(SMALLEST, LARGEST))


def pair(first: Drawing, second: Drawing, places: Sequence[str], bg: str, rng: Random) -> Scene:
    """Make a scene of two objects at two places."""
    layout = "beside" if tuple(places) == BESIDE else "stacked"
    both = zip((first, second), places, strict=True)
    things = tuple(Thing(d, place, (spot_at(PLACES[place], rng),)) for d, place in both)
    return Scene(layout, bg, things)


def several(drawing: Drawing, count: int, background: str, rng: Random) -> Scene:
    """Make a scene of two to four copies of an object, each in a corner of its own."""
    size = rng.randint(SMALLEST, LARGEST)
    corners = sorted(rng.sample(range(len(CORNERS)), count))
    spots = tuple(replace(spot_at(CORNERS[n], rng), size=size) for n in corners)
    return Scene("count", background, (Thing(drawing, "", spots),))


def free_corner(scene: Scene, rng: Random) -> Spot:
    """Draw a spot in a corner that no copy is in."""
    spots = scene.things[0].spots
    taken = {(s.right > MIDDLE, s.down > MIDDLE) for s in spots}
    free = [c for c in CORNERS if (c[0] > MIDDLE, c[1] > MIDDLE) not in taken]
    return replace(spot_at(rng.choice(free), rng), size=spots[0].size)


def backgrounds_for(drawings: Sequence[Drawing]) -> list[str]:
    """Return the backgrounds on which all of the drawings are seen."""
    own = {c for d in drawings for c, share in d.colours.items() if share >= MAIN_SHARE}
    return [name for name in BACKGROUNDS if name not in own]


def paint(scene: Scene) -> tuple[np.ndarray, list[list[Box]]]:
    """Draw a scene.

    Returns:
        (64, 64, 3), uint8, and the boxes of the copies of each object.
    """
    canvas = np.empty((CANVAS, CANVAS, 3), np.float64)
    canvas[:] = BACKGROUNDS[scene.background]
    boxes = [[_put(canvas, thing.drawing, s) for s in thing.spots] for thing in scene.things]
    return np.rint(canvas).astype(np.uint8), boxes


def _put(canvas: np.ndarray, drawing: Drawing, spot: Spot) -> Box:
    pixels = resized(drawing.pixels, spot.size).astype(np.float64)  # (size, size, 4)
    left, top = spot.right - spot.size // 2, spot.down - spot.size // 2
    window = canvas[top : top + spot.size, left : left + spot.size]
    opacity = pixels[..., 3:] / 255
    window[:] = pixels[..., :3] * opacity + window * (1 - opacity)
    rows, columns = (np.flatnonzero(opacity[..., 0].max(axis) > 0.1) for axis in (1, 0))
    across, along = (left + columns[[0, -1]]).tolist(), (top + rows[[0, -1]]).tolist()
    return Box(across[0], along[0], across[1] + 1, along[1] + 1)
