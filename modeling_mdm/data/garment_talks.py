# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations about garments, made from the labels of Fashion-MNIST: words, pictures and both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.data.questions import (
    GARMENTS,
    KINDS,
    WHAT,
    WHICH,
    YES_OR_NO,
    FashionQuestions,
    as_item,
    as_part,
)

# Each kind of conversation, and how many pictures it shows at most, the one to be drawn included.
PICTURES = {"yes or no": 1, "what": 1, "which": 2, "words": 0, "draw": 1, "both": 1, "turns": 3}
TALK_KINDS = tuple(PICTURES)

FOOTWEAR = YES_OR_NO["is this footwear?"]
DRAW = ("draw {}", "draw me {}", "please draw {}", "show me {}", "can you draw {}?")
BOTH = (
    *("draw {} and say what it is", "draw {} and describe it", "show me {} with a caption"),
    *("draw {} with a caption", "please draw {} and write a caption"),
)
ANOTHER = ("draw another one", "draw one more", "show me another one")
ANOTHER_BOTH = ("draw another one and say what it is", "show me another one with a caption")
DRAW_ONE = "draw one"
DRAWING_TURNS = ("another", "another both", "other")
WHAT_IS_IT, IS_IT, IS_ELSE, ELSE = (
    "what is it?",
    "is it {}?",
    "what else is {} called?",
    "what else is it called?",
)
IS_FOOTWEAR, IS_SAME, WHICH_FOOTWEAR = (
    *("is {} footwear?", "is {} {}?"),
    "which of these two is footwear, {} or {}?",
)
BOOT, BOOTS = "a boot", 9  # what any of them is called, and their class
WORD_QUESTIONS = (IS_FOOTWEAR, IS_SAME, IS_ELSE, WHICH_FOOTWEAR)
# What may come before a conversation, and the share of conversations in which it does.
SYSTEM, SYSTEM_SHARE = ("answer with one word", "be brief", "talk about clothes"), 0.1
CAPTION_SHARE = 0.25  # of "draw": requests that are a caption and nothing else

# Whether a name fits another class of the table may be doubted: every t-shirt is a shirt. And of
# these classes both names say the same, where every handbag is a bag and not the other way round.
DOUBTFUL, SYNONYMS = ({0, 6},), (1, 2, 5, 9)


class FashionTalks(FashionQuestions):
    """One conversation a picture, as `messages`; which depends on (seed, epoch, index) alone.

    Kinds beside those of `FashionQuestions`: "words" (a question about garments without a picture),
    "draw" (a picture is asked for), "both" (a picture and its caption) and "turns" (two or three
    exchanges about one garment after another). Half of all answers by yes or no are yes.

    Args:
        pictures: pictures with labels of the ten classes.
        captions: two names or more of every class, and templates.
        seed: seed of the conversations, >= 0.
        weights: how often each kind is drawn, beside the others; one that is not named is never
            drawn. None for equally often.

    Raises:
        ValueError: as `FashionQuestions`, or if a kind is unknown or a class has one name only.
    """

    kinds = TALK_KINDS

    def __init__(
        self,
        pictures: PictureDataset,
        captions: CaptionTable,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if unknown := sorted(set(weights or {}) - set(TALK_KINDS)):
            raise ValueError(f"weights names {unknown}: the kinds are {', '.join(TALK_KINDS)}.")
        if len(captions.labels) != len(GARMENTS) or min(map(len, captions.labels)) < 2:
            raise ValueError(
                f"captions has {[len(names) for names in captions.labels]} names by class: these "
                f"conversations need two or more of each of {len(GARMENTS)} classes."
            )
        given = None if weights is None else [float(weights.get(k, 0)) for k in TALK_KINDS]
        super().__init__(pictures, seed, captions=captions, weights=given)
        self.names = captions.labels

    def _ask(self, kind: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if kind in KINDS:
            item = super()._ask(kind, index, rng)
        elif kind == "words":
            item = as_item(kind, [], *self._words(rng))
        elif kind == "turns":
            item = {"kind": kind, "messages": list(self._turns(index, rng))}
        else:
            image, label = self._shown(index)
            item = as_item(kind, [], *self._drawn(kind, image, label, rng))
        if rng.random() < SYSTEM_SHARE:
            prompt = {"role": "system", "content": _one(SYSTEM, rng)}
            item["messages"] = [prompt, *item["messages"]]
        return item

    def _drawn(
        self, kind: str, image: Any, label: int, rng: np.random.Generator
    ) -> tuple[str, list[dict[str, Any]]]:
        """Ask for a picture of a class, or for both; give the request and the answer."""
        name = _one(self.names[label], rng)
        if kind == "both":
            return _one(BOTH, rng).format(name), self._with_caption(image, label, rng)
        if rng.random() < CAPTION_SHARE:
            return self.captions.draw(label, rng), [as_part(image)]
        return _one(DRAW, rng).format(name), [as_part(image)]

    def _with_caption(self, image: Any, label: int, rng: np.random.Generator) -> list[Any]:
        return [{"type": "text", "text": self.captions.draw(label, rng)}, as_part(image)]

    def _words(self, rng: np.random.Generator) -> tuple[str, str]:
        """Ask something that is known without a picture; give the question and the answer."""
        question, answer = _one(WORD_QUESTIONS, rng), bool(rng.integers(2))
        if question == IS_SAME:
            return question.format(*self._pair(answer, rng)), _yes(answer)
        label = _class(rng, answer)
        name = _one(self.names[label], rng)
        if question == IS_FOOTWEAR:
            return question.format(name), _yes(answer)
        if question == WHICH_FOOTWEAR:
            other = _one(self.names[_class(rng, not answer)], rng)
            return question.format(name, other), name if answer else other
        names = self.names[int(rng.integers(len(self.names)))][:2]
        asked = int(rng.integers(2))
        return question.format(names[asked]), names[1 - asked]

    def _pair(self, same: bool, rng: np.random.Generator) -> tuple[str, str]:
        """Draw two names, of which the second says what the first is, or something else."""
        label = int(rng.integers(len(self.names)))
        if same:
            while label == 0:  # a top with short sleeves may be a blouse
                label = int(rng.integers(len(self.names)))
            is_turned = label in SYNONYMS and bool(rng.integers(2))
            first, second = self.names[label][:2]
            return (first, second) if is_turned else (second, first)
        others = [n for n in range(len(self.names)) if n != label and {n, label} not in DOUBTFUL]
        other = int(others[int(rng.integers(len(others)))])
        return _one(self.names[label], rng), self.names[other][0]

    def _turns(self, index: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Give the messages of two or three exchanges."""
        image, label = self._shown(index)
        known, shown = set(DRAWING_TURNS), [index]
        start = _one(("what", "is", "another", "draw", "both", "words"), rng)
        if start == "words":
            answer = bool(rng.integers(2))
            label, shown = _class(rng, answer), []
            question = IS_FOOTWEAR.format(_one(self.names[label], rng))
            yield from _exchange([], question, _yes(answer))
            yield from _exchange([], DRAW_ONE, [as_part(self._another(label, shown, rng))])
            known |= {"what", "is"}
        elif start in ("draw", "both"):
            yield from _exchange([], *self._drawn(start, image, label, rng))
            known |= {"is"} if start == "both" else {"what", "is"}
        elif start == "another":
            drawn = as_part(self._another(label, shown, rng))
            yield from _exchange([image], _one(ANOTHER, rng), [drawn])
            known |= {"what", "is"}
        else:
            yield from _exchange([image], *self._about(start, label, rng))
            known |= {"else", "is"} if start == "what" else {"what"}
        for _ in range(1 + int(rng.integers(2)) - (start == "words")):
            if len(shown) == PICTURES["turns"]:
                known -= set(DRAWING_TURNS)
            chosen = _one(sorted(known), rng)
            known.discard(chosen)
            if chosen in ("what", "is", "else"):
                yield from _exchange([], *self._about(chosen, label, rng))
                known |= {"else"} if chosen == "what" else set()
                continue
            known -= {"else"}
            if chosen == "other":
                label = (label + 1 + int(rng.integers(len(self.names) - 1))) % len(self.names)
            image = self._another(label, shown, rng)
            if chosen == "other":
                yield from _exchange([], *self._drawn("draw", image, label, rng))
            elif chosen == "another":
                yield from _exchange([], _one(ANOTHER, rng), [as_part(image)])
            else:
                answer = self._with_caption(image, label, rng)
                yield from _exchange([], _one(ANOTHER_BOTH, rng), answer)

    def _about(self, kind: str, label: int, rng: np.random.Generator) -> tuple[str, str]:
        """Ask about the garment that a conversation is about."""
        if kind == "what":
            return _one((WHAT, WHAT_IS_IT), rng), GARMENTS[label]
        if kind == "else":
            return ELSE, self.names[label][1]
        answer = bool(rng.integers(2))
        # Three classes of ten are footwear: as often yes as no.
        if (label in FOOTWEAR) == answer and rng.random() < (0.35 if answer else 0.15):
            return IS_IT.format("footwear"), _yes(answer)
        fits = {name: n for n, own in enumerate(self.names) for name in own} | {BOOT: BOOTS}
        names = [name for name, n in fits.items() if (n == label) == answer]
        return IS_IT.format(_one(names, rng)), _yes(answer)

    def _another(self, label: int, shown: list[int], rng: np.random.Generator) -> Any:
        """Draw a picture of a class that was not shown, and note that it was.

        Raises:
            ValueError: if there is none that can be read.
        """
        (fits,) = np.nonzero(self.labels == label)
        for index in map(int, rng.permutation(fits)):
            image, own = self._shown(index)
            if own == label and index not in shown:
                shown.append(index)
                return image
        raise ValueError(f"pictures has too few of class {label} for a conversation about them.")


def _one(choices: Any, rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _class(rng: np.random.Generator, is_footwear: bool) -> int:
    return int(_one([n for n in range(len(GARMENTS)) if (n in FOOTWEAR) == is_footwear], rng))


def _exchange(images: list[Any], question: str, answer: Any) -> list[dict[str, Any]]:
    return as_item("", images, question, answer)["messages"]


def all_sentences(captions: CaptionTable) -> list[str]:
    """List every phrasing with every name, as a vocabulary is made of."""
    names = [name for names in captions.labels for name in names]
    phrasings = (*YES_OR_NO, WHAT, WHICH, *DRAW, *BOTH, *ANOTHER, *ANOTHER_BOTH, DRAW_ONE)
    phrasings += (
        WHAT_IS_IT,
        IS_IT,
        IS_IT.format("footwear"),
        IS_IT.format(BOOT),
        ELSE,
        *WORD_QUESTIONS,
    )
    filled = [text.format(name, name) for text in phrasings for name in names]
    return [*dict.fromkeys(filled), "yes", "no", "first", "second", *names, *SYSTEM]
