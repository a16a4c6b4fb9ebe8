# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A set in one tar file: a folder that was packed, or a shard of samples."""

import tarfile
from pathlib import Path

import datasets
import pytest
from damaged_sets import ITEMS, picture_folder, tar_samples, write_tar

from modeling_mdm.data import archives
from modeling_mdm.data.pictures import load_training_data


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def pack(folder, file, top="set/"):
    with tarfile.open(file, "w:gz" if str(file).endswith("gz") else "w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, f"{top}{path.relative_to(folder)}")
    return str(file)


def folder_of_pictures(folder):
    folder.mkdir()
    picture_folder(folder, {"png": (folder.parent / "one.png").read_bytes()})
    return folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one.png").write_bytes(tar_samples()[7][1]["png"])
    return folder_of_pictures(tmp_path / "pictures")


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
@pytest.mark.parametrize("top", ["set/", ""])
def test_a_packed_folder_is_read_as_the_folder(name, top, folder, tmp_path):
    file = pack(folder, tmp_path / name, top)
    packed, plain = load_training_data(file), load_training_data(str(folder))
    assert len(packed) == len(plain) == ITEMS
    for one, other in zip(packed, plain, strict=True):
        assert one["text"] == other["text"] and one["image"].tobytes() == other["image"].tobytes()
    with pytest.raises(ValueError, match="split='test'"):
        load_training_data(file, split="test")


def test_it_is_unpacked_once_and_anew_when_it_changes(folder, tmp_path, cache, monkeypatch):
    file = pack(folder, tmp_path / "set.tar")
    assert len(load_training_data(file)) == ITEMS
    opened = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("unpacked again"))
    assert len(load_training_data(file)) == ITEMS
    monkeypatch.setattr(tarfile, "open", opened)
    lines = (folder / "metadata.jsonl").read_text().splitlines()[:5]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert len(load_training_data(pack(folder, tmp_path / "set.tar"))) == 5
    assert len([*(cache / "unpacked").iterdir()]) == 2  # and nothing unfinished


def test_another_process_that_was_faster_is_no_fault(folder, tmp_path, monkeypatch):
    file, take = pack(folder, tmp_path / "set.tar"), archives._take_name

    def after_another(aside, place):
        place.mkdir()
        (place / "set").symlink_to(folder)
        take(aside, place)

    monkeypatch.setattr(archives, "_take_name", after_another)
    assert len(load_training_data(file)) == ITEMS


def test_a_shard_of_samples_is_read_as_webdataset(tmp_path):
    write_tar(tmp_path / "shard.tar", tar_samples())
    data = load_training_data(str(tmp_path / "shard.tar"))
    assert [item["text"] for item in data] == [f"text {n}" for n in range(ITEMS)]


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz"])
def test_a_damaged_archive_is_named_and_leaves_nothing(name, folder, tmp_path, cache):
    file = Path(pack(folder, tmp_path / name))
    whole = file.read_bytes()
    cut = [whole[: len(whole) * 2 // 3]]
    if name.endswith("tar"):
        with tarfile.open(file) as tar:
            cut += [whole[: tar.getmembers()[-3].offset]]  # where a file begins
    for content in (*cut, b"no archive" * 100, b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' is no whole archive of a set .*anew"):
            load_training_data(str(file))
    assert not [*cache.glob("unpacked/*")]


def test_paths_that_lead_out_are_refused(tmp_path, cache):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside.jsonl"))
    with pytest.raises(ValueError, match="no whole archive of a set"):
        load_training_data(str(tmp_path / "set.tar"))
    assert not (cache / "outside.jsonl").exists() and not [*cache.glob("unpacked/*")]


def test_another_file_is_no_set(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="name the folder"):
        load_training_data(str(tmp_path / "set.zip"))
    with pytest.raises(FileNotFoundError, match=r"set\.tar' is missing"):
        load_training_data(str(tmp_path / "set.tar"))
