# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipe and the processor of the emoji world: from the set as it is built, folder or file."""

import json
import shutil

import datasets
import emoji_talks
import pytest
import tiny_emojis
import torch
import yaml
from tiny_digits import ROOT

from benchmarks import gpu
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


@pytest.mark.slow
def test_a_slice_of_the_recipe_for_a_gpu_goes_on_from_the_last(made, tmp_path):
    """What `make gpu` does with the time that it has left, on tiny shapes; from the one file."""
    shutil.copy(made / "emoji-world-64.tar", tmp_path)
    line = (
        "--save_steps 1 --logging_steps 1 --eval_strategy no --use_cpu true "
        "--per_device_train_batch_size 4 --dataloader_num_workers 0 --disable_tqdm true "
        '--dataloader_persistent_workers false --lr_scheduler_kwargs {"num_decay_steps":1} '
        f"--output_dir {tmp_path / 'run'} --config_overrides"
    )
    words = [*line.split(), *(f"{name}={value}" for name, value in SHRUNKEN.items())]
    archive = str(tmp_path / "emoji-world-64.tar")
    steps = []
    for seconds in (gpu.LEAST_SECONDS, gpu.LEAST_SECONDS):
        options = [*words, "--max_steps", str(len(steps) + 2)]
        assert gpu.train_colours(archive, seconds, options) == 0
        state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
        steps.append([row["step"] for row in state["log_history"] if "loss" in row])
    assert steps == [[1, 2], [1, 2, 3]]


def test_conversations_are_made_anew_from_the_one_file(made, tmp_path):
    shutil.copy(made / "emoji-world-64.tar", tmp_path)
    count = len(datasets.load_dataset(str(made / "talks"), split="train"))
    emoji_talks.run(
        emoji_talks.TalkArguments(
            str(tmp_path / "emoji-world-64.tar"), str(tmp_path / "talks"), **tiny_emojis.TALKS
        )
    )
    for split in ("train", "test", "held_out"):
        name = f"data/{split}-00000-of-00001.parquet"
        assert (tmp_path / "talks" / name).read_bytes() == (made / "talks" / name).read_bytes()
    assert count > 20


@pytest.mark.parametrize("name", ["num_talks", "num_edit_talks", "seed"])
def test_numbers_of_conversations_below_0_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1 must be >= 0"):
        emoji_talks.TalkArguments("set", "out", **{name: -1})


def test_no_set_and_no_time_are_said(capsys, tmp_path):
    assert gpu.train_colours(str(tmp_path / "none"), 600) == 0
    assert "none is not there (examples/data/emoji_world.py makes it)" in capsys.readouterr().out
    assert gpu.train_colours(str(tmp_path), 3) == 0
    assert "3 s are left and 60 are needed" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["emoji", "emoji_64"])
def test_the_recipes_differ_in_size_alone(recipe):
    """One vocabulary, one mixture of tasks."""
    values, own = (
        yaml.safe_load((RECIPE.parent / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("emoji", recipe)
    )
    for name in ("tasks", "talks_share", "talks_kinds", "talks_late", "dataset", "talks"):
        assert values[name] == own[name]
    small, large = (
        (ROOT / one["processor"] / "tokenizer.json").read_bytes() for one in (values, own)
    )
    assert small == large
    train.parse([str(RECIPE.parent / f"{recipe}.yaml")])


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
