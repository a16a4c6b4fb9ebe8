# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipe and the processor of the emoji world: from the set as it is built, folder or file."""

import shutil

import datasets
import pytest
import tiny_emojis
import torch
import yaml
from tiny_digits import ROOT

from modeling_mdm import MDMProcessor
from modeling_mdm.training import run_data, train

for library in ("resvg_py", "inflect"):
    pytest.importorskip(library, reason='needs `pip install "modeling-mdm[emoji]"`')

RECIPE, PROCESSOR = ROOT / "examples" / "configs" / "emoji.yaml", ROOT / "processing" / "mdm-emoji"
SHRUNKEN = {"hidden_size": 32, "num_hidden_layers": 1, "head_dim": 16, "state_size": 8}
SHRUNKEN |= {"vae_hidden_size": 16, "latent_dim": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_emojis.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def read(made, tmp_path, monkeypatch):
    """Reads the recipe as it is, but for a tiny model and few steps."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(ROOT)

    def read(*words):
        values = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        values["config_overrides"] = SHRUNKEN
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        line = f"--dataset {made} --talks {made / 'talks'} --output_dir {tmp_path / 'run'}"
        return train.parse([str(tmp_path / "run.yaml"), *line.split(), *map(str, words)])

    return read


def test_three_steps_of_the_recipe(read, tmp_path):
    words = (
        "--max_steps 3 --eval_steps 3 --logging_steps 1 --num_samples 2 --sample_steps 1 "
        "--per_device_train_batch_size 4 --eval_limit 8 --dataloader_num_workers 0 --use_cpu true "
        "--disable_tqdm true --report_to none --save_steps 3 --max_skipped 0"
    )
    train.run(*read(*words.split()))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert [*(tmp_path / "run" / "samples").glob("*.png")]


def test_the_batches_of_the_recipe(read):
    """Pictures with one of all their captions, and conversations of every kind apart."""
    _, arguments, _ = read()
    processor = MDMProcessor.from_pretrained(PROCESSOR)
    data, held = run_data.load_data(arguments, processor, 4, seed=0)
    pictures, *talks = data.parts
    assert len(talks) >= 6 and sum(data.shares[1:]) == pytest.approx(0.3)
    collate = run_data.make_collator(arguments, processor, 0)
    shown = set()
    for part in talks:
        batch = collate([part[n % len(part)] for n in range(4)])
        shown.add(batch["pixel_values"].shape[1] if "pixel_values" in batch else 0)
        assert "turn_ids" in batch  # which batches of picture tasks lack
    assert shown == {0, 1, 2}
    batch = collate([pictures[n] for n in range(8)])
    assert batch["pixel_values"].shape == (8, 3, 32, 32) and batch["input_ids"].shape == (8, 24)
    captions = pictures.source.texts
    drawn = {n: set() for n in range(12)}
    for epoch in range(24):
        data.set_epoch(epoch)
        for n, texts in drawn.items():
            texts.add(pictures[n]["text"])
    assert all(texts <= set(captions[n]) and len(texts) > 1 for n, texts in drawn.items())
    assert not pictures.skipped and not held.skipped


def test_the_one_file_gives_what_the_folder_gives(read, made, tmp_path):
    processor = MDMProcessor.from_pretrained(PROCESSOR)
    shutil.copy(made / "emoji-world-64.tar", tmp_path)
    _, arguments, _ = read()
    _, packed, _ = read("--dataset", tmp_path / "emoji-world-64.tar")
    (one, _), (other, _) = (run_data.load_data(own, processor, 4, 0) for own in (arguments, packed))
    assert len(one) == len(other)
    for n in range(20):
        assert one[n]["text"] == other[n]["text"]
        assert one[n]["image"].tobytes() == other[n]["image"].tobytes()


WORDS = (
    "a turtle above a calendar, outlined style, on a green background",
    "three broken hearts, vintage style, on a red background",
    "first, gold, medal, place",
    "is the apple left of the turtle?",
    "a piñata on a plain background",
    'which word means "the bony skeleton of the head of vertebrates"?',
)


@pytest.mark.parametrize("text", WORDS)
def test_words_fit_the_processor_and_come_back(text):
    processor = MDMProcessor.from_pretrained(PROCESSOR)
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text
    assert len(ids) < processor.max_text_length == 24
    assert len(processor.tokenizer) == 2000 and processor.patch_size == 8
    pixels = processor(images=torch.zeros(3, 64, 64), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
