# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold of an emoji world, told from its files alone."""

import io
import json
import re
from collections import defaultdict
from itertools import product

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

SPLITS = ("train", "test", "held_out")
RELATION = re.compile(r"(?:is|are) the (.+) (?:left or right of|above or below) the (.+)\?")
NUMBERS = ("zero", "one", "two", "three", "four")
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (158, 158, 158),
    "black": (24, 24, 24),
    "red": (214, 48, 49),
    "orange": (245, 140, 30),
    "yellow": (250, 221, 70),
    "green": (64, 168, 84),
    "blue": (52, 110, 220),
    "purple": (132, 70, 176),
    "pink": (246, 150, 196),
}


def read(folder, split, **how):
    return pq.read_table(folder / f"data/{split}-00000-of-00001.parquet", **how).to_pylist()


def read_all(folder):
    return {split: read(folder, split) for split in SPLITS}


def pixels_of(row):
    picture = Image.open(io.BytesIO(row["image"]["bytes"]))
    return np.asarray(picture.convert("RGB")).astype(np.float64) / 127.5 - 1


def words(text):
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def names_of(row):
    return [thing["name"] for thing in row["objects"]]


def combination(row):
    things = row["objects"]
    if len(things) == 2:
        return frozenset(names_of(row))
    return (things[0]["name"], things[0]["count"], things[0]["place"])


def texts_of(row):
    yield row["text"]
    yield from row["captions"]
    for question in row["questions"]:
        yield question["question"]
        yield question["answer"]


def check_no_leaks(folder):
    """Nothing that is tested stands in the training split: pair, combination, word or picture."""
    rows, edits = read_all(folder), read_all(folder / "edits")
    train = rows["train"]
    held = {n for row in rows["held_out"] if row["layout"] == "single" for n in names_of(row)}
    assert held
    pairs = {(name, row["style"]) for row in train for name in names_of(row)}
    for row in rows["test"]:
        if row["layout"] == "single":
            assert (names_of(row)[0], row["style"]) not in pairs, row["id"]
            shared = {"flat": "glossy", "glossy": "flat"}.get(row["style"])
            assert (names_of(row)[0], shared) not in pairs, row["id"]
        else:
            assert all((name, row["style"]) in pairs for name in names_of(row)), row["id"]
    combinations = {combination(row) for row in train if row["layout"] != "single"}
    tested = {combination(row) for row in rows["test"] if row["layout"] != "single"}
    assert tested and not tested & combinations
    for split in ("train", "test"):
        assert not {n for row in rows[split] for n in names_of(row)} & held
    assert all(set(names_of(row)) & held for row in rows["held_out"])
    check_words(folder, train, edits["train"], held)
    for split in SPLITS:
        ids = {row["id"] for row in rows[split]}
        assert len(ids) == len(rows[split])
        assert all({edit["given"], edit["edited"]} <= ids for edit in edits[split])
    check_pictures(train, rows["test"])


def check_words(folder, train, edits, held):
    """A held-out word, and its plain plural, is read nowhere in training."""
    said = [text for row in train for text in texts_of(row)] + [edit["request"] for edit in edits]
    lines = map(json.loads, (folder / "definitions.jsonl").read_text().splitlines())
    glosses = {line["word"]: line for line in lines}
    said += [f"{x['word']} {x['gloss']}" for x in glosses.values() if x["split"] == "train"]
    for row in read(folder / "talks", "train", columns=["messages"]):
        for message in row["messages"]:
            said += [piece["text"] for piece in message["content"] if piece["text"]]
    found = set().union(*map(words, said))
    forbidden = {form for name in held for word in words(name) for form in (word, f"{word}s")}
    assert not found & forbidden
    captions = {caption for row in train for caption in row["captions"]}
    known = {line["gloss"] for line in glosses.values() if line["split"] == "train"}
    assert all(line["gloss"] in known or line["gloss"] not in captions for line in glosses.values())


def check_pictures(train, test):
    """No test picture is within 0.02 of a training picture of its concept."""
    known = defaultdict(list)
    for row in train:
        for name in set(names_of(row)):
            known[name].append(row)
    cache = {row["id"]: pixels_of(row).astype(np.float32) for row in train}
    for row in test:
        own = pixels_of(row)
        for name in set(names_of(row)):
            for other in known[name]:
                assert ((own - cache[other["id"]]) ** 2).mean() > 0.02, (row["id"], other["id"])


def check_truth(folder):
    """Pictures show the background of the truth; captions and answers say what it says."""
    for split, rows in read_all(folder).items():
        known = {row["id"]: row for row in rows}
        for row in rows:
            check_picture(row)
            check_captions(row)
            for question in row["questions"]:
                check_question(row, question)
        for edit in read(folder / "edits", split):
            check_edit(edit, known[edit["given"]], known[edit["edited"]])


def check_picture(row):
    pixels = (pixels_of(row) + 1) * 127.5
    outside = np.ones(pixels.shape[:2], bool)
    for thing in row["objects"]:
        assert len(thing["boxes"]) == thing["count"]
        for left, top, right, bottom in thing["boxes"]:
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            outside[top:bottom, left:right] = False
    colour = BACKGROUNDS[row["background"]]
    assert outside.any() and np.abs(pixels[outside] - colour).max() <= 26, row["id"]
    boxes = [thing["boxes"][0] for thing in row["objects"]]
    if row["layout"] in ("beside", "stacked"):
        axis = 0 if row["layout"] == "beside" else 1
        assert boxes[0][axis] + boxes[0][axis + 2] < boxes[1][axis] + boxes[1][axis + 2]
        places = [thing["place"] for thing in row["objects"]]
        assert places == (["left", "right"] if axis == 0 else ["above", "below"])


def check_captions(row):
    full, style, ground = row["text"], row["style"], row["background"]
    assert full == row["captions"][0] and len(set(row["captions"])) == len(row["captions"])
    article = "an" if ground[0] in "aeiou" else "a"
    assert full.endswith(f", {style} style, on {article} {ground} background"), full
    for thing in row["objects"]:
        if thing["count"] == 1:
            assert thing["concept"] in full
        else:
            assert NUMBERS[thing["count"]] in full.split()
    for caption in row["captions"]:
        assert 1 <= len(caption.split()) <= 34 and not re.search(r"\s\s|\s,|[{}]", caption), caption


def check_question(row, question):
    kind, asked, answer = question["kind"], question["question"], question["answer"]
    things = row["objects"]
    if kind == "which style":
        assert answer == row["style"]
    elif kind == "which colour":
        ground = "background" in asked
        assert answer == row["background"] if ground else answer in [t["colour"] for t in things]
    elif kind == "how many":
        counts = [NUMBERS[thing["count"]] for thing in things]
        assert answer in (*counts, "zero")
    elif kind == "place":
        first, second = RELATION.fullmatch(asked).groups()
        assert {first, second} == {*names_of(row)}
        assert answer == {thing["name"]: thing["place"] for thing in things}[first]
    elif kind == "what" and len(things) == 2:
        named = [t for t in things if asked.endswith(f" the {t['name']}?")]
        told = [t for t in things if t["concept"] == answer and t not in named]
        place = asked.replace("top", "above").replace("bottom", "below")
        assert len(told) == 1 and told[0]["place"] in words(
            f"{place.split(' the ')[0]} {place[-8:]}"
        )
    elif kind == "what":
        assert answer == things[0]["concept"] or things[0]["count"] > 1
    else:
        assert kind == "yes or no" and answer in ("yes", "no")
        if "background" in asked:
            assert (row["background"] in asked.split("background")[1]) == (answer == "yes")
        elif asked.startswith("is it in the"):
            assert (f" {row['style']} style" in asked) == (answer == "yes")
        elif placed := re.fullmatch(r"(?:is|are) the (.+) (?:left of|above) the (.+)\?", asked):
            assert (list(placed.groups()) == names_of(row)) == (answer == "yes")
        elif asked.startswith("is there "):
            there = any(asked == f"is there {thing['concept']}?" for thing in things)
            assert there == (answer == "yes"), (asked, row["text"])


def check_edit(edit, given, edited):
    before, after = given["objects"], edited["objects"]
    names = names_of(given), names_of(edited)
    kind, request = edit["kind"], edit["request"]
    changed = {
        "style": given["style"] != edited["style"],
        "background": given["background"] != edited["background"],
    }
    assert changed == {"style": kind == "style", "background": kind == "background"}
    if kind in changed:
        assert names[0] == names[1] and edited[kind] in request.split()
    elif kind in ("more", "less"):
        assert after[0]["count"] - before[0]["count"] == {"more": 1, "less": -1}[kind]
    elif kind == "swap":
        assert names[1] == names[0][::-1] and given["layout"] == edited["layout"]
    elif kind == "move":
        assert {given["layout"], edited["layout"]} == {"beside", "stacked"}
    elif kind == "remove":
        assert set(names[1]) < set(names[0]) and len(after) == 1
    else:
        same = [x == y for x, y in product(names[0], names[1])]
        assert kind == "replace" and sum(same) == len(before) - 1
