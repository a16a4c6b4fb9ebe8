# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The world: all concepts, how they are drawn, what they mean, and which split may show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from .captions import TEMPLATE_WORDS
from .drawing import BACKGROUNDS, NothingDrawnError, draw
from .names import Concept, codes_by_name, icons_of, read_concepts
from .scenes import (
    Drawing,
)
from .sources import Sources
from .splits import (
    TRAIN,
    choose_held_out,
    dice,
    held_out_words,
    share_of,
    split_of_gloss,
    split_pairs,
)
from .wordnet import WordNet
from .words import words_of

MAX_UNDRAWN = 0.01  # share of the icons

Progress = Callable[[Iterable, str], Iterable]  # type: ignore[type-arg]


@dataclass
class World:
    """All that is drawn, and how it is split.

    Args:
        concepts: by code, those that are drawn.
        drawings: by (code, style).
        glosses: by code.
        seed: of what is drawn by lot.
        undrawn: names of the icons that do not draw.
    """

    concepts: Mapping[str, Concept]
    drawings: Mapping[tuple[str, str], Sequence[Drawing]]
    glosses: Mapping[str, str]
    seed: int = 0
    undrawn: Sequence[str] = ()

    @cached_property
    def styles(self) -> list[str]:
        """The words of all styles."""
        return list(dict.fromkeys(style for _, style in self.drawings))

    @cached_property
    def held_out(self) -> frozenset[str]:
        """The codes of the concepts that are never seen."""
        drawn: dict[str, set[str]] = {}
        for code, style in self.drawings:
            drawn.setdefault(code, set()).add(style)
        reserved = words_of(" ".join([TEMPLATE_WORDS, *self.styles, *BACKGROUNDS]))
        return choose_held_out(self.concepts.values(), drawn, reserved)

    @cached_property
    def forbidden(self) -> frozenset[str]:
        """The words that no training text may hold."""
        return held_out_words(self.concepts, self.held_out)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], str]:
        """The split of each (code, style)."""
        return split_pairs(self.drawings, self.held_out)

    def rng(self, *words: str) -> Random:
        """Return the dice of one item, which depend on the seed and its name alone."""
        return dice(self.seed, *words)

    def gloss(self, code: str, split: str) -> str | None:
        """Return what a concept means, where its gloss may be read in a split."""
        gloss = self.glosses.get(code)
        if gloss is None or split_of_gloss(code, self.held_out) not in (TRAIN, split):
            return None
        return None if split == TRAIN and words_of(gloss) & self.forbidden else gloss


def read_world(
    sources: Sources,
    wordnet: WordNet | None,
    seed: int,
    progress: Progress,
    limit: int | None = None,
) -> World:
    """Draw all icons whose meaning is known.

    Args:
        sources: icons and names.
        wordnet: glosses; None to go without.
        seed: of what is drawn by lot.
        progress: wraps what takes long, with a word for it.
        limit: draw this many concepts only, spread over all.

    Raises:
        ValueError: if more than 1 % of the icons do not draw.
    """
    concepts = read_concepts(sources.names)
    if limit is not None:
        kept = sorted(concepts, key=lambda code: share_of("limit", code))[:limit]
        concepts = {code: concept for code, concept in concepts.items() if code in {*kept}}
    known = codes_by_name(sources)
    wanted = [
        (concepts[code], style, number, name)
        for style in sources.icon_sets
        for code, names in icons_of(sources, style, known).items()
        if code in concepts
        for number, name in enumerate(names)
    ]
    drawings: dict[tuple[str, str], list[Drawing]] = {}
    undrawn: list[str] = []
    for concept, style, number, name in progress(wanted, "icons"):
        try:
            pixels = draw(sources.icon_sets[style].icons[name])
        except NothingDrawnError as error:
            undrawn.append(f"{style} {name}: {error}")
            continue
        drawing = Drawing(concept, style, number, pixels)
        drawings.setdefault((concept.code, style), []).append(drawing)
    if len(undrawn) > MAX_UNDRAWN * len(wanted) or not drawings:
        listed = "".join(f"\n  {line}" for line in undrawn[:5])
        raise ValueError(
            f"{len(undrawn)} of {len(wanted)} icons do not draw, more than {MAX_UNDRAWN:.0%}: is "
            f"this the resvg-py of constraints.txt?{listed}"
        )
    seen = {code for code, _ in drawings}
    drawn = {code: concept for code, concept in concepts.items() if code in seen}
    glosses = {} if wordnet is None else _glosses(drawn, wordnet)
    return World(drawn, drawings, glosses, seed, undrawn)


def _glosses(concepts: Mapping[str, Concept], wordnet: WordNet) -> dict[str, str]:
    found = {code: wordnet.gloss(concept.name, concept.group) for code, concept in concepts.items()}
    return {code: gloss for code, gloss in found.items() if gloss is not None}
