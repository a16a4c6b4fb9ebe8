# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which concepts are held out, which drawings are for tests, and which combinations of objects.

All is decided by hashes of names, so that one more emoji moves no other from split to split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations, product
from random import Random

from .drawing import COLOURS, nearest_error
from .names import Concept
from .scenes import Drawing, backgrounds_for
from .sources import SHARED_DRAWINGS
from .words import plural, words_of

TRAIN, TEST, HELD_OUT = "train", "test", "held_out"
SPLITS = (TRAIN, TEST, HELD_OUT)
NUM_HELD_OUT = 146
MIN_STYLES = 4  # in which a concept is drawn that is held out
NEAR_COPY = 0.02  # mean squared error in [-1, 1] up to which two pictures are one
TEST_PAIRS, TEST_COMBINATIONS, TEST_GLOSSES = 0.6, 0.1, 0.08

# Pairs of (concept's code, style), by split.
Pairs = Mapping[tuple[str, str], str]


def dice(seed: int, *words: str) -> Random:
    """Return the dice of something by its name: they depend on it and the seed alone."""
    return Random(f"{seed} {' '.join(words)}")


def share_of(*words: str) -> float:
    """Return a number in [0, 1) that depends on words alone."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def choose_held_out(
    concepts: Iterable[Concept], styles: Mapping[str, Collection[str]], reserved: Collection[str]
) -> frozenset[str]:
    """Choose the concepts that are never seen, among those that have their words alone.

    Args:
        concepts: all of them.
        styles: by a concept's code, the styles in which it is drawn.
        reserved: words of templates, which no training caption can be without.

    Returns:
        their codes.
    """
    concepts = list(concepts)
    named: dict[str, int] = {}
    for concept in concepts:
        for word in forms(concept.name):
            named[word] = named.get(word, 0) + 1
    never = {*reserved, *COLOURS}
    fitting = [
        c
        for c in concepts
        if c.is_object
        and len(styles.get(c.code, ())) >= MIN_STYLES
        and not forms(c.name) & never
        and all(named[word] == 1 for word in forms(c.name))
    ]
    fitting.sort(key=lambda c: share_of("held out", c.code))
    return frozenset(c.code for c in fitting[: min(NUM_HELD_OUT, len(fitting) // 2)])


def forms(name: str) -> set[str]:
    """Return the words of a name, each in the singular and the plural."""
    words = words_of(name)
    return words | words_of(plural(name)) | {form for w in words for form in words_of(plural(w))}


def held_out_words(concepts: Mapping[str, Concept], held_out: Collection[str]) -> frozenset[str]:
    """Return the words that no training text may hold."""
    return frozenset().union(*(forms(concepts[code].name) for code in held_out))


def split_pairs(
    drawings: Mapping[tuple[str, str], Sequence[Drawing]], held_out: Collection[str]
) -> dict[tuple[str, str], str]:
    """Give each pair of a concept and a style its split.

    Styles whose drawings of a concept are alike stay together: those that share theirs by design,
    and those that are near copies on a background on which both are seen.
    """
    by_concept: dict[str, list[str]] = {}
    for code, style in drawings:
        by_concept.setdefault(code, []).append(style)
    found: dict[tuple[str, str], str] = {}
    for code, styles in by_concept.items():
        if code in held_out:
            found |= {(code, style): HELD_OUT for style in styles}
            continue
        groups = alike({style: drawings[code, style] for style in styles})
        chosen: Collection[str] = ()
        if len(groups) > 1 and share_of("test", code) < TEST_PAIRS:
            groups.sort(key=lambda group: share_of("test", code, *group))
            chosen = next((group for group in groups if 2 * len(group) <= len(styles)), ())
        found |= {(code, style): TEST if style in chosen else TRAIN for style in styles}
    return found


def alike(drawings: Mapping[str, Sequence[Drawing]]) -> list[list[str]]:
    """Group the styles of one concept whose drawings are alike, directly or by way of others."""
    groups = {style: {style} for style in drawings}

    def join(first: str, second: str) -> None:
        if groups[first] is not groups[second]:
            groups[first] |= groups[second]
            for style in groups[second]:
                groups[style] = groups[first]

    for first, second in SHARED_DRAWINGS:
        if first in groups and second in groups:
            join(first, second)
    for first, second in combinations(sorted(drawings), 2):
        if groups[first] is groups[second]:
            continue
        both = product(drawings[first], drawings[second])
        if any(error_of(x, y) <= NEAR_COPY * 1.05 for x, y in both):  # pixels are rounded later
            join(first, second)
    return [sorted(group) for group in {id(g): g for g in groups.values()}.values()]


def error_of(first: Drawing, second: Drawing) -> float:
    """Compare two drawings, alone, on the backgrounds on which both are seen."""
    return nearest_error(first.pixels, second.pixels, backgrounds_for([first, second]))


def split_of_combination(combination: Sequence[str], held_out: Collection[str]) -> str:
    """Return the split of a combination of objects."""
    if any(code in held_out for code in combination):
        return HELD_OUT
    return TEST if share_of("combination", *combination) < TEST_COMBINATIONS else TRAIN


def split_of_gloss(code: str, held_out: Collection[str]) -> str:
    """Return the split in which a concept's gloss may be read."""
    if code in held_out:
        return HELD_OUT
    return TEST if share_of("gloss", code) < TEST_GLOSSES else TRAIN
