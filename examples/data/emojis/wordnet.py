# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Glosses of nouns from WordNet's database files, by the kind of thing that a noun is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .reviewed import NOT_MEANT

FILES = ("index.noun", "data.noun")
MIN_WORDS, MAX_WORDS = 3, 16
# WordNet's lexicographer files by emojibase's groups: which senses of a word can be meant.
ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PERSON, PHENOMENON, PLANT, SHAPE = (
    5,
    6,
    8,
    13,
    17,
    18,
    19,
    20,
    25,
)
SENSES: Mapping[str, frozenset[int]] = {
    "smileys-emotion": frozenset({ANIMAL, PERSON, BODY}),
    "people-body": frozenset({PERSON, BODY}),
    "animals-nature": frozenset({ANIMAL, PLANT}),
    "food-drink": frozenset({FOOD, PLANT, ARTIFACT}),
    "travel-places": frozenset({ARTIFACT, OBJECT, PHENOMENON}),
    "activities": frozenset({ARTIFACT}),
    "objects": frozenset({ARTIFACT, BODY, OBJECT}),
    "symbols": frozenset({SHAPE}),
}


@dataclass(frozen=True)
class Sense:
    """One sense of a noun: its lexicographer file and its gloss, without examples."""

    file: int
    gloss: str


class WordNet:
    """The nouns of a folder with WordNet's database files.

    Args:
        folder: holds `index.noun` and `data.noun`.

    Raises:
        FileNotFoundError: if it does not.
        ValueError: if one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        for name in FILES:
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"wordnet_dir={str(folder)!r} has no {name}: name the folder of WordNet's "
                    "database files (Debian: apt-get install wordnet-base), or an empty one to go "
                    "without glosses."
                )
        lines = (folder / FILES[0]).read_text(encoding="utf-8").splitlines()
        self._lines = {line.partition(" ")[0]: line for line in lines}
        self._data = (folder / FILES[1]).read_bytes()

    def senses(self, noun: str) -> list[Sense]:
        """Return the senses of a noun, the most frequent first; none of one that is unknown."""
        words = self._lines.get(noun.lower().replace(" ", "_"), "").split()
        return [self._sense(int(at)) for at in words[-int(words[2]) :]] if words else []

    def _sense(self, at: int) -> Sense:
        line = self._data[at : self._data.find(b"\n", at)].decode("utf-8")
        fields, _, gloss = line.partition(" | ")
        if not gloss or not line.startswith(f"{at:08d} "):
            raise ValueError(f"data.noun has no synset at {at}: it does not belong to index.noun.")
        return Sense(int(fields.split()[1]), _shortened(gloss))

    def gloss(self, noun: str, group: str) -> str | None:
        """Return what a noun means: its most frequent sense that fits a group of emojibase's.

        None where no sense fits, the gloss is too long to be a caption, or it was found wrong.
        """
        best = next((s for s in self.senses(noun) if s.file in SENSES.get(group, ())), None)
        if best is None or noun in NOT_MEANT:
            return None
        return best.gloss if MIN_WORDS <= len(best.gloss.split()) <= MAX_WORDS else None


def _shortened(gloss: str) -> str:
    """Cut examples, remarks in brackets and what follows a semicolon."""
    text = re.sub(r"\([^()]*\)", "", gloss.split('"')[0])
    text = re.split(r"[;:]|--", text)[0]
    return " ".join(text.replace(" ,", ",").split()).strip(" ,.")


def read_wordnet(folder: Path, names: Sequence[str] = FILES) -> WordNet | None:
    """Read WordNet, or nothing where a folder is missing or holds none of its files."""
    return WordNet(folder) if any((folder / name).is_file() for name in names) else None
