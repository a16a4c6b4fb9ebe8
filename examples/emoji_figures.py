# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a judge sees of the emoji world's pictures, held against what should be there.

Axis legend: batch, region, class, height, width, channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from data.emojis.captions import RELATIONS
from data.emojis.drawing import BACKGROUNDS, colours_of
from data.emojis.words import counted
from emoji_reader import Claims, Named, truth_of_things
from PIL import Image
from torch import Tensor

from judge_emoji import TOP, place_of
from judge_emoji_network import CONCEPT, REGION_OF, REGIONS, EmojiJudge

LIKE_BACKGROUND = 48  # a pixel is background where no channel is further from it, of 255

Reader = Callable[[str], Claims | None]
Verdict = dict[str, bool]  # by what was judged; what does not apply is absent


@dataclass(frozen=True)
class Wanted:
    """What a picture should show. None: not said."""

    things: tuple[Named, ...]
    style: str | None = None
    background: str | None = None
    place: str | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Wanted:
        """All that is known of a row of the set."""
        return cls(truth_of_things(row), row["style"], row["background"], place_of(row))

    @classmethod
    def of_claims(cls, claims: Claims) -> Wanted:
        """What a caption says."""
        return cls(claims.things, claims.style, claims.background)


class Eye:
    """A judge with its classes by name.

    Args:
        judge: sees. Its concepts are those of the training split, the most frequent first.
    """

    def __init__(self, judge: EmojiJudge) -> None:
        self.judge = judge
        self.numbers = {
            head: {name: n for n, name in enumerate(own)}
            for head, own in judge.config.names.items()
        }

    def see(self, pictures: Sequence[Image.Image]) -> list[Seen]:
        """Look at pictures."""
        found = self.judge.probabilities(pictures)
        return [
            Seen(self, picture, {head: own[n] for head, own in found.items()})
            for n, picture in enumerate(pictures)
        ]


@dataclass(frozen=True)
class Seen:
    """One picture and the judge's probabilities: of each head (class,), concepts by region."""

    eye: Eye
    picture: Image.Image
    probabilities: Mapping[str, Tensor]

    def names(self, head: str) -> str:
        """Return the class that a head takes the whole picture for."""
        names = self.eye.judge.config.names[head]
        return str(names[int(self.probabilities[head].argmax())])

    def concept(self, place: str) -> str:
        """Return the concept that is seen at a place."""
        names = self.eye.judge.config.names[CONCEPT]
        return str(names[int(self._at(place).argmax())])

    def ranks(self, thing: Named, place: str) -> int | None:
        """Return how many concepts are likelier at a place than this; None if it is unknown."""
        number = self.eye.numbers[CONCEPT].get(thing.concept)
        if number is None:
            return None
        at = self._at(place)
        return int((at > at[number]).sum())

    def _at(self, place: str) -> Tensor:
        return self.probabilities[CONCEPT][REGIONS.index(REGION_OF[place])]

    def colour(self, place: str) -> str | None:
        """Return the colour of most of what stands out from the background at a place."""
        pixels = np.asarray(self.picture.convert("RGB")).astype(np.int16)
        height, width = pixels.shape[:2]
        parts = {
            "left": np.s_[:, : width // 2],
            "right": np.s_[:, width // 2 :],
            "above": np.s_[: height // 2],
            "below": np.s_[height // 2 :],
        }
        part = pixels[parts.get(place, np.s_[:, :])]
        ground = np.array(BACKGROUNDS[self.names("background")])
        opaque = (np.abs(part - ground).max(-1) > LIKE_BACKGROUND) * 255
        drawing = np.concatenate([part, opaque[..., None]], -1).astype(np.uint8)
        twice = drawing.repeat(2, 0).repeat(2, 1)  # colours_of looks at every second pixel
        return next(iter(colours_of(twice)), None)


def verdict(seen: Seen, wanted: Wanted) -> Verdict:
    """Say which parts of what is wanted the judge sees; what it does not know is left out.

    Returns:
        by head; `concept` and `top 5` are of all things together, each where it should be.
    """
    found: Verdict = {}
    for head in ("style", "background", "place"):
        if (value := getattr(wanted, head)) is not None:
            found[head] = seen.names(head) == value
    if not wanted.things:
        return found
    found["count"] = seen.names("count") == str(sum(thing.count for thing in wanted.things))
    ranks = _ranks(seen, wanted.things)
    if None not in ranks:
        found["concept"] = all(rank == 0 for rank in ranks)
        found["top 5"] = all(rank < TOP for rank in ranks)
    return found


def _ranks(seen: Seen, things: Sequence[Named]) -> list[int | None]:
    """Rank things where they should be; of two without places, where they are ranked best."""
    if len(things) == 2 and things[0].place is None:
        placings = (("left", "right"), ("right", "left"), ("above", "below"), ("below", "above"))
    else:
        placings = (tuple(thing.place or "" for thing in things),)
    each = [
        [seen.ranks(thing, place) for thing, place in zip(things, placing, strict=True)]
        for placing in placings
    ]
    return min(each, key=lambda ranks: [rank is None or rank for rank in sorted(ranks, key=_last)])


def _last(rank: int | None) -> float:
    return float("inf") if rank is None else rank


def shares(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float | int]]:
    """Return for each part the share of verdicts that are right, and of how many."""
    found: dict[str, list[bool]] = {}
    for one in verdicts:
        for name, right in one.items():
            found.setdefault(name, []).append(right)
    return {name: {"share": sum(own) / len(own), "of": len(own)} for name, own in found.items()}


# --- Edits


def is_changed(seen: Seen, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a change is seen: all that differs between two rows is as in the second.

    A thing at its new place must be among the judge's first `TOP`, and likelier there than what
    was there before.
    """
    old, new = Wanted.of_row(before), Wanted.of_row(after)
    changed = [head for head in ("style", "background", "place") if _differs(old, new, head)]
    if any(seen.names(head) != getattr(new, head) for head in changed):
        return False
    counts = [sum(thing.count for thing in one.things) for one in (old, new)]
    if counts[0] != counts[1] and seen.names("count") != str(counts[1]):
        return False
    was = {thing.place or "": thing for thing in old.things}
    for thing in new.things:
        place = thing.place or ""
        if place in was and was[place].concept == thing.concept:
            continue
        rank, other = seen.ranks(thing, place), was.get(place)
        if rank is None or rank >= TOP:
            return False
        if other is not None and (ahead := seen.ranks(other, place)) is not None and ahead < rank:
            return False
    return True


def _differs(old: Wanted, new: Wanted, head: str) -> bool:
    return bool(getattr(old, head) != getattr(new, head))


def kept_error(made: Image.Image, given: Image.Image, true: Image.Image) -> float:
    """Return the mean absolute difference from a given picture where the true edit has none.

    In [-1, 1]. 0 where the true edit changes every pixel.
    """
    stack = [
        np.asarray(one.convert("RGB"), dtype=np.float64) / 127.5 for one in (made, given, true)
    ]
    same = (stack[1] == stack[2]).all(-1)  # (height, width)
    return float(np.abs(stack[0] - stack[1])[same].mean()) if same.any() else 0.0


# --- GenEval's six categories


def _objects(seen: Seen, wanted: Wanted) -> bool:
    return verdict(seen, wanted).get("concept", False)


def _counting(seen: Seen, wanted: Wanted) -> bool:
    return _objects(seen, wanted) and verdict(seen, wanted)["count"]


def _coloured(seen: Seen, wanted: Wanted) -> bool:
    right = all(seen.colour(thing.place or "") == thing.colour for thing in wanted.things)
    return right and _objects(seen, wanted)


@dataclass(frozen=True)
class Category:
    """A category of prompts.

    layouts: of the rows that it takes. is_right: whether a picture shows what was asked.
    coloured: only of things that some caption of their row gives a colour, which is said.
    placed: the prompt says where.
    """

    layouts: tuple[str, ...]
    is_right: Callable[[Seen, Wanted], bool]
    coloured: bool = False
    placed: bool = False

    def ask(self, row: Mapping[str, Any], read: Reader) -> tuple[str, Wanted] | None:
        """Ask for what a row shows; None where this category cannot."""
        if row["layout"] not in self.layouts:
            return None
        claims = [found for found in map(read, row["captions"]) if found is not None]
        colours = {thing.concept: thing.colour for one in claims for thing in one.things}
        things = truth_of_things(row)
        if self.coloured and not all(colours.get(thing.concept) for thing in things):
            return None
        names = [
            _named(thing, one["name"], colours[thing.concept] if self.coloured else None)
            for thing, one in zip(things, row["objects"], strict=True)
        ]
        if self.placed:
            between = RELATIONS[row["layout"]][0]
        else:
            things, between = tuple(replace(thing, place=None) for thing in things), "and"
        wanted = [
            replace(thing, colour=colours[thing.concept] if self.coloured else None)
            for thing in things
        ]
        return f" {between} ".join(names), Wanted(tuple(wanted))


def _named(thing: Named, name: str, colour: str | None) -> str:
    if colour is None:
        return thing.concept if thing.count == 1 else counted(name, thing.count)
    return counted(f"{colour} {name}", thing.count)


CATEGORIES: Mapping[str, Category] = {
    "one object": Category(("single",), _objects),
    "two objects": Category(("beside", "stacked"), _objects),
    "counting": Category(("count",), _counting),
    "colours": Category(("single",), _coloured, coloured=True),
    "position": Category(("beside", "stacked"), _objects, placed=True),
    "colour with object": Category(("beside", "stacked"), _coloured, coloured=True, placed=True),
}
