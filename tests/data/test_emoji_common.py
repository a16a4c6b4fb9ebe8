# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The part of an emoji world with its commonest things: a subset, and a set like the whole."""

import shutil
from collections import Counter

import datasets
import emoji_common
import emoji_talks
import pytest
import tiny_emojis

for library in ("resvg_py", "inflect"):
    pytest.importorskip(library, reason='needs `pip install "modeling-mdm[emoji]"`')

COUNT = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_emojis.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def part(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("part") / "common"
    emoji_common.run(emoji_common.CommonArguments(str(made), str(folder), COUNT))
    return folder


def rows_of(folder, split):
    rows = datasets.load_dataset(str(folder), split=split).cast_column(
        "image", datasets.Image(decode=False)
    )
    return {row["id"]: row for row in rows}


def concepts_of(row):
    return {thing["concept"] for thing in row["objects"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_pictures_of_the_commonest_things_are_kept_and_no_others(made, part):
    whole = rows_of(made, "train")
    shown = Counter(concept for row in whole.values() for concept in concepts_of(row))
    kept = {concept for row in rows_of(part, "train").values() for concept in concepts_of(row)}
    assert len(kept) == COUNT
    assert min(shown[c] for c in kept) >= max(n for c, n in shown.items() if c not in kept)
    for split in ("train", "test"):
        everything = rows_of(made, split)
        wanted = {name: row for name, row in everything.items() if concepts_of(row) <= kept}
        assert rows_of(part, split) == wanted and 0 < len(wanted) < len(everything)
    assert rows_of(part, "held_out") == rows_of(made, "held_out")


def test_edits_lead_from_a_kept_picture_to_a_kept_one(made, part):
    number = 0
    for split in ("train", "test", "held_out"):
        ids = rows_of(part, split).keys()
        kept, all_of_them = (
            [*datasets.load_dataset(str(folder / "edits"), split=split)] for folder in (part, made)
        )
        assert kept == [edit for edit in all_of_them if {edit["given"], edit["edited"]} <= ids]
        number += len(kept)
    assert number


def test_conversations_are_made_of_it_as_of_the_whole(part, tmp_path):
    arguments = emoji_talks.TalkArguments(str(part), str(tmp_path / "talks"), **tiny_emojis.TALKS)
    assert emoji_talks.run(arguments)["train"] > 0
    talks = datasets.load_dataset(str(tmp_path / "talks"), split="train")
    shown = {row["image"]["bytes"] for row in rows_of(part, "train").values()}
    talks = talks.cast_column("images", datasets.List(datasets.Image(decode=False)))
    first = [talk["images"][0]["bytes"] for talk in talks if talk["images"]]
    assert first and set(first) <= shown


def test_more_conversations_than_pictures_talk_about_each_several_times(part, tmp_path):
    count = sum(len(rows_of(part, split)) for split in ("train", "test", "held_out"))
    made = emoji_talks.run(
        emoji_talks.TalkArguments(str(part), str(tmp_path / "talks"), 3 * count, num_edit_talks=0)
    )
    talks = [
        talk
        for split in made
        for talk in datasets.load_dataset(str(tmp_path / "talks"), split=split)
        if talk["images"]
    ]
    assert len(talks) == 3 * count
    # Only some of those about a picture are its questions, whose order is drawn: of three kinds
    # each comes first now and then.
    asked = [talk["messages"] for talk in talks if talk["kind"] == "questions"]
    by_place = [
        Counter(messages[place]["content"][-1]["text"].split()[0] for messages in asked)
        for place in (0, 2, 4)
    ]
    for word in ("how", "which"):
        share = [found[word] / found.total() for found in by_place]
        assert max(share) < 1.6 * min(share), (word, share)


def test_what_cannot_be_taken(made, part, tmp_path):
    with pytest.raises(ValueError, match="num_concepts=0 must be >= 1"):
        emoji_common.CommonArguments(str(made), str(tmp_path / "a"), 0)
    with pytest.raises(ValueError, match="num_concepts=1000, but the training split has"):
        emoji_common.run(emoji_common.CommonArguments(str(made), str(tmp_path / "a"), 1000))
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="output_dir="):
        emoji_common.run(emoji_common.CommonArguments(str(made), str(part), COUNT))
    shutil.copytree(part, tmp_path / "broken")
    (tmp_path / "broken" / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="dataset="):
        emoji_common.run(
            emoji_common.CommonArguments(str(tmp_path / "broken"), str(tmp_path / "b"), COUNT)
        )


def test_its_card_says_that_it_is_a_part_and_how_large(part):
    card = (part / "README.md").read_text(encoding="utf-8")
    said = card.split("# Emoji world", 1)[1].split("Pictures of", 1)[0]
    assert "This is a part" in said and f"among the {COUNT} commonest" in said
    for split in ("train", "test", "held_out"):
        assert f"{split} {len(rows_of(part, split)):,}" in said
    assert card.count("This is a part") == 1
    with pytest.raises(ValueError, match="no title"):
        emoji_common.with_notice("no heading", 1, {})
