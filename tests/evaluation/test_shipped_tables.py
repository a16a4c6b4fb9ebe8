# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's columns of the shipped checkpoint: its sets as files, and the whole command."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import shipped_tables
import tiny_emojis
import torch
from idx_files import write_idx
from PIL import Image
from safetensors.torch import load_file
from tiny_vision_sets import FILES

from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.evaluation.tables.readers import (
    class_folders,
    coco_captions,
    karpathy_captions,
)


@pytest.fixture(scope="module")
def fashion_folder(tmp_path_factory):
    """Fashion-MNIST's four files with the ten shipped pictures, twice, the second time shifted."""
    folder = tmp_path_factory.mktemp("fashion")
    pixels = np.stack([np.asarray(Image.open(file).convert("L")) for file in FILES])
    pixels, labels = np.concatenate([pixels, np.roll(pixels, 1, 2)]), np.arange(20) % 10
    for prefix in ("train", "t10k"):
        write_idx(folder, prefix, pixels, labels)
    return str(folder)


def test_pictures_are_written_as_imagenet_and_coco_are_distributed(fashion_folder, tmp_path):
    data = load_training_data("fashion_mnist", split="test", data_dir=fashion_folder, limit=12)
    chosen = shipped_tables.ShippedTableArguments(data_dir=fashion_folder, limit=12)
    captions = shipped_tables.write_sets(shipped_tables.read_pictures(chosen), tmp_path)
    items = [data[n] for n in range(12)]
    folders = class_folders(tmp_path / "imagenet" / "train")
    assert {name: len(files) for name, files in folders.items()} == {
        f"n{label:08d}": [item["label"] for item in items].count(label)
        for label in sorted({item["label"] for item in items})
    }
    root = tmp_path / "coco"
    found = coco_captions(root / "annotations" / "captions_val2014.json", root / "val2014")
    of_karpathy = karpathy_captions(root / "dataset_coco.json", root)
    for one, other, item, own in zip(found, of_karpathy, items, captions.values(), strict=True):
        assert list(one.captions) == list(other.captions) == own and len(set(own)) == 12
        assert one.picture.open().convert("L").tobytes() == item["image"].tobytes()


def test_a_folder_of_the_emoji_world_has_captions_of_its_own_and_no_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "world").mkdir()
    world = tiny_emojis.build(tmp_path / "world")
    chosen = shipped_tables.ShippedTableArguments(dataset=str(world), limit=5)
    assert Path(chosen.checkpoint).name == "mdm-emoji"
    assert Path(chosen.output).name == "emoji_tables.json"
    assert chosen.extractor_options == ("--extractor", "efficientnet-lite0")
    shown = shipped_tables.read_pictures(chosen)
    test = datasets.load_dataset(str(world), split="test")
    assert len(shown.test) == len(shown.train) == min(5, len(test))
    captions = shipped_tables.write_sets(shown, tmp_path / "files")
    assert not (tmp_path / "files" / "imagenet").exists()
    root, places = tmp_path / "files" / "coco", [n * len(test) // 5 for n in range(5)]
    found = coco_captions(root / "annotations" / "captions_val2014.json", root / "val2014")
    for one, row, own in zip(found, test.select(places), captions.values(), strict=True):
        assert list(one.captions) == row["captions"] == list(own)
        assert one.picture.open().convert("RGB").tobytes() == row["image"].tobytes()


def test_the_untrained_model_is_new_and_samples_as_the_shipped_one(tmp_path):
    shipped = shipped_tables.CHECKPOINTS / "mdm-fashion"
    shipped_tables.write_untrained(str(shipped), tmp_path / "a", seed=1)
    new, trained = (load_file(f / "model.safetensors") for f in (tmp_path / "a", shipped))
    assert {name: value.shape for name, value in new.items()} == {
        name: value.shape for name, value in trained.items()
    }
    name = "decoder.latent_proj.text.weight"
    assert not torch.allclose(new[name].float(), trained[name].float(), atol=0.01)
    settings = [
        json.loads((f / "generation_config.json").read_text()) for f in (tmp_path / "a", shipped)
    ]
    settings[1].pop("transformers_version", None)
    assert {name: settings[0][name] for name in settings[1]} == settings[1]


def test_too_few_pictures():
    with pytest.raises(ValueError, match="limit=3 must be >= 4"):
        shipped_tables.ShippedTableArguments(limit=3)


@pytest.mark.slow
def test_the_whole_command(fashion_folder, tmp_path, capsys):
    words = f"--data_dir {fashion_folder} --limit 12 --num_inference_steps 2"
    words += f" --folder {tmp_path / 'runs'} --output {tmp_path / 'found.json'}"
    (chosen,) = shipped_tables.parse(words.split())
    rows = shipped_tables.run(chosen)["rows"]
    names = [column for columns in chosen.columns.values() for column in columns]
    assert list(rows) == ["untrained", "shipped", "real"]
    assert all(sorted(figures) == sorted(names) for figures in rows.values())
    assert rows["real"]["FID"]["value"] < rows["untrained"]["FID"]["value"]
    assert rows["untrained"]["COCO"]["value"] < rows["real"]["COCO"]["value"]
    before = (tmp_path / "found.json").read_text()
    shipped_tables.run(chosen)  # what is there is not measured again
    assert json.loads(before)["rows"] == json.loads((tmp_path / "found.json").read_text())["rows"]
    assert "| shipped |" in capsys.readouterr().out
