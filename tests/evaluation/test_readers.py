# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Readers of the data sets' real formats: what they give, and what they refuse by name."""

import json

import numpy as np
import pytest
from tiny_vision_sets import (
    NAMES,
    coco_name,
    write_coco,
    write_flickr,
    write_imagenet,
    write_questions,
    write_vizwiz,
)

from modeling_mdm.evaluation.tables.picture_columns import in_turns
from modeling_mdm.evaluation.tables.readers import (
    class_folders,
    coco_captions,
    drawn,
    karpathy_captions,
    vizwiz_questions,
    vqa_questions,
)
from modeling_mdm.evaluation.tables.word_columns import COCO_PICTURE


def change(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def coco(root):
    folder = root / "coco"
    return coco_captions(folder / "annotations" / "captions_val2014.json", folder / "val2014")


def questions(root, name="vqav2"):
    prefix = "v2_" if name == "vqav2" else ""
    files = [f"{prefix}OpenEnded_mscoco_val2014_questions", f"{prefix}mscoco_val2014_annotations"]
    files = [root / name / f"{file}.json" for file in files]
    return vqa_questions(*files, root / "coco" / "val2014", COCO_PICTURE)


def test_folders_of_classes_take_turns(tmp_path):
    write_imagenet(tmp_path, num_classes=3, count=2)
    root = tmp_path / "imagenet" / "train"
    (root / "n00000002" / "n00000002_1.png").unlink()
    (root / "n00000001" / "notes.txt").touch()
    classes = class_folders(root)
    assert [len(files) for files in classes.values()] == [2, 2, 1]
    names = [one.file.stem for turn in in_turns([*classes.values()]) for one in turn]
    assert names == [f"n0000000{c}_{n}" for c, n in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))]
    (root / "n00000003").mkdir()
    with pytest.raises(ValueError, match="n00000003' has no pictures: each folder is a class"):
        class_folders(root)


def test_cocos_captions(tmp_path):
    write_coco(tmp_path)
    found = coco(tmp_path)
    assert [one.name for one in found] == [str(n + 1) for n in range(10)]
    assert found[3].captions == (f"a photo of {NAMES[3]}", f"this is {NAMES[3]}")
    assert found[3].picture.file.name == "COCO_val2014_000000000004.jpg"


@pytest.mark.parametrize(
    "edit, error, message",
    [
        (
            lambda c: c["annotations"].append({"id": 999, "image_id": 77, "caption": "x"}),
            ValueError,
            "annotation 999 is of picture 77, which `images` does not list",
        ),
        (
            lambda c: c["annotations"].append(c["annotations"][0]),
            ValueError,
            "annotations of .* has 0 more than once",
        ),
        (lambda c: c["images"].append(c["images"][0]), ValueError, "has 1 more than once"),
        (
            lambda c: c["images"][1].update(file_name="gone.jpg"),
            FileNotFoundError,
            r"picture '.*gone\.jpg' is missing, which an annotation names",
        ),
        (lambda c: c.pop("images"), ValueError, "has no 'images': it is another kind of file"),
    ],
)
def test_annotations_that_contradict_themselves_are_named(edit, error, message, tmp_path):
    write_coco(tmp_path)
    change(tmp_path / "coco" / "annotations" / "captions_val2014.json", edit)
    with pytest.raises(error, match=message):
        coco(tmp_path)


def test_karpathys_splits(tmp_path):
    write_coco(tmp_path)
    write_flickr(tmp_path)
    file = tmp_path / "coco" / "dataset_coco.json"
    found = karpathy_captions(file, tmp_path / "coco")
    assert len(found) == 9 and found[0].name == coco_name(2)
    assert len(karpathy_captions(file, tmp_path / "coco", "val")) == 1
    with pytest.raises(ValueError, match="has no picture of split 'dev'"):
        karpathy_captions(file, tmp_path / "coco", "dev")
    folder = tmp_path / "flickr30k"
    found = karpathy_captions(folder / "dataset_flickr30k.json", folder / "flickr30k-images")
    assert len(found) == 10 and found[9].captions[0] == "A photo of an ankle boot."


@pytest.mark.parametrize("name", ["vqav2", "okvqa"])
def test_questions_and_their_answers(name, tmp_path):
    write_coco(tmp_path)
    write_questions(tmp_path, name)
    found = questions(tmp_path, name)
    assert len(found) == 10 and found[8].name == "9000" and found[8].question == "What is this?"
    assert found[8].answers == ("a bag",) * 8 + ("thing",) * 2
    assert found[8].picture.file.name == "COCO_val2014_000000000009.jpg"


def test_questions_without_annotations_are_named(tmp_path):
    write_coco(tmp_path)
    write_questions(tmp_path)
    file = tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json"
    change(file, lambda c: c["annotations"].pop(2))
    with pytest.raises(ValueError, match=r"1 questions are in one of .* alone, first 3000"):
        questions(tmp_path)


def test_vizwiz(tmp_path):
    write_vizwiz(tmp_path)
    folder = tmp_path / "vizwiz"
    found = vizwiz_questions(folder / "val.json", folder / "val")
    assert found[3].name == "VizWiz_val_00000003.jpg" and found[3].answers == ("a dress",) * 10
    change(folder / "val.json", lambda c: c[4].pop("answers"))
    with pytest.raises(ValueError, match=r"'VizWiz_val_00000004\.jpg' has no answers"):
        vizwiz_questions(folder / "val.json", folder / "val")


def test_items_are_drawn_by_seed_alone():
    items = list(range(100))
    assert drawn(items, None, 0) == drawn(items, 100, 0) == items
    some = drawn(items, 10, 0)
    assert some == drawn(items, 10, 0) != drawn(items, 10, 1)
    assert some == sorted(some) and len(set(some)) == 10
    assert abs(np.mean([drawn(items, 10, seed) for seed in range(100)]) - 49.5) < 3
