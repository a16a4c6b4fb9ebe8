# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures of captions: words as Stanford cuts them, and figures worked out by hand."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest

from modeling_mdm.evaluation.tables import caption_measures
from modeling_mdm.evaluation.tables.caption_measures import caption_figures, has_java
from modeling_mdm.evaluation.tables.ptb_tokens import ptb_tokens

OFFICIAL = json.loads((Path(__file__).parent / "official" / "ptb_tokens.json").read_text())
PEOPLE = {
    1: ["A man rides a horse.", "a man on a brown horse"],
    2: ["Two dogs play in the snow", "dogs playing with the ball in the snow", "A man's two dogs!"],
    3: ["a red bus on the street"],
}
SAID = {1: "a man rides a brown horse", 2: "the dogs play play in snow", 3: "A red bus."}


@pytest.fixture(autouse=True)
def needs_library(request):
    if "tokenized" not in request.node.name:
        reason = 'needs pycocoevalcap: pip install "modeling-mdm[eval-text]"'
        pytest.importorskip("pycocoevalcap", reason=reason)


@pytest.mark.parametrize("caption, expected", OFFICIAL["captions"])
def test_tokenized_as_by_stanford(caption, expected):
    assert " ".join(ptb_tokens(caption)) == expected


@pytest.mark.parametrize("caption", ["", "  ", "...", "!?.,", "\n"])
def test_tokenized_to_nothing_or_marks(caption):
    assert not {*ptb_tokens(caption)} - {"!?"}


def cider_d(said, people, n_max=4, sigma=6.0):
    """By the paper's formula, in float64: tf-idf cosines, clipped, with a penalty of length.

    COCO's code takes the number of pairs of neighbours as the length, and so does this.
    """

    def grams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def seen_in(gram):
        n = len(gram)
        return sum(any(gram in grams(words, n) for words in some) for some in people.values())

    def weights(words, n):
        return {
            gram: count * (math.log(len(people)) - math.log(max(1, seen_in(gram))))
            for gram, count in grams(words, n).items()
        }

    def similarity(words, others, n):
        mine, theirs = weights(words, n), weights(others, n)
        norms = [math.sqrt(sum(w * w for w in own.values())) for own in (mine, theirs)]
        dot = sum(min(w, theirs[gram]) * theirs[gram] for gram, w in mine.items() if gram in theirs)
        pairs = max(0, len(words) - 1) - max(0, len(others) - 1)
        penalty = math.exp(-(pairs**2) / (2 * sigma**2))
        return dot / (norms[0] * norms[1]) * penalty if all(norms) else 0.0

    return {
        one: 1000
        * sum(similarity(said[one], others, n) for n in range(1, n_max + 1) for others in some)
        / (n_max * len(some))
        for one, some in people.items()
    }


def words_of(said, people):
    return (
        {one: ptb_tokens(caption) for one, caption in said.items()},
        {one: [ptb_tokens(caption) for caption in some] for one, some in people.items()},
    )


def test_cider_d_worked_out():
    found = caption_figures(SAID, PEOPLE, java=False)
    expected = cider_d(*words_of(SAID, PEOPLE))
    assert min(expected.values()) > 10
    assert found.cider_by_item == pytest.approx(expected, rel=1e-9)
    assert found.cider.value == pytest.approx(sum(expected.values()) / 3, rel=1e-9)
    assert found.cider.num_items == 3 and found.tokenizer == "python"


def test_bleu_and_rouge_l_by_hand():
    people = {1: ["a man rides a horse", "the man rides"], 2: ["two dogs"]}
    found = caption_figures({1: "a man rides", 2: "two dogs"}, people, java=False)
    # All words and pairs are someone's, nothing has four words; 5 words against 3 + 2 of people.
    assert found.bleu[:2] == pytest.approx((100, 100), abs=1e-6)
    # Of picture 1: 3 of 3 words, and 3 of 5 or 2 of 3 of people's; recall 2 / 3, beta 1.2.
    beta, recall = 1.2**2, 2 / 3
    one = (1 + beta) * recall / (recall + beta)
    assert found.rouge_l.value == pytest.approx(100 * (one + 1) / 2)
    short = caption_figures({1: "a", 2: "two"}, people, java=False)
    assert short.bleu[0] == pytest.approx(100 * math.exp(1 - 5 / 2), rel=1e-6)


def test_peoples_own_words_are_best():
    own = {one: some[0] for one, some in PEOPLE.items()}
    best, worse = (caption_figures(said, PEOPLE, java=False) for said in (own, SAID))
    assert best.cider.value > worse.cider.value and best.rouge_l.value > worse.rouge_l.value


@pytest.mark.parametrize("nothing", ["", "...", "\n"])
def test_a_caption_without_words_scores_0(nothing):
    found = caption_figures(SAID | {2: nothing}, PEOPLE, java=False)
    assert found.cider_by_item[2] == 0 and found.cider_by_item[1] > 0
    none = caption_figures(dict.fromkeys(PEOPLE, nothing), PEOPLE, java=False)
    assert none.cider.value == none.rouge_l.value == 0
    assert none.bleu == pytest.approx((0, 0, 0, 0), abs=1e-6)


def test_without_java(monkeypatch):
    monkeypatch.setattr(caption_measures, "has_java", lambda: False)
    found = caption_figures(SAID, PEOPLE)
    assert found.tokenizer == "python" and found.meteor is None


@pytest.mark.skipif(not has_java(), reason="METEOR and Stanford's tokenizer are Java")
@pytest.mark.slow
def test_with_java():
    found, python = caption_figures(SAID, PEOPLE), caption_figures(SAID, PEOPLE, java=False)
    assert found.tokenizer == "stanford" and found.cider == python.cider
    assert 0 < found.meteor < 100 and python.meteor is None


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="captions has none for 3"):
        caption_figures({1: "a", 2: "b"}, PEOPLE)
    with pytest.raises(ValueError, match="captions of 1 pictures have no CIDEr-D"):
        caption_figures({1: "a"}, {1: ["a"]})
    with pytest.raises(ValueError, match="references has no caption of 2"):
        caption_figures({1: "a", 2: "a"}, {1: ["a"], 2: []})


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ImportError, match="pycocoevalcap, which comes with the extra `eval-text`"):
        caption_figures(SAID, PEOPLE, java=False)
