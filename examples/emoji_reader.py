# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads captions of the emoji world: which things they name, how many, where, in what style.

The reverse of `data/emojis/captions.py`: what a model wrote is held against the same grammar and
the names of the training split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.emojis.captions import PLACED, RELATIONS, STYLE_TEMPLATES
from data.emojis.drawing import BACKGROUNDS, COLOURS
from data.emojis.scenes import MAX_COUNT
from data.emojis.words import NUMBERS, counted, is_countable, words_of

_GROUND = re.compile(rf",? on an? ({'|'.join(BACKGROUNDS)}) background$")
_COLOURED = re.compile(rf"^(\w+) ({'|'.join(COLOURS)}) (.+)$")
# Which of two things a relation puts first, and where the two lie.
_ORDERS = {
    relation: (swapped, places)
    for name, places in (("beside", ("left", "right")), ("stacked", ("above", "below")))
    for swapped, relation in enumerate(RELATIONS[name])
}


@dataclass(frozen=True)
class Named:
    """A thing that a caption names: its concept, how many, where and of which colour if said."""

    concept: str
    count: int = 1
    place: str | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Claims:
    """What a caption says. `things` is empty where it names none, as keywords and glosses do."""

    things: tuple[Named, ...] = ()
    style: str | None = None
    background: str | None = None

    @property
    def count(self) -> int:
        """How many things there are."""
        return sum(thing.count for thing in self.things)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts, in order of their names."""
        return tuple(sorted(thing.concept for thing in self.things))


class CaptionReader:
    """Reads captions by the names, styles, keywords and glosses of rows of the set.

    Args:
        rows: with `captions`, `style` and `objects`, as the training split has them.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.styles: set[str] = set()
        self.words: set[str] = set()
        self.captions: set[str] = set()
        self._names: dict[str, Named] = {}
        self._meanings: set[str] = set()  # glosses as they are
        self._keywords: set[str] = set()
        for row in rows:
            self.styles.add(row["style"])
            for thing in row["objects"]:
                self._add_names(thing["concept"], thing["name"])
            self.captions |= {*row["captions"]}
        styles = "|".join(map(re.escape, sorted(self.styles)))
        self._styles = [
            re.compile(template.replace("{}", "(.+)", 1).replace("{}", f"({styles})"))
            for template in STYLE_TEMPLATES
        ]
        for caption in self.captions:
            self.words |= words_of(caption)
            if not self._claims(caption):
                self._meanings.add(caption)
                self._keywords |= {*caption.split(", ")} if ", " in caption else set()

    def _add_names(self, concept: str, name: str) -> None:
        if concept in self._names:
            return
        self._names[concept] = Named(concept)
        if is_countable(name):
            for count in range(2, MAX_COUNT + 1):
                self._names[counted(name, count)] = Named(concept, count)

    def read(self, caption: str) -> Claims | None:
        """Read a caption; None where no grammar of the set allows it."""
        if (claims := self._claims(caption)) is not None:
            return claims
        keywords = caption.split(", ")
        known = len(keywords) > 1 and {*keywords} <= self._keywords
        return Claims() if known or caption in self._meanings else None

    def has_known_words(self, caption: str) -> bool:
        """Whether every word of a caption stands in some caption of the rows, and it has any."""
        return bool(words := words_of(caption)) and words <= self.words

    def _claims(self, caption: str) -> Claims | None:
        background, said = None, caption
        if match := _GROUND.search(caption):
            background, said = match[1], caption[: match.start()]
        for inner, style in self._without_style(said):
            if things := self._things(inner):
                return Claims(things, style, background)
        return None

    def _without_style(self, said: str) -> Iterator[tuple[str, str | None]]:
        for template in self._styles:
            if match := template.fullmatch(said):
                yield match[1], match[2]
        yield said, None

    def _things(self, said: str) -> tuple[Named, ...]:
        """Read what stands before style and background; () where nothing is read."""
        if (thing := self._thing(said)) is not None:
            return (thing,)
        for place, words in PLACED.items():
            if (thing := self._thing(said.removesuffix(f" {words}"))) and said.endswith(words):
                return (replace(thing, place=place),)
        for relation, (swapped, places) in _ORDERS.items():
            if pair := self._pair(said, f" {relation} "):
                first, second = reversed(pair) if swapped else pair
                return replace(first, place=places[0]), replace(second, place=places[1])
        return self._pair(said, " and ")

    def _pair(self, said: str, between: str) -> tuple[Named, ...]:
        """Split at some `between` into two things; names may hold the word too."""
        parts = said.split(between)
        for cut in range(1, len(parts)):
            first = self._thing(between.join(parts[:cut]))
            second = self._thing(between.join(parts[cut:]))
            if first and second:
                return first, second
        return ()

    def _thing(self, said: str) -> Named | None:
        if said in self._names:
            return self._names[said]
        if match := _COLOURED.match(said):  # "an orange boat" is "a boat" with its colour
            before, colour, name = match.groups()
            articles = ("a", "an") if before in ("a", "an") else (before,)
            found = (self._names.get(f"{article} {name}") for article in articles)
            thing = next(filter(None, found), None)
            if thing and (before in NUMBERS or thing.count == 1):
                return replace(thing, colour=colour)
        return None


def truth_of_things(row: Mapping[str, Any]) -> tuple[Named, ...]:
    """Say of a row what a caption could name."""
    return tuple(
        Named(thing["concept"], thing["count"], thing["place"] or None, thing["colour"])
        for thing in row["objects"]
    )
