# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's instruction recipe, on small copies of its sets with the columns that these have."""

from dataclasses import replace

import datasets
import pytest
import torch
import yaml
from PIL import Image
from tiny_digits import ROOT, make_processor

from modeling_mdm.data.stream_sources import StreamSource, read_recipe
from modeling_mdm.data.streams import MixedStream
from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture

RECIPE = read_recipe(ROOT / "configuration" / "data" / "instruct.yaml")
COUNT = 6


def picture(number):
    return Image.new("RGB", (12, 10), (number * 20, 255 - number * 20, 7))


def text(kind="string"):
    return datasets.Value(kind)


def texts(kind="string"):
    return datasets.List(datasets.Value(kind))


def save(folder, name, rows, features):
    """Write Parquet as the Hub has it: files of a configuration, by split, and a card."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_list(rows, datasets.Features(features))
    data.to_parquet(folder / name / "train-00000-of-00001.parquet")
    card = folder / "README.md"
    configs = yaml.safe_load(card.read_text().split("---")[1])["configs"] if card.exists() else []
    files = [{"split": "train", "path": f"{name}/train-*"}]
    configs.append({"config_name": name, "data_files": files})
    card.write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def cauldron(folder, name):
    """HuggingFaceM4/the_cauldron: pictures of a row, and pairs."""
    pair = {"user": text(), "assistant": text(), "source": text()}
    rows = [
        {
            "images": [picture(n)],
            "texts": [
                {"user": f"{name} {n} {k}?", "assistant": f"yes {n} {k}", "source": name}
                for k in range(1 + n % 3)
            ],
        }
        for n in range(COUNT)
    ]
    save(
        folder,
        name,
        rows,
        {"images": datasets.List(datasets.Image()), "texts": datasets.List(pair)},
    )


def gqa(folder):
    """lmms-lab/GQA: questions in one configuration, pictures by id in another."""
    features = {
        "id": text(), "imageId": text(), "question": text(), "answer": text(),
        "fullAnswer": text(), "isBalanced": text("bool"),
        "groups": {"global": text(), "local": text()}, "entailed": text(), "equivalent": text(),
        "types": {"structural": text(), "semantic": text(), "detailed": text()},
        "semanticStr": text(),
    }  # fmt: skip
    rows = [
        {
            "id": f"q{n}", "imageId": "none" if n == 4 else f"picture{5 - n}",
            "question": f"gqa {n}?", "answer": f"no {n}", "fullAnswer": f"No, {n}.",
            "isBalanced": True, "groups": {"global": "g", "local": "l"}, "entailed": "",
            "equivalent": "", "semanticStr": "",
            "types": {"structural": "query", "semantic": "rel", "detailed": "d"},
        }
        for n in range(COUNT)
    ]  # fmt: skip
    save(folder, "train_balanced_instructions", rows, features)
    shown = [{"id": f"picture{n}", "image": picture(n)} for n in range(COUNT)]
    save(folder, "train_balanced_images", shown, {"id": text(), "image": datasets.Image()})


def ocr_vqa(folder):
    """howard-hou/OCR-VQA: a cover with questions and as many answers."""
    box = dict.fromkeys(("width", "height", "top_left_x", "top_left_y"), text("float64"))
    features = {
        "image": datasets.Image(), "image_id": text(), "questions": texts(), "answers": texts(),
        "ocr_tokens": texts(), "ocr_info": datasets.List({"word": text(), "bounding_box": box}),
        "title": text(), "authorName": text(), "genre": text(), "image_width": text("int64"),
        "image_height": text("int64"), "image_url": text(), "set_name": text(),
    }  # fmt: skip
    rows = [
        {
            **dict.fromkeys(features, None),
            "image": picture(n),
            "questions": [f"ocr {n} {k}?" for k in range(1 + n % 3)],
            "answers": [f"ocr {n} {k}" for k in range(1 + n % 3)][: 1 if n == 5 else None],
            "ocr_tokens": ["a"],
            "ocr_info": [{"word": "a", "bounding_box": dict.fromkeys(box, 0.5)}],
        }
        for n in range(COUNT)
    ]
    save(folder, "default", rows, features)


def textvqa(folder):
    """lmms-lab/textvqa: a question with ten people's answers."""
    features = {
        "image_id": text(), "question_id": text("int32"), "question": text(),
        "question_tokens": texts(), "image": datasets.Image(), "image_width": text("int32"),
        "image_height": text("int32"), "flickr_original_url": text(), "flickr_300k_url": text(),
        "answers": texts(), "image_classes": texts(), "set_name": text(), "ocr_tokens": texts(),
    }  # fmt: skip
    rows = [
        {
            **dict.fromkeys(features, None),
            "image": picture(n),
            "question": f"text {n}?",
            "answers": [f"text {n} {k}" for k in range(10)],
        }
        for n in range(COUNT)
    ]
    save(folder, "default", rows, features)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The recipe, each path that of a copy."""
    folder = tmp_path_factory.mktemp("instruct")
    cauldron(folder / "the_cauldron", "cocoqa")
    cauldron(folder / "the_cauldron", "visual7w")
    gqa(folder / "GQA")
    ocr_vqa(folder / "OCR-VQA")
    textvqa(folder / "textvqa")
    return [replace(one, path=str(folder / one.path.split("/")[-1])) for one in RECIPE]


def colour(item):
    return item["image"].convert("RGB").getpixel((0, 0))[0] // 20


def test_the_recipe_names_the_papers_sets():
    names = [(source.path, source.name) for source in RECIPE]
    assert names == [
        ("HuggingFaceM4/the_cauldron", "cocoqa"),
        ("lmms-lab/GQA", "train_balanced_instructions"),
        ("howard-hou/OCR-VQA", None),
        ("lmms-lab/textvqa", None),
        ("HuggingFaceM4/the_cauldron", "visual7w"),
    ]
    assert sum(source.weight for source in RECIPE) == pytest.approx(1)


@pytest.mark.parametrize("number", [0, 4])
def test_pairs_about_a_picture(sources, number):
    name = RECIPE[number].name
    found = set()
    stream = MixedStream([sources[number]], seed=number)
    for epoch in range(20):
        stream.set_epoch(epoch)
        items = list(stream)
        assert [colour(item) for item in items] == list(range(COUNT))
        for n, item in enumerate(items):
            k = int(item["text"].split()[-1])
            assert (item["prompt"], item["text"]) == (f"{name} {n} {k}?", f"yes {n} {k}")
            found.add((n, k))
    assert found == {(n, k) for n in range(COUNT) for k in range(1 + n % 3)}


def test_pictures_that_lie_apart(sources):
    stream = MixedStream([sources[1]])
    items = list(stream)
    assert [item["prompt"] for item in items] == [f"gqa {n}?" for n in (0, 1, 2, 3, 5)]
    assert [item["text"] for item in items] == [f"no {n}" for n in (0, 1, 2, 3, 5)]
    assert [colour(item) for item in items] == [5, 4, 3, 2, 0]
    assert sum(stream.skipped.values()) == 1 and "'none'" in stream._names[0]


def test_each_question_has_its_own_answer(sources):
    stream = MixedStream([sources[2]])
    for epoch in range(4):
        stream.set_epoch(epoch)
        for item in stream:
            assert item["prompt"] == f"{item['text']}?"
    assert sum(stream.skipped.values()) == 4  # the one with more questions than answers
    assert "3 prompts for 1 texts" in stream._names[0]


def test_one_of_ten_answers(sources):
    stream, found = MixedStream([sources[3]]), set()
    for epoch in range(6):
        stream.set_epoch(epoch)
        items = list(stream)
        assert [item["prompt"] for item in items] == [f"text {n}?" for n in range(COUNT)]
        found |= {item["text"].split()[-1] for item in items}
    assert len(found) > 6


def test_the_whole_recipe_asks_and_answers(sources):
    """All of it becomes questions about given pictures, whose answers are written."""
    items = list(MixedStream(sources, (8, 8), seed=1))
    assert len(items) > 5
    processor = make_processor()
    mixture = TaskMixture({"question_answering": 1})
    batch = MDMDataCollator(processor, mixture, truncation=True)(items)
    assert bool(batch["image_given"].all())
    for row, item in enumerate(items):
        ids, turns = batch["input_ids"][row], batch["turn_ids"][row]
        valid = batch["attention_mask"][row] == 1
        kept = processor.max_text_length - 1
        for said, turn in ((item["prompt"], 0), (item["text"], 1)):
            expected = processor.tokenizer(said)["input_ids"][:kept]
            region = ids[(turns == turn) & valid].tolist()
            assert region[: len(expected)] == expected
        assert torch.equal(batch["text_given"][row][valid], (turns == 0)[valid])


def test_faults(sources):
    with pytest.raises(ValueError, match=r"must name \['name', 'split', 'key', 'of'\]"):
        StreamSource("a", pictures={"name": "b"})
    wrong = {**sources[1].pictures, "key": "number"}
    with pytest.raises(ValueError, match="must hold the key"):
        replace(sources[1], pictures=wrong).open()
