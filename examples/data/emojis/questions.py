# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about a picture whose answers are known from its truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .captions import dominant_colour
from .drawing import BACKGROUNDS
from .names import Concept
from .scenes import MAX_COUNT, Scene, Thing
from .words import NUMBERS, counted

KINDS = ("what", "how many", "which colour", "place", "which style", "yes or no")
ASKED = 3  # questions a picture
WHERE = {"left": "on the left", "right": "on the right", "above": "at the top"}
WHERE |= {"below": "at the bottom"}
SIDES = {"beside": ("left", "right"), "stacked": ("above", "below")}


@dataclass(frozen=True)
class Question:
    """A question of one of `KINDS`, and its answer."""

    kind: str
    question: str
    answer: str


def ask(
    scene: Scene, others: Sequence[Concept], styles: Sequence[str], rng: Random
) -> list[Question]:
    """Ask about a scene: some questions, each of another kind.

    Args:
        scene: the picture.
        others: concepts that may be asked for and are not there.
        styles: the words of all styles.
        rng: draws what is asked.
    """
    absent = [c for c in rng.sample(others, min(8, len(others))) if _is_absent(c, scene)]
    askers: dict[str, Callable[[], Question | None]] = {
        "what": lambda: _what(scene, rng),
        "how many": lambda: _how_many(scene, absent, rng),
        "which colour": lambda: _colour(scene, rng),
        "place": lambda: _place(scene, rng),
        "which style": lambda: Question("which style", "which style is it?", scene.style),
        "yes or no": lambda: _yes_or_no(scene, absent, styles, rng),
    }
    kinds = rng.sample(KINDS, len(KINDS))
    if len(scene.things) == 2:  # the only ones that have two places
        kinds.sort(key=lambda kind: kind != "place")
    if scene.layout == "count":
        kinds.sort(key=lambda kind: kind != "how many")
    found = (askers[kind]() for kind in kinds)
    return [question for question in found if question is not None][:ASKED]


def _is_absent(concept: Concept, scene: Scene) -> bool:
    """A dog is there where a dog face is, and an animal may be what another is called."""
    words = set(concept.name.split())
    there = {word for t in scene.things for word in (*t.concept.name.split(), *t.concept.keywords)}
    return not words & there and not set(concept.keywords) & {t.concept.name for t in scene.things}


def _many(thing: Thing) -> str:
    return thing.concept.plural or thing.concept.name


def _what(scene: Scene, rng: Random) -> Question:
    if len(scene.things) == 1:
        thing = scene.things[0]
        if thing.count > 1:
            return Question("what", "what are these?", _many(thing))
        return Question("what", "what is this?", thing.concept.phrase)
    asked = rng.randrange(2)
    thing, other = scene.things[asked], scene.things[1 - asked]
    if rng.random() < 0.5:
        return Question("what", f"what is {WHERE[thing.place]}?", thing.concept.phrase)
    relation = {"left": "left of", "right": "right of"}.get(thing.place, thing.place)
    return Question("what", f"what is {relation} the {other.concept.name}?", thing.concept.phrase)


def _how_many(scene: Scene, absent: Sequence[Concept], rng: Random) -> Question | None:
    thing = rng.choice(scene.things)
    if thing.concept.plural is None:
        return None
    if scene.layout != "count" and absent and rng.random() < 0.3:
        return Question("how many", f"how many {absent[0].plural} are there?", NUMBERS[0])
    return Question("how many", f"how many {_many(thing)} are there?", NUMBERS[thing.count])


def _colour(scene: Scene, rng: Random) -> Question:
    thing = rng.choice(scene.things)
    colour, concept = dominant_colour(thing.drawing), thing.concept
    unclear = concept.has_colour or concept.plural is None
    if colour is None or unclear or rng.random() < 0.4:
        return Question("which colour", "which colour is the background?", scene.background)
    name = _many(thing) if thing.count > 1 else concept.name
    return Question("which colour", f"which colour {_verb(thing)} the {name}?", colour)


def _verb(thing: Thing) -> str:
    """A pair of glasses: the glasses are."""
    return "are" if thing.count > 1 or thing.concept.phrase.startswith("a pair of") else "is"


def _place(scene: Scene, rng: Random) -> Question | None:
    if len(scene.things) != 2:
        return None
    asked = rng.randrange(2)
    thing, other = scene.things[asked], scene.things[1 - asked]
    names = f"the {thing.concept.name}", f"the {other.concept.name}"
    first, second = SIDES[scene.layout]
    joined = f"{first} or {second} of" if scene.layout == "beside" else f"{first} or {second}"
    return Question("place", f"{_verb(thing)} {names[0]} {joined} {names[1]}?", thing.place)


def _yes_or_no(
    scene: Scene, absent: Sequence[Concept], styles: Sequence[str], rng: Random
) -> Question | None:
    yes = rng.random() < 0.5
    thing = rng.choice(scene.things)
    asked = rng.choice(("there", "background", "style", "number", "place"))
    if asked == "place" and len(scene.things) == 2:
        return _is_placed(scene, yes)
    if asked == "number" and thing.count > 1:
        wrong = rng.choice([n for n in range(2, MAX_COUNT + 1) if n != thing.count])
        said = counted(thing.concept.name, thing.count if yes else wrong)
        return _yes_no(f"are there {said}?", yes)
    if asked == "background":
        wrong_ground = rng.choice([name for name in BACKGROUNDS if name != scene.background])
        return _yes_no(f"is the background {scene.background if yes else wrong_ground}?", yes)
    if asked == "style":
        wrong_style = rng.choice([word for word in styles if word != scene.style] or [scene.style])
        yes = yes or wrong_style == scene.style
        return _yes_no(f"is it in the {scene.style if yes else wrong_style} style?", yes)
    if not yes and not absent:
        return None
    concept = thing.concept if yes else absent[0]
    if yes and thing.count > 1:
        return _yes_no(f"are there {_many(thing)}?", yes)
    return _yes_no(f"is there {concept.phrase}?", yes)


def _is_placed(scene: Scene, yes: bool) -> Question:
    first, second = (f"the {thing.concept.name}" for thing in scene.things)
    if not yes:
        first, second = second, first
    relation = "left of" if scene.layout == "beside" else "above"
    thing = scene.things[0 if yes else 1]
    return _yes_no(f"{_verb(thing)} {first} {relation} {second}?", yes)


def _yes_no(question: str, yes: bool) -> Question:
    return Question("yes or no", question, "yes" if yes else "no")
