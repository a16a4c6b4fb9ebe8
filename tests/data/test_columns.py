# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which columns of a set are its pictures, texts and classes, and which items lack one."""

import pytest
from damaged_sets import ITEMS, tar_samples, warned, write_tar

from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.streams import MixedStream, StreamSource


def mixed_kinds(folder):
    samples = tar_samples()
    for n in (2, 9, 13):  # the ninth lies behind what is peeked at
        samples[n][1]["jpg"] = samples[n][1].pop("png")
    write_tar(folder / "train.tar", samples)


@pytest.mark.parametrize("columns", ["png;jpg", ["png", "jpg"], "PNG ; JPG"])
def test_pictures_of_two_kinds(columns, tmp_path, caplog):
    mixed_kinds(tmp_path)
    if columns == "PNG ; JPG":
        columns = columns.lower()
    roles = {"image": columns, "text": "txt"}
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    stream = MixedStream([StreamSource("webdataset", 1.0, roles, **where)])
    data = load_training_data(str(tmp_path), columns=roles)
    for items in (list(stream), [data[n] for n in range(ITEMS)]):
        assert [item["image"].getpixel((0, 0)) for item in items] == list(range(10, 10 + ITEMS))
    assert not stream.lacking and not caplog.records


def test_kinds_of_pictures_are_found(tmp_path):
    mixed_kinds(tmp_path)
    data = load_training_data(str(tmp_path))
    shown = [data[n]["image"].getpixel((0, 0)) for n in range(ITEMS)]
    assert shown == list(range(10, 10 + ITEMS)) and data[3]["text"] == "text 3"


def test_pictures_that_no_role_names_are_counted_and_warned_of(tmp_path, caplog):
    mixed_kinds(tmp_path)
    roles = {"image": "png", "text": "txt"}
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    stream = MixedStream([StreamSource("webdataset", 1.0, roles, **where)])
    assert [n for n, item in enumerate(stream) if item["image"] is None] == [2, 9, 13]
    assert stream.lacking == {"image": 3}
    (message,) = warned(caplog, "has no image")
    assert f"{tmp_path / 'train.tar'}: 002" in message and "jpg" in message
    caplog.clear()
    load_training_data(str(tmp_path), columns=roles)
    (message,) = warned(caplog, "no picture")
    assert "3 of 20" in message and "002" in message


def test_absent_columns_are_named(tmp_path):
    write_tar(tmp_path / "train.tar", tar_samples())
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    with pytest.raises(ValueError, match=r"\['webp', 'bmp'\] as its image.*\['png', 'txt'\]"):
        next(iter(MixedStream([StreamSource("webdataset", 1.0, {"image": "webp;bmp"}, **where)])))
    with pytest.raises(ValueError, match=r"'webp'\} is absent"):
        load_training_data(str(tmp_path), columns={"image": "webp"})


def test_sources_of_one_kind_have_roles_of_their_own(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", tar_samples())
    write_tar(tmp_path / "b.tar", [(f"b{n}", {"txt": b"two"}) for n in range(ITEMS)])
    roles = ({"image": "png", "text": "txt"}, {"text": "txt"})
    sources = [
        StreamSource("webdataset", 1.0, columns, data_files={"train": str(tmp_path / f"{n}.tar")})
        for n, columns in zip("ab", roles, strict=True)
    ]
    stream = MixedStream(sources)
    items = list(stream)
    assert any(item["image"] is None for item in items) and not stream.lacking
    assert all((item["image"] is None) == (item["text"] == "two") for item in items)
    assert not caplog.records


def test_slices_of_splits(tmp_path):
    write_tar(tmp_path / "train.tar", tar_samples())
    write_tar(tmp_path / "test.tar", tar_samples()[:4])

    def texts(split):
        data = load_training_data(str(tmp_path), split=split)
        return [data[n]["text"] for n in range(len(data))]

    assert texts("train[5:8]") == ["text 5", "text 6", "text 7"]
    assert texts("test[50%:]+train[:1]") == ["text 2", "text 3", "text 0"]
    with pytest.raises(ValueError, match=r"split='valid'.*'train'"):
        texts("valid")
