# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Caption tables: the shipped ones, their lookup, and what a bad one is told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from modeling_mdm.data.captions import CaptionTable

TABLES = Path(__file__).resolve().parents[2] / "examples" / "captions"
SMALL = CaptionTable(
    labels=(("a coat", "an overcoat"), ("a bag",)), templates=("a photo of {}", "{} for sale")
)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_shipped_tables(name):
    table = CaptionTable.from_json(TABLES / f"{name}.json")
    assert table.num_classes == 10
    assert all(len(names) >= 2 for names in table.labels)
    assert len(table.templates) >= 4
    names = [n for row in table.labels for n in row]
    assert len(set(names)) == len(names)
    captions = table.all_captions()
    assert (
        len({c.casefold() for c in captions}) == len(captions) == len(names) * len(table.templates)
    )
    for caption in captions:
        assert 3 <= len(caption.split()) <= 8, caption
        for article, word in re.findall(r"\b(an?) (?!one\b)(\w)", caption):
            assert (article == "an") == (word in "aeiou"), caption


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_every_caption_names_its_class(name):
    table = CaptionTable.from_json(TABLES / f"{name}.json")
    for label in range(table.num_classes):
        for caption in table.captions_of(label):
            assert table.label_of(caption) == label
            assert table.label_of(f"  {caption.upper()}\n") == label


@pytest.mark.parametrize("text", ["", "a photo of", "a photo of a coat coat", "a photo  of a bag"])
def test_other_texts_are_not_well_formed(text):
    assert SMALL.label_of(text) is None


def test_all_captions_are_the_product():
    assert SMALL.all_captions() == [
        "a photo of a coat",
        "a coat for sale",
        "a photo of an overcoat",
        "an overcoat for sale",
        "a photo of a bag",
        "a bag for sale",
    ]


def test_draw_is_uniform_and_depends_on_the_generator_alone():
    rng = np.random.default_rng(0)
    drawn = [SMALL.draw(0, rng) for _ in range(4000)]
    counts = [drawn.count(c) for c in SMALL.captions_of(0)]
    assert sum(counts) == 4000
    assert all(abs(c - 1000) < 6 * np.sqrt(4000 * 0.25 * 0.75) for c in counts)
    again = np.random.default_rng(0)
    assert drawn == [SMALL.draw(0, again) for _ in range(4000)]


def test_json_round_trip(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(SMALL.to_dict()))
    assert CaptionTable.from_json(tmp_path / "table.json") == SMALL


def test_from_names():
    table = CaptionTable.from_names(["cat", "dog"])
    assert {table.label_of(c) for c in table.captions_of(1)} == {1}
    assert table.label_of("a photo of cat") == 0


@pytest.mark.parametrize("label", [-1, 2])
def test_unknown_class(label):
    with pytest.raises(ValueError, match=rf"label={label} .*\[0, 1\]"):
        SMALL.draw(label, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([["a coat"], ["a coat"]], ["{}"], "two sources"),
        ([["a coat"], ["A Coat"]], ["{}"], "two sources"),
        # Two classes whose names differ, and a pair of templates that hides the difference.
        ([["coat"], ["a coat"]], ["a {}", "{}"], "two sources"),
        ([["a coat", "a coat"]], ["{}"], "twice"),
        ([["a coat"]], ["a photo"], "exactly one"),
        ([["a coat"]], ["{} and {}"], "exactly one"),
        ([["a coat"]], [], "empty"),
        ([[]], ["{}"], "empty"),
        ([], ["{}"], "labels is empty"),
        ([["a coat", " "]], ["{}"], "non-empty strings"),
        (["a coat"], ["{}"], "list of non-empty strings"),
    ],
)
def test_bad_tables(labels, templates, message):
    with pytest.raises(ValueError, match=message):
        CaptionTable(labels=labels, templates=templates)


def test_bad_files(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(FileNotFoundError, match="is not a file"):
        CaptionTable.from_json(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        CaptionTable.from_json(path)
    path.write_text('{"labels": [["a"]], "template": ["{}"]}')
    with pytest.raises(ValueError, match="'labels' and 'templates'"):
        CaptionTable.from_json(path)
    path.write_text('{"labels": 3, "templates": ["{}"]}')
    with pytest.raises(ValueError, match=re.escape(str(path))):
        CaptionTable.from_json(path)
