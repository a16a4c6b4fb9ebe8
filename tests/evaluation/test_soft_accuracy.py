# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""VQA's soft accuracy: the official code's stored outputs, and cases worked out by hand."""

import json
from pathlib import Path

import pytest

from modeling_mdm.evaluation.tables.soft_accuracy import (
    CONTRACTIONS,
    mean_soft_accuracy,
    plain,
    soft_accuracy,
)

OFFICIAL = json.loads((Path(__file__).parent / "official" / "soft_accuracy.json").read_text())


@pytest.mark.parametrize("answer, references, accuracy", OFFICIAL["accuracies"])
def test_as_the_official_code(answer, references, accuracy):
    assert soft_accuracy(answer, references) == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("answer, expected", OFFICIAL["plain"])
def test_the_plain_form_of_the_official_code(answer, expected):
    assert plain(answer) == expected


@pytest.mark.parametrize("count, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_so_many_of_ten_people_gave_the_answer(count, accuracy):
    """The table that the data set's authors publish: leaving one of them out, min(n / 3, 1)."""
    others = [f"other {n}" for n in range(10 - count)]
    assert soft_accuracy("red", ["red"] * count + others) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    "answer, expected",
    {
        "The dog": "dog",
        "Two dogs": "2 dogs",
        "none": "0",
        "dont know": "don't know",
        "yes.": "yes",
        "3.5": "3.5",
        "1,000": "1000",
        "red, white": "red white",
        "right/left": "right left",
        "wont": "won't",
        "shouldnt've": "shouldn't've",
        "somebody'd": "somebodyd",
        " a\tbig\nbus ": "big bus",
        "": "",
        "?!": "",
        "the": "",
    }.items(),
)
def test_the_plain_form(answer, expected):
    assert plain(answer) == expected


def test_the_table_of_contractions_is_the_official_one():
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["theyd've"] == CONTRACTIONS["they'dve"] == "they'd've"
    assert not {"lets", "shes", "were", "hell", "well", "ill", "id"} & set(CONTRACTIONS)


def test_what_all_ten_said_letter_for_letter_is_compared_as_it_is():
    assert soft_accuracy("The dog", ["The dog"] * 10) == 1
    assert soft_accuracy("dog", ["The dog"] * 10) == 0
    assert soft_accuracy("dog", ["The dog"] * 9 + ["a dog"]) == 1


def test_an_answer_that_says_nothing():
    assert soft_accuracy("", ["red"] * 5 + ["blue"] * 5) == 0
    assert soft_accuracy("?!", ["red"] * 5 + ["..."] * 5) == 1  # so did they
    with pytest.raises(ValueError, match="references has 1 answers"):
        soft_accuracy("red", ["red"])


def test_the_mean_and_its_error():
    references = {7: ["red"] * 10, 8: ["blue"] * 10, 9: ["red"] * 2 + ["x"] * 8}
    found = mean_soft_accuracy({8: "red", 7: "red", 9: "red"}, references)
    assert found.value == pytest.approx((1 + 0 + 0.6) / 3) and found.num_items == 3
    variance = ((1 - 1.6 / 3) ** 2 + (1.6 / 3) ** 2 + (0.6 - 1.6 / 3) ** 2) / 2
    assert found.standard_error == pytest.approx((variance / 3) ** 0.5)


def test_missing_and_surplus_answers_are_named():
    references = {7: ["red"] * 10, 8: ["blue"] * 10}
    with pytest.raises(ValueError, match="answers has none for 8: give one for every item"):
        mean_soft_accuracy({7: "red"}, references)
    with pytest.raises(ValueError, match="answers has 9, which nobody asked for"):
        mean_soft_accuracy({7: "red", 8: "red", 9: "red"}, references)
