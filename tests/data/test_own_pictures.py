# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One's own pictures: the page's two commands, the recipes, and what is held out of a folder."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_digits import ROOT, load_script

from modeling_mdm import MDMConfig, MDMProcessor
from modeling_mdm.data.pictures import PictureDataset, Source, load_training_data
from modeling_mdm.training import run_data, train

SIZES = {32: 4, 64: 8, 256: 16}  # pixels: those of a patch
SHRUNKEN = {
    "hidden_size": 32, "num_hidden_layers": 1, "head_dim": 16, "state_size": 8,
    "vae_hidden_size": 16, "latent_dim": 4,
}  # fmt: skip
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures of one colour each, with captions in metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(40):
        name = [*COLOURS][number % 3]
        Image.new("RGB", (48, 40), COLOURS[name]).save(folder / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", "text": f"picture {number} in {name}"})
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def recipe(size):
    return ROOT / "examples" / "configs" / f"own_pictures_{size}.yaml"


def make_processor(monkeypatch, folder, size, *options):
    """Run the first of the two commands."""
    script = load_script(ROOT / "processing" / "train_tokenizer.py")
    words = f"--vocab_size 400 --image_size {size} --patch_size {SIZES[size]} --num_channels 3"
    monkeypatch.setattr(
        sys, "argv", ["train_tokenizer.py", *words.split(), "--output_dir", str(folder), *options]
    )
    script.main()
    return MDMProcessor.from_pretrained(folder)


@pytest.mark.parametrize("size", SIZES)
def test_the_two_commands_log_evaluate_and_draw(size, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    make_processor(monkeypatch, tmp_path / "processor", size, "--dataset", str(pictures))
    # The recipe as it is, but for a tiny model and few steps.
    values = yaml.safe_load(recipe(size).read_text(encoding="utf-8"))
    values["config_overrides"] |= SHRUNKEN
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(values))
    options = (
        "--max_steps 3 --eval_steps 2 --logging_steps 1 --num_samples 2 --sample_steps 1 "
        "--per_device_train_batch_size 4 --dataloader_num_workers 0 --use_cpu true "
        "--disable_tqdm true"
    )
    words = ["--dataset", pictures, "--processor", tmp_path / "processor", "--output_dir", run]
    train.main([str(file), *map(str, words), *options.split()])
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [h["step"] for h in history if "loss" in h] == [1, 2, 3]
    assert [h["step"] for h in history if "eval_loss" in h] == [2, 3]  # and at the end
    with Image.open(run / "samples" / "step-0000002.png") as sheet:
        assert sheet.width > 2 * 64
    trained = MDMConfig.from_pretrained(run)
    assert (trained.image_size, trained.patch_size, trained.num_channels) == (size, SIZES[size], 3)


@pytest.mark.parametrize("size", SIZES)
def test_a_recipe_logs_and_draws_early_and_fits_its_processor(
    size, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    processor = make_processor(monkeypatch, tmp_path, size, "--dataset", str(pictures))
    words = ["--dataset", str(pictures), "--processor", str(tmp_path)]
    model_args, data_args, args = train.parse([str(recipe(size)), *words])
    with torch.device("meta"):
        config = train.make_model(model_args, processor).config
    assert (config.image_size, config.patch_size, config.num_channels) == (size, SIZES[size], 3)
    assert config.vocab_size == len(processor.tokenizer) and config.num_classes == 0
    assert config.max_text_length == processor.max_text_length
    assert config.num_attention_heads == config.hidden_size // 64
    assert args.eval_strategy == "steps" and args.logging_steps <= 20
    assert args.eval_steps <= args.max_steps / 40 and args.warmup_steps <= args.max_steps / 20
    assert args.num_samples > 0 and 0 < data_args.eval_share < 0.2
    assert args.per_device_train_batch_size >= 16
    # The head of the file says the two commands for this very size.
    head = recipe(size).read_text(encoding="utf-8").split("config:")[0]
    assert f"--image_size {size} --patch_size {SIZES[size]} --num_channels 3" in head
    assert f"examples/configs/own_pictures_{size}.yaml" in head


def test_the_page_names_the_two_commands():
    page = (ROOT / "docs" / "own_pictures.md").read_text(encoding="utf-8")
    assert "processing/train_tokenizer.py --dataset PICTURES" in page
    assert "examples/configs/own_pictures_64.yaml --dataset PICTURES --processor" in page


# --- fields that are the processor's ---


def test_auto_takes_what_the_processor_says(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ("--dataset", str(pictures), "--max_text_length", "9")
    processor = make_processor(monkeypatch, tmp_path, 32, *options)
    names = ("vocab_size", "max_text_length", "image_size", "patch_size", "num_channels")
    overrides = [f"{name}=auto" for name in (*names, "num_classes", "kernel_backend")]
    args = train.ModelArguments("configuration/mdm-digits", str(tmp_path), overrides)
    config = train.make_model(args, processor).config
    found = [getattr(config, name) for name in names]
    assert found == [len(processor.tokenizer), 9, 32, 4, 3]
    assert config.num_classes == 0 and config.kernel_backend == "auto"
    args.config_overrides = ["hidden_size=auto", "vocab_size=auto"]
    with pytest.raises(Exception, match="hidden_size"):
        train.make_model(args, processor)


# --- what is held out ---


def texts_of(data):
    return [data[index]["text"] for index in range(len(data))]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_share_of_a_folder_is_held_out_and_never_trained_on(share, pictures):
    whole = texts_of(load_training_data(str(pictures)))
    parts = [
        load_training_data(str(pictures), held_out=share, takes_held_out=takes, seed=seed)
        for takes, seed in ((False, 0), (True, 0), (True, 7))
    ]
    trained, held, again = map(texts_of, parts)
    assert held == again and len(held) == round(share * 40)  # the same ones for every seed
    assert sorted(trained + held) == sorted(whole) and not set(trained) & set(held)
    assert trained == [text for text in whole if text in trained]  # in their order
    number = int(held[0].split()[1])
    image = np.asarray(parts[1][0]["image"].convert("RGB"))
    assert tuple(image[0, 0]) == list(COLOURS.values())[number % 3]


def test_what_is_held_out_is_of_all_classes():
    """Sets often lie in the order of their classes: the last items would be one of them."""
    digits = load_training_data("digits", held_out=0.1, takes_held_out=True)
    rest = load_training_data("digits", held_out=0.1)
    assert (len(digits), len(rest)) == (144, 1293)
    assert set(digits.labels) == set(range(10)) and rest.num_classes == 10
    assert set(map(bytes, digits.source.images)).isdisjoint(map(bytes, rest.source.images))


@pytest.mark.parametrize("share", [-0.1, 0.001, 0.999, 1.0, 2.0])
def test_a_share_that_leaves_nothing_is_refused(share, pictures):
    with pytest.raises(ValueError, match=rf"held_out={share} of 40 items leaves nothing"):
        load_training_data(str(pictures), held_out=share)


def test_a_named_split_is_evaluated_on_instead(pictures):
    args = run_data.DataArguments("digits", eval_split="test", eval_share=0.1)
    evaluated = run_data.load_evaluation_data(args, 0)
    assert len(evaluated) == 360 and len(run_data.load_split(args, "train", None, False, 0)) == 1437
    args.eval_split = None
    assert len(run_data.load_evaluation_data(args, 0)) == 144
    assert len(run_data.load_split(args, "train", None, False, 0)) == 1293
    args.eval_share = 0.0
    assert run_data.load_evaluation_data(args, 0) is None
    assert len(run_data.load_split(args, "train", None, False, 0)) == 1437


# --- captions for the tokenizer ---


def test_the_tokenizer_learns_the_captions_of_a_set(pictures, tmp_path, monkeypatch, capsys):
    processor = make_processor(monkeypatch, tmp_path / "a", 32, "--dataset", str(pictures))
    assert processor.tokenizer.tokenize("picture 7 in red")[0] == "picture"
    assert not [line for line in capsys.readouterr().err.splitlines() if "max_text_length" in line]
    # Too long for the processor: said now, not in the middle of training.
    options = ("--dataset", str(pictures), "--max_text_length", "4")
    make_processor(monkeypatch, tmp_path / "b", 32, *options)
    said = capsys.readouterr().err
    assert "40 of 40 texts have more than max_text_length=4 pieces, the longest " in said


def test_the_tokenizer_learns_names_of_classes(tmp_path, monkeypatch):
    for name in ("tabby", "poodle"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / f"{number}.png")
    out = tmp_path / "processor"
    processor = make_processor(monkeypatch, out, 32, "--dataset", str(tmp_path / "set"))
    pieces = processor.tokenizer.tokenize("a photo of a poodle")
    assert pieces[-1].endswith("poodle") and processor.num_classes == 2


def test_a_set_without_captions_is_refused(monkeypatch, tmp_path):
    source = Source(np.zeros((2, 8, 8), np.uint8), texts=[None, ""])
    monkeypatch.setattr(
        "modeling_mdm.data.pictures.load_training_data", lambda *_, **__: PictureDataset(source)
    )
    with pytest.raises(ValueError, match="dataset='bare' holds no captions: give --text_files"):
        make_processor(monkeypatch, tmp_path, 32, "--dataset", "bare")
