# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Edits: a scene with one thing changed, and the request for it in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from .scenes import (
    BESIDE,
    MAX_COUNT,
    PLACES,
    STACKED,
    Drawing,
    Scene,
    Spot,
    Thing,
    backgrounds_for,
    free_corner,
)
from .words import with_article

BACKGROUND_WORDS = ("make the background {}", "change the background to {}")
STYLE_WORDS = ("draw it in the {} style", "change the style to {}")


@dataclass(frozen=True)
class Edit:
    """A kind of change, its request, and the scene that it leads to."""

    kind: str
    request: str
    scene: Scene


def to_background(scene: Scene, rng: Random) -> Edit | None:
    """Ask for another background."""
    drawings = [thing.drawing for thing in scene.things]
    others = [name for name in backgrounds_for(drawings) if name != scene.background]
    if not others:
        return None
    chosen = rng.choice(others)
    return Edit("background", rng.choice(BACKGROUND_WORDS).format(chosen), scene.on(chosen))


def one_more(scene: Scene, rng: Random) -> Edit | None:
    """Ask for one more of what is there."""
    thing = scene.things[0]
    if scene.layout != "count" or thing.count == MAX_COUNT:
        return None
    added = replace(thing, spots=(*thing.spots, free_corner(scene, rng)))
    name = thing.concept.name
    unit = f"pair of {name}" if thing.concept.phrase.startswith("a pair of") else name
    request = rng.choice((f"one more {unit}", f"add {with_article(name)}"))
    return Edit("more", request, replace(scene, things=(added,)))


def one_less(scene: Scene, rng: Random) -> Edit | None:
    """Ask for one to be taken away."""
    thing = scene.things[0]
    if scene.layout != "count" or thing.count == 2:
        return None
    gone = rng.randrange(thing.count)
    left = replace(thing, spots=thing.spots[:gone] + thing.spots[gone + 1 :])
    name = thing.concept.name
    unit = f"pair of {name}" if thing.concept.phrase.startswith("a pair of") else name
    request = rng.choice((f"take away one {unit}", f"remove one {unit}"))
    return Edit("less", request, replace(scene, things=(left,)))


def swapped(scene: Scene, rng: Random) -> Edit | None:
    """Ask for two objects to change places."""
    if len(scene.things) != 2:
        return None
    first, second = scene.things
    things = (_at(second, first), _at(first, second))
    names = f"the {first.concept.name} and the {second.concept.name}"
    request = rng.choice(("swap them", f"swap {names}"))
    return Edit("swap", request, replace(scene, things=things))


def _at(thing: Thing, other: Thing) -> Thing:
    """Move an object to the place of another; its size stays."""
    both = zip(thing.spots, other.spots, strict=True)
    spots = tuple(Spot(there.right, there.down, own.size) for own, there in both)
    return Thing(thing.drawing, other.place, spots)


def moved(scene: Scene, rng: Random) -> Edit | None:
    """Ask for two objects beside each other to be stacked, or the other way round."""
    if len(scene.things) != 2:
        return None
    layout, places = ("stacked", STACKED) if scene.layout == "beside" else ("beside", BESIDE)
    first, second = rng.sample(scene.things, 2)
    things = tuple(
        Thing(t.drawing, place, tuple(Spot(*PLACES[place], s.size) for s in t.spots))
        for t, place in zip((first, second), places, strict=True)
    )
    relation = "above" if layout == "stacked" else "to the left of"
    request = f"put the {first.concept.name} {relation} the {second.concept.name}"
    return Edit("move", request, Scene(layout, scene.background, things))


def removed(scene: Scene, rng: Random) -> Edit | None:
    """Ask for one of two objects to be removed."""
    if len(scene.things) != 2:
        return None
    gone = rng.randrange(2)
    request = f"remove the {scene.things[gone].concept.name}"
    return Edit("remove", request, Scene("alone", scene.background, (scene.things[1 - gone],)))


def replacer(draw: Callable[[str], Drawing | None]) -> Callable[[Scene, Random], Edit | None]:
    """Make the edit that puts another object in the place of one; `draw` chooses it by style."""

    def replaced(scene: Scene, rng: Random) -> Edit | None:
        number = rng.randrange(len(scene.things))
        old, new = scene.things[number], draw(scene.style)
        there = {thing.concept.code for thing in scene.things}
        if new is None or new.concept.code in there:
            return None
        if scene.background not in backgrounds_for([new]):
            return None
        things = list(scene.things)
        things[number] = replace(old, drawing=new)
        if old.count > 1:
            request = f"replace the {old.concept.plural} with {new.concept.plural}"
        else:
            request = f"replace the {old.concept.name} with {new.concept.phrase}"
        return Edit("replace", request, replace(scene, things=tuple(things)))

    return replaced


def edits_of(scene: Scene, draw: Callable[[str], Drawing | None], rng: Random) -> list[Edit]:
    """Return one edit of each kind that a scene allows, in the order in which to try them."""
    kinds: Sequence[Callable[[Scene, Random], Edit | None]] = (
        *(to_background, one_more, one_less, swapped, moved, removed, replacer(draw)),
    )
    tried = [kind(scene, rng) for kind in rng.sample(kinds, len(kinds))]
    return [edit for edit in tried if edit is not None]
