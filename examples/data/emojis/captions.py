# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said of a picture: several captions, from its name alone to all that is known of it."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from .drawing import DOMINANT_SHARE
from .names import OBJECT_GROUPS
from .scenes import Drawing, Scene, Thing
from .words import counted, with_article, words_of

# Words of these need no truth; a concept that is one of them cannot be held out.
STYLE_TEMPLATES = ("{}, {} style", "{} in the {} style", "{}, drawn in the {} style")
TEMPLATE_WORDS = (
    "style on a background an in the drawn picture of keywords left right above below to and at "
    "top bottom side zero one two three four five there is are what how many which colour yes no "
    "make change put swap them draw it remove add take away more replace with say means word"
)
PLACED = {"left": "on the left", "right": "on the right", "above": "at the top"}
PLACED |= {"below": "at the bottom", "centre": "in the middle"}
RELATIONS = {"beside": ("to the left of", "to the right of"), "stacked": ("above", "below")}
MAX_KEYWORDS = 4


def dominant_colour(drawing: Drawing) -> str | None:
    """Return the colour of most of a drawing, if there is one."""
    colour, share = next(iter(drawing.colours.items()), ("", 0.0))
    return colour if share >= DOMINANT_SHARE else None


def coloured_name(drawing: Drawing) -> str | None:
    """Return a short name with its colour, "green turtle"; None where none can be said well."""
    concept, colour = drawing.concept, dominant_colour(drawing)
    plain = concept.is_object and concept.group in OBJECT_GROUPS and not concept.has_colour
    if colour is None or not plain or len(concept.name.split()) > 2 or concept.name[0].isupper():
        return None
    name = concept.name
    return None if concept.phrase.startswith("a pair of") else f"{colour} {name}"


def name_of(thing: Thing, colour: str | None = None) -> str:
    """Return an object with its number: "an apple", "three red apples"."""
    if colour is not None:
        return counted(colour, thing.count)
    if thing.count == 1:
        return thing.concept.phrase
    return counted(thing.concept.name, thing.count)


def described(scene: Scene, rng: Random, coloured: bool = False) -> str:
    """Say what a scene shows and where, without its style and background."""
    names = [name_of(t, coloured_name(t.drawing) if coloured else None) for t in scene.things]
    if len(names) == 1:
        place = PLACED[scene.things[0].place] if scene.layout == "alone" else ""
        return f"{names[0]} {place}".strip()
    relation = RELATIONS[scene.layout]
    if rng.random() < 0.5:
        return f"{names[0]} {relation[0]} {names[1]}"
    return f"{names[1]} {relation[1]} {names[0]}"


def full_caption(scene: Scene, rng: Random) -> str:
    """Say all: objects, number, places, style and background."""
    return _with_ground(f"{described(scene, rng)}, {scene.style} style,", scene)


def _with_ground(said: str, scene: Scene) -> str:
    return f"{said} on {with_article(f'{scene.background} background')}"


def captions_of(
    scene: Scene, gloss: str | None, forbidden: Collection[str], rng: Random
) -> list[str]:
    """Return the captions of a scene, the full one first; none holds a forbidden word.

    Args:
        scene: the picture.
        gloss: what its single object means, if that may be said.
        forbidden: words of concepts that are held out.
        rng: draws the phrasings.
    """
    found = [full_caption(scene, rng)]
    said = described(scene, rng)
    if scene.layout in ("beside", "stacked"):
        found.append(" and ".join(name_of(t) for t in rng.sample(scene.things, 2)))
    else:
        found.append(said)
    found.append(_with_ground(said, scene))
    found.append(rng.choice(STYLE_TEMPLATES).format(described(scene, rng), scene.style))
    if any(coloured_name(t.drawing) for t in scene.things):
        found.append(_with_ground(described(scene, rng, coloured=True), scene))
    if scene.layout == "single":
        found += _of_meaning(scene, gloss, forbidden, rng)
    kept = [caption for caption in dict.fromkeys(found) if not words_of(caption) & {*forbidden}]
    return kept


def _of_meaning(
    scene: Scene, gloss: str | None, forbidden: Collection[str], rng: Random
) -> list[str]:
    """Give captions that do not name a concept: by its keywords, by its gloss."""
    concept = scene.things[0].concept
    keywords = [word for word in concept.keywords if not words_of(word) & {*forbidden}]
    found = []
    if len(keywords) >= 2:
        chosen = rng.sample(range(len(keywords)), min(MAX_KEYWORDS, len(keywords)))
        found.append(", ".join(keywords[n] for n in sorted(chosen)))
    if gloss is not None:
        found.append(gloss)
    return found
