# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""From a world to items: single pictures, scenes, and the edits between them.

Axis legend: height, width, channel.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from random import Random

import numpy as np
from PIL import Image

from .captions import captions_of
from .drawing import BACKGROUNDS, CANVAS
from .edits import BACKGROUND_WORDS, STYLE_WORDS, edits_of
from .names import Concept
from .questions import Question, ask
from .scenes import (
    BESIDE,
    MAX_COUNT,
    STACKED,
    Box,
    Drawing,
    Scene,
    backgrounds_for,
    paint,
    pair,
    several,
    single,
)
from .splits import HELD_OUT, NEAR_COPY, TEST, TRAIN, share_of, split_of_combination
from .world import World

# Of all scenes; half of them are edits of the other half.
SHARES = {TRAIN: 0.855, TEST: 0.1, HELD_OUT: 0.045}
PAIRED = 0.6  # of the first scenes have two objects, the others several of one
SPREAD = 20  # objects of this rank are half as frequent as the first
TRIES = 200  # for one scene
BLOCK = 8  # pixels of the means by which pictures are compared first


@dataclass(frozen=True)
class Item:
    """A picture with all that is known of it; `image` is its lossless WebP."""

    id: str
    split: str
    scene: Scene
    image: bytes
    boxes: Sequence[Sequence[Box]]
    captions: Sequence[str]
    questions: Sequence[Question]


@dataclass(frozen=True)
class EditPair:
    """An edit between two items of one split, by their ids."""

    split: str
    kind: str
    request: str
    given: str
    edited: str


class Neighbours:
    """The training pictures, by what they show: none for a test may be nearly one of them."""

    def __init__(self) -> None:
        self._means: dict[str, list[np.ndarray]] = {}
        self._scenes: dict[str, list[Scene]] = {}

    def add(self, scene: Scene, pixels: np.ndarray) -> None:
        """Note a training picture."""
        for thing in scene.things:
            self._means.setdefault(thing.concept.code, []).append(_means(pixels))
            self._scenes.setdefault(thing.concept.code, []).append(scene)

    def has_near_copy(self, scene: Scene, pixels: np.ndarray) -> bool:
        """Tell whether a picture is within `NEAR_COPY` of one of the same concept."""
        means = _means(pixels)
        for code in {thing.concept.code for thing in scene.things} & self._means.keys():
            # The error of means is at most that of pixels: whom it parts, pixels part.
            errors = ((np.stack(self._means[code]) - means) ** 2).mean((1, 2, 3))
            for number in np.flatnonzero(errors <= NEAR_COPY):
                other, _ = paint(self._scenes[code][number])
                if mean_squared_error(pixels, other) <= NEAR_COPY:
                    return True
        return False


def _means(pixels: np.ndarray) -> np.ndarray:
    side = CANVAS // BLOCK
    blocks = pixels.reshape(side, BLOCK, side, BLOCK, 3).mean((1, 3), dtype=np.float64)
    return (2 * blocks / 255).astype(np.float32)  # (8, 8, 3); differences are those in [-1, 1]


def mean_squared_error(first: np.ndarray, second: np.ndarray) -> float:
    """Compare two pictures of bytes, in [-1, 1]."""
    difference = (first.astype(np.float64) - second) * 2 / 255
    return float((difference**2).mean())


def encode(pixels: np.ndarray, size: int) -> bytes:
    """Reduce a picture to a size that divides 64, and pack it without loss."""
    picture = Image.fromarray(pixels)
    if size != CANVAS:
        picture = picture.reduce(CANVAS // size)
    packed = io.BytesIO()
    picture.save(packed, "WEBP", lossless=True, method=2, quality=50)
    return packed.getvalue()


class Builder:
    """Makes the items of a world; the edits between them are known when all are made.

    Args:
        world: what is drawn.
        size: pixels of a picture, each way.
        num_backgrounds: of a concept in a style, alone.
    """

    def __init__(self, world: World, size: int = CANVAS, num_backgrounds: int = 2) -> None:
        self.world, self.size, self.num_backgrounds = world, size, num_backgrounds
        self.edits: list[EditPair] = []
        self.num_near_copies = 0
        self._neighbours = Neighbours()
        self._pool = _Pool(world)

    def items(self, split: str, num_scenes: int) -> Iterator[Item]:
        """Make the items of a split: the training split first, since tests are compared with it."""
        yield from self._singles(split)
        yield from self._scenes(split, num_scenes)

    def _singles(self, split: str) -> Iterator[Item]:
        pairs = [pair for pair, own in self.world.pairs.items() if own == split]
        for _code, same in groupby(pairs, key=lambda pair: pair[0]):
            made = [item for pair in same for item in self._on_backgrounds(split, *pair)]
            yield from made
            for number, item in enumerate(made):
                self._note_single(made[:number], item)

    def _on_backgrounds(self, split: str, code: str, style: str) -> Iterator[Item]:
        """Make the pictures of a concept in a style; all styles share the first background."""
        drawings = self.world.drawings[code, style]
        order = self.world.rng("backgrounds", code).sample([*BACKGROUNDS], 1)
        rest = [name for name in BACKGROUNDS if name not in order]
        order += self.world.rng("single", code, style).sample(rest, len(rest))
        for drawing in drawings:
            fitting = backgrounds_for([drawing])
            for name in [name for name in order if name in fitting][: self.num_backgrounds]:
                made = self._item(split, f"{code}-{drawing.number}-{style}", single(drawing, name))
                if made is not None:
                    yield made

    def _note_single(self, before: Sequence[Item], item: Item) -> None:
        """Note the edits that lead to an item from others of its concept, one of each kind."""
        drawing = item.scene.things[0].drawing
        rng = self.world.rng("edit", item.id)
        for other in before:
            theirs = other.scene.things[0].drawing
            if theirs is drawing:
                words = rng.choice(BACKGROUND_WORDS).format(item.scene.background)
                self._note("background", words, other, item)
                break
        styled = [
            other
            for other in before
            if other.scene.style != drawing.style
            and other.scene.background == item.scene.background
        ]
        if styled:
            words = rng.choice(STYLE_WORDS).format(drawing.style)
            self._note("style", words, rng.choice(styled), item)

    def _note(self, kind: str, request: str, given: Item, edited: Item) -> None:
        self.edits.append(EditPair(given.split, kind, request, given.id, edited.id))

    def _scenes(self, split: str, count: int) -> Iterator[Item]:
        for number in range(count // 2):
            rng = self.world.rng("scene", split, str(number))
            tries = (self._scene_and_edit(split, number, rng) for _ in range(TRIES))
            made = next(filter(None, tries), None)
            if made is None:
                raise ValueError(
                    f"no scene of the split {split!r} was found in {TRIES} tries: there are too "
                    "few concepts; raise limit."
                )
            yield from made

    def _scene_and_edit(self, split: str, number: int, rng: Random) -> tuple[Item, Item] | None:
        scene = self._draw_scene(split, rng)
        if scene is None or self._split_of(scene) != split:
            return None
        for edit in edits_of(scene, lambda style: self._pool.draw(TRAIN, style, rng), rng):
            if self._split_of(edit.scene) == split:
                first = self._item(split, f"scene-{number}", scene)
                second = self._item(split, f"scene-{number}-edited", edit.scene)
                if first is None or second is None:
                    return None
                self._note(edit.kind, edit.request, first, second)
                return first, second
        return None

    def _split_of(self, scene: Scene) -> str:
        return split_of_combination(scene.combination, self.world.held_out)

    def _draw_scene(self, split: str, rng: Random) -> Scene | None:
        style = rng.choice(self.world.styles)
        first = self._pool.draw(HELD_OUT if split == HELD_OUT else TRAIN, style, rng)
        if first is None:
            return None
        if rng.random() >= PAIRED:
            grounds = backgrounds_for([first])
            if not grounds:
                return None
            return several(first, rng.randint(2, MAX_COUNT), rng.choice(grounds), rng)
        second = self._pool.draw(TRAIN, style, rng)
        if second is None or second.concept.code == first.concept.code:
            return None
        grounds = backgrounds_for([first, second])
        if not grounds:
            return None
        order = rng.sample([first, second], 2)
        return pair(*order, rng.choice((BESIDE, STACKED)), rng.choice(grounds), rng)

    def _item(self, split: str, name: str, scene: Scene) -> Item | None:
        """Draw and describe a scene; nothing where a test's is nearly a training picture."""
        id_ = f"{split}-{name}-{scene.background}"
        pixels, boxes = paint(scene)
        if split == TRAIN:
            self._neighbours.add(scene, pixels)
        elif split == TEST and self._neighbours.has_near_copy(scene, pixels):
            self.num_near_copies += 1
            return None
        scale = CANVAS // self.size
        boxes = [[Box(*(side // scale for side in box)) for box in own] for own in boxes]
        code = scene.things[0].concept.code
        gloss = self.world.gloss(code, split) if scene.layout == "single" else None
        forbidden = self.world.forbidden if split == TRAIN else frozenset()
        rng = self.world.rng("words", id_)
        return Item(
            id=id_,
            split=split,
            scene=scene,
            image=encode(pixels, self.size),
            boxes=boxes,
            captions=captions_of(scene, gloss, forbidden, rng),
            questions=ask(scene, self._pool.askable, self.world.styles, rng),
        )


class _Pool:
    """The drawings that scenes are made of, some concepts more frequent than others."""

    def __init__(self, world: World) -> None:
        self._drawings: dict[tuple[str, str], tuple[list[Drawing], list[float]]] = {}
        counts: dict[str, int] = {}
        for (code, _), split in world.pairs.items():
            if split != TEST:
                counts[code] = counts.get(code, 0) + 1
        ranked = sorted(counts, key=lambda code: (-counts[code], share_of("rank", code)))
        objects = [code for code in ranked if world.concepts[code].is_object]
        self.askable: list[Concept] = [
            world.concepts[code] for code in objects if code not in world.held_out
        ]
        for style in world.styles:
            for split in (TRAIN, HELD_OUT):
                ranks = [
                    (rank, code)
                    for rank, code in enumerate(objects)
                    if world.pairs.get((code, style)) == split
                ]
                drawings = [world.drawings[code, style][0] for _, code in ranks]
                weights = [1 / (SPREAD + rank) for rank, _ in ranks]
                self._drawings[split, style] = drawings, [*accumulate(weights)]

    def draw(self, split: str, style: str, rng: Random) -> Drawing | None:
        """Draw an object of a style by its frequency; None where a style has none."""
        drawings, up_to = self._drawings[split, style]
        return rng.choices(drawings, cum_weights=up_to)[0] if drawings else None
