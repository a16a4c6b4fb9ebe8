# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Soft accuracy of VQAv2, OKVQA and VizWiz, as the official evaluation computes it.

An answer counts for min(n / 3, 1) where n of nine people gave it, averaged over the ten sets of
nine that ten people make. As in the official code (its mend of March 2021), all answers are
compared in their plain form (`plain`) where people disagree, and as they are where all ten said
letter for letter the same.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

from modeling_mdm.evaluation.tables.estimates import Estimate, mean_of, require_same_ids

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = {word: str(n) for n, word in enumerate((*NUMBER_WORDS, "ten"))} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
FULL_ENTRY = 3  # people who must have given an answer for it to count in full

_WHOLE_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_an_apostrophe(word: str) -> list[str]:
    return [word[:n] + word[n + 1 :] for n, letter in enumerate(word) if letter == "'"]


# The official table knows each with one of its apostrophes missing, and turns one the other way.
CONTRACTIONS = {
    short: whole for whole in _WHOLE_CONTRACTIONS.split() for short in _without_an_apostrophe(whole)
} | {"somebody'd": "somebodyd"}


def plain(answer: str) -> str:
    """Write an answer in the plain form in which answers are compared.

    Punctuation goes, number words become digits, articles go, contractions get their apostrophe.
    An answer of punctuation alone is the empty string.
    """
    words = _without_punctuation(_on_a_line(answer)).lower().split()
    words = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _on_a_line(answer: str) -> str:
    return re.sub(r"[\n\t]", " ", answer).strip()


def _without_punctuation(answer: str) -> str:
    has_digit_comma = re.search(r"\d,\d", answer) is not None
    bare = answer
    for mark in PUNCTUATION:
        stands_apart = f"{mark} " in answer or f" {mark}" in answer
        bare = bare.replace(mark, "" if stands_apart or has_digit_comma else " ")
    return re.sub(r"\.(?!\d)", "", bare)


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Share of credit in [0, 1] of an answer among people's.

    Args:
        answer: of the model.
        references: of each person, ten as a rule.

    Raises:
        ValueError: there are fewer than two references: none is left when one is left out.
    """
    if len(references) < 2:
        raise ValueError(
            f"references has {len(references)} answers: leaving one out takes at least 2."
        )
    given, references = _on_a_line(answer), [_on_a_line(reference) for reference in references]
    if len(set(references)) > 1:
        given, references = plain(given), [plain(reference) for reference in references]
    same = [reference == given for reference in references]
    others = [sum(same) - one for one in same]
    return sum(min(1.0, count / FULL_ENTRY) for count in others) / len(others)


def mean_soft_accuracy(
    answers: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> Estimate:
    """Average over questions.

    Args:
        answers: by question id.
        references: people's, by question id.

    Raises:
        ValueError: an answer is missing, or answers no question.
    """
    require_same_ids(answers, references)
    return mean_of([soft_accuracy(answers[one], references[one]) for one in references])
