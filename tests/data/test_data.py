# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training data from every kind of source, and what a user is told about a bad one."""

import gzip
import json
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.idx import read_idx
from modeling_mdm.data.pictures import (
    FASHION_MNIST_ID,
    PictureDataset,
    Source,
    flip_and_shift,
    load_training_data,
)

TABLE = CaptionTable(
    labels=(("a cat", "a tom"), ("a dog", "a hound"), ("a cow", "an ox")),
    templates=("a photo of {}", "this is {}", "{} here", "{} there"),
)


def idx_bytes(array):
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)


@pytest.fixture
def fashion_folder(tmp_path, pixels):
    labels = np.array([0, 9, 1, 1, 5, 6], dtype=np.uint8)
    for prefix, count in (("train", 6), ("t10k", 2)):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            path = tmp_path / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array[:count])))
    return tmp_path


def labelled(count=12, **arguments):
    images = np.arange(count * 64, dtype=np.uint8).reshape(count, 8, 8)
    labels = np.arange(count) % 3
    return PictureDataset(Source(images, labels=labels), TABLE, **arguments)


# Digits and IDX files


def test_digits():
    train, test = load_training_data("digits"), load_training_data("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.num_classes == 10
    assert {train[i]["label"] for i in range(200)} == set(range(10))
    item = train[3]
    assert item["image"].size == (8, 8) and item["image"].mode == "L"
    assert item["text"] and str(item["label"]) in item["text"]
    shown = [bytes(d[i]["image"].tobytes()) for d in (train, test) for i in range(len(d))]
    from sklearn.datasets import load_digits

    expected = np.rint(load_digits().images / 16 * 255).astype(np.uint8)
    assert sorted(shown) == sorted(e.tobytes() for e in expected)
    with pytest.raises(ValueError, match="split='validation'"):
        load_training_data("digits", split="validation")


def test_fashion_mnist_from_idx(fashion_folder, pixels):
    train = load_training_data("fashion_mnist", data_dir=str(fashion_folder))
    assert len(train) == 6 and train.labels == [0, 9, 1, 1, 5, 6] and train.num_classes == 10
    for i in range(6):
        np.testing.assert_array_equal(np.asarray(train[i]["image"]), pixels[i])
    assert train.captions.label_of(train[1]["text"]) == 9
    assert len(load_training_data("fashion_mnist", "test", data_dir=str(fashion_folder))) == 2


def test_fashion_mnist_from_the_hub_by_its_id(monkeypatch, pixels):
    asked = {}

    def load_dataset(path, data_dir=None, split=None):
        asked.update(path=path, split=split)
        return datasets.Dataset.from_dict(
            {"image": [Image.fromarray(p) for p in pixels], "label": [0, 1, 2, 0, 1, 2]},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])}
            ),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_training_data("fashion_mnist", split="test", captions=TABLE)
    assert asked == {"path": FASHION_MNIST_ID, "split": "test"}
    np.testing.assert_array_equal(np.asarray(data[2]["image"]), pixels[2])
    assert TABLE.label_of(data[2]["text"]) == data[2]["label"] == 2


def test_the_hub_out_of_reach(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        load_training_data("fashion_mnist")
    with pytest.raises(FileNotFoundError, match="name_or_path='some/set'"):
        load_training_data("some/set")


def test_idx_reads_plain_files_of_any_rank(tmp_path):
    for shape in ((5,), (2, 3), (2, 3, 4, 3)):
        array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        (tmp_path / "a").write_bytes(idx_bytes(array))
        np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)


def test_missing_idx_file(fashion_folder):
    (fashion_folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels.*apt install dataset-fashion-mnist"):
        load_training_data("fashion_mnist", data_dir=str(fashion_folder))
    with pytest.raises(FileNotFoundError, match=FASHION_MNIST_ID):
        load_training_data("fashion_mnist", data_dir=str(fashion_folder / "absent"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: gzip.compress(raw)[:-30], "gzip"),
        (lambda raw: gzip.compress(raw)[:100] + b"\0" * 60, "gzip"),
        (lambda raw: gzip.compress(raw[:-1]), "bytes, and 4703 follow"),
        (lambda raw: gzip.compress(raw + b"\0"), "bytes, and 4705 follow"),
        (lambda raw: gzip.compress(raw[:9]), "header"),
        (lambda raw: b"", "not an IDX file"),
        (lambda raw: b"<html>not found</html>", "not an IDX file"),
        (lambda raw: b"\0\0\x0d\x01" + raw[4:], "not an IDX file"),
    ],
)
def test_damaged_idx_file(fashion_folder, pixels, damage, message):
    path = fashion_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(idx_bytes(pixels)))
    with pytest.raises(ValueError, match=message) as raised:
        load_training_data("fashion_mnist", data_dir=str(fashion_folder))
    assert str(path) in str(raised.value)


def test_images_and_labels_of_different_sets(fashion_folder):
    labels = fashion_folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes((fashion_folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ValueError, match="do not belong together"):
        load_training_data("fashion_mnist", data_dir=str(fashion_folder))


# Captions drawn per epoch, augmentation


def test_captions_depend_on_seed_epoch_and_index_alone():
    def texts(data, epoch, order):
        data.set_epoch(epoch)
        drawn = {i: data[i]["text"] for i in order}
        return [drawn[i] for i in range(len(data))]

    first = texts(labelled(), 0, range(12))
    assert texts(labelled(), 0, reversed(range(12))) == first
    data = labelled()
    second = texts(data, 1, range(12))
    assert second != first
    assert texts(data, 0, range(12)) == first  # a run that was cut off goes back
    assert texts(labelled(seed=1), 0, range(12)) != first
    assert texts(labelled(augment=True), 0, range(12)) == first
    assert all(TABLE.label_of(t) == i % 3 for i, t in enumerate(first))


def test_set_epoch_reaches_persistent_workers():
    data = labelled()
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=1, persistent_workers=True
    )
    for epoch in range(2):
        data.set_epoch(epoch)
        from_worker = [item["text"] for item in loader]
        assert from_worker == [data[i]["text"] for i in range(12)]
    data.set_epoch(0)
    assert from_worker != [data[i]["text"] for i in range(12)]


def test_augmentation_is_a_flip_and_a_shift_of_one_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    padded = np.pad(pixels, 1, mode="edge")
    flipped = np.pad(pixels[:, ::-1], 1, mode="edge")
    allowed = {
        p[i : i + 5, j : j + 7].tobytes()
        for p in (padded, flipped)
        for i in range(3)
        for j in range(3)
    }
    rng = np.random.default_rng(1)
    seen = {flip_and_shift(Image.fromarray(pixels), rng).tobytes() for _ in range(400)}
    assert seen == allowed and len(allowed) == 18


def test_augmentation_is_deterministic_and_off_by_default():
    plain, augmented = labelled(), labelled(augment=True)
    arrays = [np.asarray(augmented[i]["image"]) for i in range(12)]
    assert any((a != np.asarray(plain[i]["image"])).any() for i, a in enumerate(arrays))
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.asarray(labelled(augment=True)[i]["image"]))
        np.testing.assert_array_equal(np.asarray(plain[i]["image"]), plain.source.images[i])
    assert flip_and_shift(Image.new("RGBA", (4, 4)), np.random.default_rng(0)).mode == "RGB"


def test_limits_and_indices():
    data = labelled(limit=5)
    assert len(data) == 5 and data.labels == [0, 1, 2, 0, 1]
    assert data[-1] == data[4]
    with pytest.raises(IndexError):
        data[5]
    assert len(labelled(limit=99)) == 12
    with pytest.raises(ValueError, match="limit=0"):
        labelled(limit=0)
    with pytest.raises(ValueError, match="seed=-1"):
        labelled(seed=-1)


def test_a_label_without_names():
    with pytest.raises(ValueError, match="3 classes and the data has the label 9"):
        load_training_data("digits", captions=TABLE)


# Folders and tables read by `datasets`


def save_pictures(folder, pixels, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, p in enumerate(pixels):
        Image.fromarray(p).save(folder / f"{i}.{suffix}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_image_folder_with_metadata(tmp_path, pixels):
    save_pictures(tmp_path / "set" / "train", pixels)
    lines = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(6)]
    (tmp_path / "set" / "train" / "metadata.jsonl").write_text(
        "\n".join(json.dumps(line) for line in lines)
    )
    data = load_training_data(str(tmp_path / "set"))
    assert len(data) == 6
    for item in data:
        number = int(item["text"].split()[1])
        np.testing.assert_array_equal(np.asarray(item["image"]), pixels[number])
        assert item["label"] is None
    with pytest.raises(ValueError, match="split='test'"):
        load_training_data(str(tmp_path / "set"), split="test")


def test_image_folder_with_one_folder_a_class(tmp_path, pixels):
    for name, part in (("cat", pixels[:2]), ("dog", pixels[2:])):
        save_pictures(tmp_path / "set" / name, part)
    data = load_training_data(str(tmp_path / "set"))
    assert sorted(data.labels) == [0, 0, 1, 1, 1, 1] and data.num_classes == 2
    assert all(["cat", "dog"][item["label"]] in item["text"] for item in data)


def parquet(path, columns, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return str(path.parent)


def test_parquet_with_several_texts(tmp_path, pixels):
    images = [Image.fromarray(p) for p in pixels]
    features = datasets.Features(
        {
            "scan": datasets.Image(),
            "title": datasets.Value("string"),
            "source": datasets.Value("string"),
            "kind": datasets.Value("int64"),
        }
    )
    columns = {
        "scan": images,
        "title": list("abcdef"),
        "source": ["here"] * 6,
        "kind": [2, 0, 1, -1, 0, 0],
    }
    folder = parquet(tmp_path / "set" / "train.parquet", columns, features)
    with pytest.raises(ValueError, match=r"\['title', 'source'\] could all be the text"):
        load_training_data(folder)
    data = load_training_data(folder, columns={"text": "title", "label": "kind"})
    assert [item["text"] for item in data] == list("abcdef")
    assert data.labels == [2, 0, 1, None, 0, 0] and data.num_classes == 3
    with pytest.raises(ValueError, match=r"'author'} is absent: the data set has 'scan'"):
        load_training_data(folder, columns={"text": "author"})
    with pytest.raises(ValueError, match=r"roles .'words'."):
        load_training_data(folder, columns={"words": "title"})


def test_parquet_written_without_datasets(tmp_path, pixels):
    save_pictures(tmp_path / "png", pixels)
    images = [
        {"bytes": (tmp_path / "png" / f"{i}.png").read_bytes(), "path": None} for i in range(6)
    ]
    folder = parquet(tmp_path / "set" / "train.parquet", {"image": images, "text": list("abcdef")})
    data = load_training_data(folder)
    np.testing.assert_array_equal(np.asarray(data[4]["image"]), pixels[4])


def test_missing_text_is_drawn_from_the_label(tmp_path, pixels):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    columns = {"image": [Image.fromarray(p) for p in pixels[:2]], "text": ["own", None]}
    folder = parquet(tmp_path / "set" / "train.parquet", columns | {"label": [0, 1]}, features)
    data = load_training_data(folder, captions=TABLE)
    assert data[0]["text"] == "own" and TABLE.label_of(data[1]["text"]) == 1


def test_absent_columns(tmp_path, pixels):
    folder = parquet(tmp_path / "words" / "train.parquet", {"text": ["a", "b"]})
    with pytest.raises(ValueError, match="no column holds images, among 'text'"):
        load_training_data(folder)
    save_pictures(tmp_path / "bare", pixels)
    with pytest.raises(ValueError, match="no column holds a text or a label"):
        load_training_data(str(tmp_path / "bare"))


def test_saved_datasets(tmp_path, pixels):
    columns = {"image": [Image.fromarray(p) for p in pixels], "caption": list("abcdef")}
    alone = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    alone.save_to_disk(str(tmp_path / "alone"))
    assert load_training_data(str(tmp_path / "alone"))[5]["text"] == "f"
    with pytest.raises(ValueError, match="split='test'"):
        load_training_data(str(tmp_path / "alone"), split="test")
    datasets.DatasetDict({"test": alone}).save_to_disk(str(tmp_path / "both"))
    assert load_training_data(str(tmp_path / "both"), split="test")[0]["text"] == "a"
    with pytest.raises(ValueError, match=r"use one of \['test'\]"):
        load_training_data(str(tmp_path / "both"))
