# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The judge: it learns, it is saved whole, and it reads what it is given."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mdm.data.pictures import PictureDataset, Source, load_training_data
from modeling_mdm.evaluation.judge import (
    JudgeArguments,
    JudgeConfig,
    JudgeNetwork,
    main,
    pictures_to_tensor,
    to_unit_range,
    train_judge,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHIPPED = EXAMPLES / "checkpoints" / "fashion-judge"
SECOND = EXAMPLES / "checkpoints" / "fashion-judge-2"


def arguments(**changed):
    return JudgeArguments(**{"num_epochs": 2, "batch_size": 32, "disable_tqdm": True, **changed})


def bars(count, seed=0):
    """Two classes that differ in one thing: a bright row or a bright column."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, 8, 8), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        where = int(rng.integers(8))
        if label:
            image[where] = 255
        else:
            image[:, where] = 255
    return PictureDataset(Source(images, labels=labels))


def test_the_command_learns_digits(tmp_path, capsys):
    command = ["--dataset", "digits", "--output_dir", str(tmp_path), "--mirror", "false"]
    command += ["--num_epochs", "3", "--batch_size", "64", "--disable_tqdm"]
    judge = main(command)
    described = json.loads((tmp_path / "judge.json").read_text())
    assert described["test"]["accuracy"] > 0.9
    assert f"{described['test']['accuracy']:.2%}" in capsys.readouterr().out
    assert described["command"].endswith(" ".join(command))
    assert (described["num_train"], described["num_test"]) == (1437, 360)
    loaded = JudgeNetwork.from_pretrained(tmp_path)
    test = load_training_data("digits", split="test")
    pictures = [test[i]["image"] for i in range(len(test))]
    seen = loaded.classify(pictures, batch_size=7)
    assert seen == judge.classify(pictures)
    assert np.mean(np.equal(seen, test.labels)) == pytest.approx(described["test"]["accuracy"])


def test_a_mixer_learns_and_is_saved_with_its_architecture(tmp_path):
    judge = train_judge(bars(256), bars(64, seed=1), arguments(architecture="mixer", num_epochs=8))
    assert judge.description["test"]["accuracy"] > 0.9
    judge.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "judge.json").read_text())["config"]["architecture"] == "mixer"
    loaded = JudgeNetwork.from_pretrained(tmp_path)
    assert loaded.config == judge.config
    pictures = [bars(9)[n]["image"] for n in range(9)]
    torch.testing.assert_close(loaded.probabilities(pictures), judge.probabilities(pictures))
    kinds = {type(module) for module in judge.modules()}
    assert torch.nn.LayerNorm in kinds and torch.nn.MaxPool2d not in kinds


@pytest.mark.parametrize("size", [(9, 11), (28, 28)])
def test_a_mixer_reads_grids_of_any_shape(size):
    judge = JudgeNetwork(JudgeConfig(3, size, num_channels=3, architecture="mixer")).eval()
    images = torch.rand(2, 3, *size) * 2 - 1
    both = judge(images)
    assert both.shape == (2, 3) and judge.features(images).shape == (2, judge.config.widths[-1])
    torch.testing.assert_close(judge(images[1:]), both[1:])  # no picture sees another
    torch.testing.assert_close(judge.head(judge.features(images)), both)


def test_files_of_judges_before_there_were_several_architectures_load(tmp_path):
    judge = JudgeNetwork(JudgeConfig(2, image_size=(8, 8), widths=(4, 8)))
    judge.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "judge.json").read_text())
    del described["config"]["architecture"], described["config"]["visible"]
    (tmp_path / "judge.json").write_text(json.dumps(described))
    loaded = JudgeNetwork.from_pretrained(tmp_path)
    assert loaded.config == judge.config and loaded.config.architecture == "convolutional"
    assert "architecture" not in json.loads((SHIPPED / "judge.json").read_text())["config"]


@pytest.mark.parametrize("visible, hidden", [("upper", slice(4, 9)), ("lower", slice(0, 4))])
@pytest.mark.parametrize("architecture", ["convolutional", "mixer"])
def test_a_judge_of_one_half_sees_nothing_of_the_other(visible, hidden, architecture):
    config = JudgeConfig(2, (9, 8), widths=(4, 8), visible=visible, architecture=architecture)
    judge = JudgeNetwork(config).eval()
    images = torch.rand(3, 1, 9, 8)
    changed, seen = images.clone(), images.clone()
    changed[..., hidden, :] = -1
    torch.testing.assert_close(judge(changed), judge(images), rtol=0, atol=0)
    rows = torch.ones(9, dtype=torch.bool)
    rows[hidden] = False
    seen[..., rows, :] = -1
    assert not torch.allclose(judge(seen), judge(images))
    assert images.min() >= 0  # what is passed stays


def test_probabilities_are_those_of_the_classes():
    judge = JudgeNetwork(JudgeConfig(3, image_size=(8, 8), widths=(4, 8), mirror=True)).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    image = torch.tensor(np.asarray(picture))[None, None] / 127.5 - 1
    with torch.no_grad():
        both = judge(image).softmax(-1), judge(image.flip(-1)).softmax(-1)
    mean = (both[0] * both[1]).sqrt()  # geometric
    found = judge.probabilities([picture, picture], batch_size=1)
    torch.testing.assert_close(found, (mean / mean.sum()).expand(2, 3))
    assert judge.classify([picture]) == found[:1].argmax(-1).tolist()
    assert judge.probabilities([]).shape == (0, 3)


def test_only_the_training_split_is_learned():
    first = train_judge(bars(64), bars(32, seed=1), arguments())
    again = train_judge(bars(64), bars(32, seed=2), arguments())
    other = train_judge(bars(64), bars(32, seed=1), arguments(seed=1))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)
    assert any((p != q).any() for p, q in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bf16", ["true", "false"])
@pytest.mark.filterwarnings("ignore:.*bfloat16.*")
def test_training_within_an_evaluation_in_bfloat16_is_as_without(bf16):
    """Weights cast to bfloat16 for the evaluation around it would never change."""
    asked = arguments(bf16=bf16)
    alone = train_judge(bars(64), bars(8, 1), asked).state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        within = train_judge(bars(64), bars(8, 1), asked).state_dict()
    for name, weight in alone.items():
        torch.testing.assert_close(within[name], weight, rtol=0, atol=0, msg=name)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train_judge(bars(8), bars(8), arguments(num_epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_accuracy_counts():
    class Stub(JudgeNetwork):
        def forward(self, images):
            level = (images[:, 0, 0, 0] + 1) * 127.5  # the first pixel says the class
            return torch.nn.functional.one_hot(level.round().long(), 3).float()

    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 0, 1, 1, 1, 0])
    judge = Stub(JudgeConfig(3, image_size=(4, 4))).train()
    result = judge.accuracy(images, torch.tensor([0, 1, 1, 1, 1, 0]))
    assert result == {"accuracy": pytest.approx(5 / 6), "accuracy_by_class": [1.0, 0.75, None]}
    assert judge.training


def test_pictures_become_tensors():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    config = JudgeConfig(2, image_size=(6, 5), num_channels=3, widths=(4, 4))
    batch = pictures_to_tensor([Image.fromarray(pixels)], config)
    np.testing.assert_array_equal(batch[0].permute(1, 2, 0), pixels)
    unit = to_unit_range(batch)
    assert unit.max() <= 1 and unit.min() >= -1
    np.testing.assert_allclose(unit[0].permute(1, 2, 0), pixels / 127.5 - 1.0, atol=1e-6)
    grey = JudgeConfig(2, image_size=(6, 5), widths=(4, 4))
    mixed = [Image.fromarray(pixels), Image.fromarray(pixels[..., 0]), Image.new("RGBA", (50, 60))]
    converted = pictures_to_tensor(mixed, grey)
    np.testing.assert_array_equal(converted[0, 0], np.asarray(mixed[0].convert("L")))
    np.testing.assert_array_equal(converted[1, 0], pixels[..., 0])
    assert JudgeNetwork(grey).classify([]) == []


def test_a_mirroring_judge_weighs_a_picture_and_its_mirror_image():
    class Stub(JudgeNetwork):
        def forward(self, images):
            level = (images[:, 0, 0, 0] + 1) * 127.5  # class n, the surer the higher n
            return torch.nn.functional.one_hot(level.round().long(), 6) * level[:, None]

    corners = [(0, 4), (4, 0), (5, 3), (1, 2), (2, 2)]
    pictures = []
    for left, right in corners:
        pixels = np.zeros((4, 4), np.uint8)
        pixels[0, 0], pixels[0, -1] = left, right
        pictures.append(Image.fromarray(pixels))
    plain = Stub(JudgeConfig(6, image_size=(4, 4)))
    both = Stub(JudgeConfig(6, image_size=(4, 4), mirror=True))
    assert plain.classify(pictures) == [left for left, _ in corners]
    assert both.classify(pictures, batch_size=2) == [max(pair) for pair in corners]


def test_errors(tmp_path):
    judge = JudgeNetwork(JudgeConfig(2, image_size=(8, 8), widths=(4, 8)))
    with pytest.raises(ValueError, match=r"images has the shape \(1, 3, 8, 8\)"):
        judge(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="num_classes=1"):
        JudgeConfig(1)
    with pytest.raises(ValueError, match="num_channels=2"):
        JudgeConfig(2, num_channels=2)
    with pytest.raises(ValueError, match="architecture='forest' must be one of"):
        JudgeConfig(2, architecture="forest")
    with pytest.raises(ValueError, match="visible='left' must be one of"):
        JudgeConfig(2, visible="left")
    with pytest.raises(FileNotFoundError, match="second_judge='nowhere' is missing"):
        JudgeNetwork.from_pretrained("nowhere", "second_judge")
    with pytest.raises(ValueError, match="give fewer widths"):
        JudgeConfig(2, image_size=(3, 9))
    with pytest.raises(ValueError, match="num_epochs=0"):
        train_judge(bars(8), bars(8), arguments(num_epochs=0))
    unlabelled = PictureDataset(Source(np.zeros((4, 8, 8), np.uint8), labels=[0, 1, None, 1]))
    with pytest.raises(ValueError, match="without a label"):
        train_judge(unlabelled, bars(8), arguments())
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        JudgeNetwork.from_pretrained(tmp_path)
    judge.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "judge.json").read_text())
    described["config"]["widths"] = [4, 16]
    (tmp_path / "judge.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="does not fit"):
        JudgeNetwork.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="does not fit"):
        JudgeNetwork.from_pretrained(tmp_path)


def test_the_shipped_judge():
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 3e6
    judge = JudgeNetwork.from_pretrained(SHIPPED)
    assert judge.description["test"]["accuracy"] >= 0.93
    assert judge.description["num_test"] == 10_000
    files = sorted((EXAMPLES / "pictures" / "fashion_mnist").glob("*.png"))
    assert len(files) == 10
    assert judge.classify([Image.open(f) for f in files]) == list(range(10))


def test_the_shipped_second_judge():
    assert sum(f.stat().st_size for f in SECOND.iterdir()) < 2e6
    judge = JudgeNetwork.from_pretrained(SECOND)
    assert judge.config.architecture == "mixer"
    assert judge.description["test"]["accuracy"] >= 0.92
    assert judge.description["num_test"] == 10_000
    files = sorted((EXAMPLES / "pictures" / "fashion_mnist").glob("*.png"))
    assert judge.classify([Image.open(f) for f in files]) == list(range(10))
