# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Inpainting and reconstruction, on a model whose mistakes are planned.

A picture of class c has the grey level 20 c + row; the stand-in model repaints with 20 c + 10.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import make_config, make_processor
from transformers import BatchFeature

from modeling_mdm.data.pictures import PictureDataset, Source, load_training_data
from modeling_mdm.evaluation.borders import PatchBorders
from modeling_mdm.evaluation.inpainting import half_judges, inpainting_figures
from modeling_mdm.evaluation.judge import JudgeArguments
from modeling_mdm.evaluation.judge_network import JudgeConfig, JudgeNetwork
from modeling_mdm.evaluation.panel import Panel, as_seen, balanced
from modeling_mdm.evaluation.reconstruction import reconstructed, reconstruction_figures
from modeling_mdm.evaluation.sampling import Sampling
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.image_processing_pil_mdm import open_picture

SIDE = 6
QUIET = {"disable_tqdm": True}


def picture(label):
    rows = np.arange(SIDE, dtype=np.uint8)[:, None] + np.uint8(20 * label)
    return Image.fromarray(np.broadcast_to(rows, (SIDE, SIDE)).copy())


def pictures_of(labels):
    images = np.stack([np.asarray(picture(label)) for label in labels])
    return PictureDataset(Source(images, labels=labels))


class PaintProcessor:
    image_processor = MDMImageProcessor(size={"height": SIDE, "width": SIDE}, num_channels=1)

    def __call__(self, images, image_mask, generation_mode, return_tensors):
        assert generation_mode == "image" and image_mask.shape == (SIDE, SIDE)
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return BatchFeature({"pixel_values": pixels, "image_given": 1 - image_mask})

    def post_process(self, out):
        return [SimpleNamespace(text=None, image=Image.fromarray(p)) for p in out.pixels]


class PaintModel(torch.nn.Module):
    """Repaints with the true class, but where `errs(rows that are hidden, count)` names another."""

    device = torch.device("cpu")

    def __init__(self, errs=lambda hidden, n: None):
        super().__init__()
        self.errs, self.calls, self.counts = errs, [], {}

    def generate(self, pixel_values, image_given, **options):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(options)
        hidden = tuple((image_given == 0).all(1).nonzero()[:, 0].tolist())
        pixels = ((pixel_values[:, 0] + 1) * 127.5).round().numpy().astype(np.uint8)
        for one in pixels:
            n = self.counts[hidden] = self.counts.get(hidden, -1) + 1
            wrong = self.errs(hidden, n)
            true = int(one[0, 0]) // 20
            one[list(hidden)] = 20 * (true if wrong is None else wrong) + 10
        return SimpleNamespace(pixels=pixels, num_evaluations=4)


class HighestJudge:
    """Sees the highest class of all rows, or of a half, and is as sure as it is told."""

    def __init__(self, num_classes=4, visible="all", sure=0.7, wrong=()):
        self.config = JudgeConfig(num_classes, (SIDE, SIDE), widths=(4,), visible=visible)
        self.sure, self.wrong = sure, wrong

    def classify(self, pictures):
        seen = [int(np.asarray(one).max()) // 20 for one in pictures]
        return [3 if n in self.wrong else label for n, label in enumerate(seen)]

    def probabilities(self, pictures):
        found = torch.full((len(pictures), 4), (1 - self.sure) / 3)
        found[range(len(pictures)), self.classify(pictures)] = self.sure
        return found


LOWER, UPPER = (3, 4, 5), (0, 1, 2)


def test_each_half_is_repainted_and_judged_beside_what_the_other_tells():
    plan = {(LOWER, 1): 3, (LOWER, 4): 3, (UPPER, 0): 2}
    model = PaintModel(lambda hidden, n: plan.get((hidden, n))).train()
    halves = {
        "upper": HighestJudge(visible="upper", sure=0.7, wrong=(0,)),
        "lower": HighestJudge(visible="lower", sure=0.4),
    }
    data = pictures_of([0, 0, 1, 1, 2, 2])
    panel = Panel(second_judge=HighestJudge(wrong=(5,)))
    lower, upper = inpainting_figures(
        *(model, PaintProcessor(), HighestJudge(), halves, data, 5), Sampling(7, 2, **QUIET), panel
    )
    assert model.training
    assert (lower.repainted, upper.repainted) == ("lower", "upper")
    assert {c["num_inference_steps"] for c in model.calls} == {7} and len(model.calls) == 6
    assert lower.num_samples == upper.num_samples == 5
    assert (lower.share_right, upper.share_right) == (3 / 5, 4 / 5)
    assert lower.share_right_by_class == [1 / 2, 1.0, 0.0, None]
    assert lower.confusion == [[1, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert lower.second_judge.confusion == lower.confusion
    # The upper half is given where the lower is repainted.
    assert lower.share_right_of_given == 4 / 5 and upper.share_right_of_given == 1
    assert lower.mean_probability_of_given == pytest.approx((4 * 0.7 + 0.1) / 5)
    assert upper.mean_probability_of_given == pytest.approx(0.4)
    # Rows 2 and 3 differ by 1 in real pictures; repainted they are 20 c + 10 beside 2 or 3.
    errors = [20 * (3 - 0), 20 * (3 - 2)]
    assert lower.seam.step == pytest.approx((5 * 8 + sum(errors)) / 5)
    assert upper.seam.step == pytest.approx((5 * 7 + 20 * 2) / 5)
    assert lower.seam.real_step == upper.seam.real_step == 1
    assert lower.seam.ratio == lower.seam.step
    assert lower.mean_evaluations == 4
    names = ["a", "b", "c", "d"]
    (first, alone), ((of, seam),) = lower.rows(names), lower.comparisons()
    assert first == ("inpainting, lower half repainted", "5", "-", "60.0% / 60.0%", "c 0.0%")
    assert alone[0] == "the upper half alone, by a judge of it"
    assert alone[3] == "80.0%, mean p 0.58"
    assert of == "inpainting, lower half" and seam.value == f"{lower.seam.step:.2f}"


def test_sheets_of_samples(tmp_path):
    halves = {name: HighestJudge(visible=name) for name in ("upper", "lower")}
    panel = Panel(samples_dir=tmp_path / "sheets")
    arguments = (PaintModel(), PaintProcessor(), HighestJudge(), halves)
    inpainting_figures(*arguments, pictures_of([0, 1, 2, 3] * 3), 12, Sampling(**QUIET), panel)
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == [
        "inpainting_lower.png",
        "inpainting_upper.png",
    ]
    sheet = np.asarray(open_picture(tmp_path / "sheets" / "inpainting_lower.png").convert("L"))
    assert (sheet == 128).sum() >= 12 * 3 * SIDE  # what was hidden
    joint = [SimpleNamespace(text="a dress", image=picture(1))] * 3
    panel.keep("joint", joint)
    assert open_picture(tmp_path / "sheets" / "joint.png").width > 3 * 84
    Panel().keep("joint", joint)  # no folder, no sheet


def test_real_pictures_take_turns_by_class():
    data = pictures_of([2, 0, 0, 1, 1, 2, 0])
    levels = [np.asarray(p)[0, 0] // 20 for p in balanced(data, 5, 3)]
    assert levels == [0, 1, 2, 0, 1]
    assert len(balanced(data, 6, 3)) == 6
    with pytest.raises(ValueError, match=r"3 real pictures of class 1, of which .* 2: .* 6"):
        balanced(data, 8, 3)
    with pytest.raises(ValueError, match="without a label"):
        balanced(PictureDataset(Source(np.zeros((2, 6, 6), np.uint8), labels=[0, None])), 2, 1)
    (seen,) = as_seen(PaintProcessor(), [Image.new("RGB", (12, 12), (9, 9, 9))])
    assert (seen.mode, seen.size, seen.getpixel((0, 0))) == ("L", (SIDE, SIDE), 9)


def test_judges_of_halves_are_trained_or_read(tmp_path):
    train, test = (load_training_data("digits", split=s, limit=60) for s in ("train", "test"))
    wanted = JudgeArguments(num_epochs=1, batch_size=16, disable_tqdm=True)
    trained = half_judges(None, train, test, wanted)
    assert {name: judge.config.visible for name, judge in trained.items()} == {
        "upper": "upper",
        "lower": "lower",
    }
    for name, judge in trained.items():
        judge.save_pretrained(tmp_path / name)
    read = half_judges(str(tmp_path), None, test, wanted)
    pictures = [test[n]["image"] for n in range(5)]
    for name, judge in read.items():
        assert judge.classify(pictures) == trained[name].classify(pictures)
    trained["upper"].save_pretrained(tmp_path / "lower")
    with pytest.raises(ValueError, match="folder lower sees 'upper': train one with --visible low"):
        half_judges(str(tmp_path), None, test, wanted)
    with pytest.raises(FileNotFoundError, match="half_judges="):
        half_judges(str(tmp_path / "nowhere"), None, test, wanted)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_there_must_be_samples(num_samples):
    with pytest.raises(ValueError, match=f"num_samples={num_samples} must be >= 1"):
        inpainting_figures(
            PaintModel(), PaintProcessor(), HighestJudge(), {}, pictures_of([0]), num_samples
        )
    with pytest.raises(ValueError, match="without a label"):
        unlabelled = PictureDataset(Source(np.zeros((2, 6, 6), np.uint8), labels=[0, None]))
        inpainting_figures(PaintModel(), PaintProcessor(), HighestJudge(), {}, unlabelled)


@pytest.fixture(scope="module")
def tiny():
    processor = make_processor()
    torch.manual_seed(0)
    return MDMForJointGeneration(make_config(len(processor.tokenizer))).eval(), processor


def test_a_reconstruction_is_the_decoded_posterior_mean(tiny):
    model, processor = tiny
    data = load_training_data("digits", split="test", limit=4)
    pictures = [data[n]["image"] for n in range(4)]
    made = reconstructed(model.requires_grad_(False), processor, pictures)
    vae = model.vae
    for before, after in zip(pictures, made, strict=True):
        pixels = torch.tensor(np.asarray(before), dtype=torch.float32) / 127.5 - 1
        rebuilt = torch.empty(8, 8)
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):  # patch by patch
            patch = pixels[top : top + 4, left : left + 4].reshape(1, 1, 16)
            mean, _ = vae.encode(patch, "image")
            standard = vae.statistics["image"](mean)
            rebuilt[top : top + 4, left : left + 4] = vae.decode(standard, "image").view(4, 4)
        expected = ((rebuilt.clamp(-1, 1) + 1) * 127.5).numpy()
        assert np.abs(np.asarray(after, dtype=np.float32) - expected).max() <= 0.51


def test_reconstructions_are_judged_and_measured(tiny):
    model, processor = tiny
    data = load_training_data("digits", split="test")
    pictures, classes = balanced(data, 20, 10), [n % 10 for n in range(20)]
    judge = JudgeNetwork(JudgeConfig(10, (8, 8), widths=(8,))).eval()
    panel = Panel(judge, {"borders": PatchBorders(4, pictures)})
    found = reconstruction_figures(
        model, processor, judge, pictures, classes, Sampling(batch_size=7, **QUIET), panel
    )
    made = reconstructed(model, processor, pictures)
    right = np.equal(judge.classify(made), classes).mean()
    assert found.share_right == pytest.approx(right) and found.num_samples == 20
    assert found.second_judge.confusion == found.confusion
    assert found.measures["borders"].num_pictures == 20
    assert math.isfinite(found.measures["borders"].relative)
    assert found.comparisons()[0][0] == "reconstruction"
    assert found.rows([str(n) for n in range(10)])[0][:2] == ("reconstruction", "20")
