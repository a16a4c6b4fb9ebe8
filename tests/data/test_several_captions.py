# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A text column that holds lists of strings: one of a picture's captions is drawn each time."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from damaged_sets import png, warned, write_tar
from tiny_digits import make_processor

from modeling_mdm.data.damage import TooManySkippedError
from modeling_mdm.data.lengths import check_texts
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.data.rows import AsStored, PathsOf
from modeling_mdm.data.sources import Source, split_off
from modeling_mdm.data.streams import MixedStream, StreamSource
from modeling_mdm.data.tasks import SeededItems

ITEMS = 8
FORMS = ("parquet", "saved", "jsonl", "folder", "tar")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def captions_of(number):
    """One to three captions, each of which names its picture."""
    return [f"{number} as {n}" for n in range(1 + number % 3)]


def write(folder, form, captions, column="captions"):
    """Write pictures of level 10 + n with a column of captions; return how a stream names it."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [png(10 + n) for n in range(len(captions))]
    if form in ("parquet", "saved"):
        images = [{"bytes": picture, "path": f"{n}.png"} for n, picture in enumerate(pictures)]
        features = datasets.Features(
            {"image": datasets.Image(), column: datasets.List(datasets.Value("string"))}
        )
        data = datasets.Dataset.from_dict({"image": images, column: captions}, features)
        if form == "saved":
            data.save_to_disk(str(folder))
        else:
            data.to_parquet(str(folder / "train.parquet"))
        return "parquet", folder / "train.parquet"
    if form == "tar":
        rows = [json.dumps(own).encode() for own in captions]
        samples = [
            (f"{n:03}", {"png": picture, f"{column}.json": row})
            for n, (picture, row) in enumerate(zip(pictures, rows, strict=True))
        ]
        write_tar(folder / "train.tar", samples)
        return "webdataset", folder / "train.tar"
    for n, picture in enumerate(pictures):
        (folder / f"{n}.png").write_bytes(picture)
    key, name = ("image", "train.jsonl") if form == "jsonl" else ("file_name", "metadata.jsonl")
    rows = [{key: f"{n}.png", column: own} for n, own in enumerate(captions)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("json", folder / name) if form == "jsonl" else ("imagefolder", None)


def load(folder, form, **options):
    roles = {"text": "captions.json"} if form == "tar" else {"text": "captions"}
    roles |= {"image": "image"} if form == "jsonl" else {}  # where a path could be a text
    return load_training_data(str(folder), columns=roles, **options)


@pytest.mark.parametrize("form", FORMS)
def test_one_caption_is_drawn_whatever_the_set_lies_in(form, tmp_path):
    write(tmp_path, form, [captions_of(n) for n in range(ITEMS)])
    data = load(tmp_path, form, seed=3)
    drawn = [Counter() for _ in range(ITEMS)]
    for epoch in range(60):
        data.set_epoch(epoch)
        for n in range(ITEMS):
            item = data[n]
            assert item["image"].getpixel((0, 0)) == 10 + n
            drawn[n][item["text"]] += 1
    for n, counts in enumerate(drawn):
        assert set(counts) == set(captions_of(n))
        assert min(counts.values()) > 60 / len(counts) / 2  # of 60, 20 or 30 are expected
    assert [text for _, text in data.texts()] == [t for n in range(ITEMS) for t in captions_of(n)]
    assert not data.skipped


def in_memory(count=ITEMS, seed=0):
    source = Source(np.zeros((count, 4, 4), np.uint8), [captions_of(n) for n in range(count)])
    return PictureDataset(source, seed=seed)


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone():
    def texts(seed, epoch, order):
        data = in_memory(seed=seed)
        data.set_epoch(epoch)
        return {n: data[n]["text"] for n in order}

    order = np.random.default_rng(0).permutation(ITEMS).tolist()
    first = texts(1, 2, range(ITEMS))
    assert texts(1, 2, order) == texts(1, 2, order[::-1]) == first
    assert first != texts(1, 3, order) and first != texts(2, 2, order)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_a_resumed_run_draw_the_same(num_workers):
    """A loader that is made in the second epoch, as by a run that goes on, gives its captions."""

    def batches(num_workers, epochs):
        items = SeededItems(in_memory(), seed=5)
        loader = torch.utils.data.DataLoader(
            items, 4, num_workers=num_workers, collate_fn=list, persistent_workers=num_workers > 0
        )
        for epoch in epochs:
            items.set_epoch(epoch)
            yield [(item["text"], item["seed"]) for batch in loader for item in batch]

    plain = list(batches(0, (0, 1)))
    assert plain[0] != plain[1]
    assert list(batches(num_workers, (0, 1))) == plain
    assert list(batches(num_workers, (1,))) == plain[1:]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "tar"])
def test_a_stream_draws_as_well(form, tmp_path):
    builder, file = write(tmp_path, form, [captions_of(n) for n in range(ITEMS)])
    roles = {"image": "png", "text": "captions.json"} if form == "tar" else {"text": "captions"}
    source = StreamSource(builder, 1.0, {"image": "image", **roles}, data_files=str(file))
    stream, drawn = MixedStream([source], seed=1), Counter()
    for epoch in range(20):
        stream.set_epoch(epoch)
        texts = [item["text"] for item in stream]
        assert all(text in captions_of(n) for n, text in enumerate(texts))
        drawn.update(texts)
    assert set(drawn) == {text for n in range(ITEMS) for text in captions_of(n)}
    again = MixedStream([source], seed=1)
    again.set_epoch(19)
    assert [item["text"] for item in again] == texts
    for _ in zip(range(5), again, strict=False):
        pass
    going_on = MixedStream([source], seed=1)
    going_on.set_epoch(19)
    going_on.load_state_dict(again.state_dict())
    assert [item["text"] for item in going_on] == texts[5:]


WRONG = {
    "empty": ([], r"its text is an empty list: give a string or more, or null"),
    "numbers": ([3, "a"], r"its text is a list whose item 0 is int, no string: give strings"),
    "a hole": (["a", None], r"its text is a list whose item 1 is NoneType, no string"),
    "lists": ([["a"]], r"its text is a list whose item 0 is list, no string"),
    "an object": ({"a": "b"}, r"its text is dict, no string"),
    "half a letter": (["a", "\ud800"], "surrogates not allowed"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("form", ["jsonl", "tar"])
def test_what_is_no_list_of_strings_is_named_and_passed_over(form, wrong, tmp_path, caplog):
    value, said = WRONG[wrong]
    captions = [captions_of(n) for n in range(ITEMS)]
    captions[5] = value
    write(tmp_path, form, captions)
    data = load(tmp_path, form)
    assert [data[n]["image"].getpixel((0, 0)) for n in (4, 5, 6)] == [14, 16, 16]
    (message,) = warned(caplog, said.split(":")[0].replace("\\", ""))
    assert ("line 6" if form == "jsonl" else "005") in message
    assert len(list(data.texts())) == sum(len(captions_of(n)) for n in range(ITEMS) if n != 5)
    with pytest.raises(TooManySkippedError, match="1 of 8 items"):
        load(tmp_path, form, max_skipped=0.0)[5]


def test_an_empty_list_in_parquet(tmp_path, caplog):
    captions = [captions_of(n) for n in range(ITEMS)]
    captions[2], captions[3] = [], None
    write(tmp_path, "parquet", captions)
    data = load(tmp_path, "parquet")
    assert [data[n]["text"] is None for n in (1, 3)] == [False, True]  # null is no caption
    assert data[2]["image"].getpixel((0, 0)) == 13  # the next one
    assert warned(caplog, "its text is an empty list")


def test_a_column_of_other_lists_is_refused(tmp_path):
    images = [{"bytes": png(9), "path": "9.png"}]
    features = datasets.Features(
        {"image": datasets.Image(), "sizes": datasets.List(datasets.Value("int64"))}
    )
    data = datasets.Dataset.from_dict({"image": images, "sizes": [[1, 2]]}, features)
    data.to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=r"columns names 'sizes' as the text: .* is no text"):
        load_training_data(str(tmp_path), columns={"text": "sizes"})
    with pytest.raises(ValueError, match="no column holds a text"):
        load_training_data(str(tmp_path))


def test_lists_are_found_where_nothing_else_could_be_the_text(tmp_path):
    write(tmp_path / "usual", "folder", [captions_of(n) for n in range(4)])
    assert load_training_data(str(tmp_path / "usual"))[1]["text"] in captions_of(1)
    write(tmp_path / "unusual", "folder", [captions_of(n) for n in range(4)], "said")
    assert load_training_data(str(tmp_path / "unusual"))[1]["text"] in captions_of(1)
    images = [{"bytes": png(9), "path": "9.png"}]
    columns = {"image": images, "title": ["a scarf"], "tags": [["wool", "red"]]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "title": datasets.Value("string"),
            "tags": datasets.List(datasets.Value("string")),
        }
    )
    (tmp_path / "tagged").mkdir()
    data = datasets.Dataset.from_dict(columns, features)
    data.to_parquet(str(tmp_path / "tagged" / "train.parquet"))
    assert load_training_data(str(tmp_path / "tagged"))[0]["text"] == "a scarf"


def test_every_caption_of_a_list_is_measured():
    processor = make_processor()
    source = Source(np.zeros((2, 8, 8), np.uint8), [["a", "a"], ["a", "b " * 40]])
    with pytest.raises(ValueError, match=r"1 of 4 texts are too long.*item 1"):
        check_texts(processor, PictureDataset(source))


def test_a_held_out_share_draws_too():
    source = Source(np.zeros((20, 4, 4), np.uint8), [captions_of(n) for n in range(20)])
    held = PictureDataset(split_off(source, 0.25, True))
    assert len(held) == 5 and all(isinstance(item["text"], str) for item in held)


def test_stored_columns_follow_what_is_chosen_of_a_set(tmp_path):
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(6)]
    columns = {"image": images, "captions": [captions_of(n) for n in range(6)]}
    whole = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    for data, order in ((whole, range(6)), (whole.select([4, 0, 2]), (4, 0, 2))):
        stored, paths = AsStored(data["captions"]), PathsOf(data["image"])
        assert list(stored) == [captions_of(n) for n in order]
        assert list(paths) == [f"{n}.png" for n in order]
        for index in (-1, len(order)):
            with pytest.raises(IndexError):
                stored[index]
