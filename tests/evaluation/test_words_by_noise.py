# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What names tell a model, noise by noise: measured on the shipped one, which knows some."""

from pathlib import Path

import pytest
import torch
from emoji_words import LOG_SNRS, drawing_error, others_of, word_figures

from modeling_mdm import MDMForJointGeneration, MDMProcessor

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "checkpoints" / "mdm-fashion"
NAMES = ["a photo of a dress", "a photo of a bag", "a photo of a dress", "a photo of a sneaker"]


@pytest.fixture(scope="module")
def processor():
    return MDMProcessor.from_pretrained(FOLDER)


@pytest.fixture
def model():
    return MDMForJointGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture
def pictures(model, processor):
    inputs = processor(text=NAMES, generate="image", return_tensors="pt")
    options = {"num_inference_steps": 6, "show_progress": False}
    out = model.generate(**inputs, generator=torch.Generator().manual_seed(0), **options)
    return [sample.image for sample in processor.post_process(out)]


def test_another_name_is_another_by_lot():
    names = ["dress", "bag", "dress", "shirt"] * 20
    others = others_of(names)
    assert others == others_of(names) and all(map(str.__ne__, names, others))
    assert {*others} == {*names}
    assert {other for name, other in zip(names, others, strict=True) if name == "bag"} == {
        *("dress", "shirt")
    }
    with pytest.raises(ValueError, match=r"dress.*all the same"):
        others_of(["dress", "dress"])


def test_the_right_name_takes_error_away_where_there_is_noise(model, processor, pictures):
    rows = [{"objects": [{"concept": name}]} for name in NAMES]
    found = word_figures(model, processor, rows, pictures, batch_size=3, seed=0)
    assert [*found] == [f"log-SNR {level:g}" for level in LOG_SNRS]
    for own in found.values():
        assert own["gain"] == pytest.approx(1 - own["right"] / own["wrong"])
    assert found["log-SNR -4"]["gain"] > 0.1 > found["log-SNR 2"]["gain"] > -0.1


def test_an_error_is_without_the_weight_of_time(model, processor, pictures):
    def error(log_snr, weight):
        model.config.denoising_weight_max = weight
        return drawing_error(model, processor, pictures, NAMES, log_snr, batch_size=4, seed=0)

    assert error(2.0, weight=50.0) == pytest.approx(error(2.0, weight=1.0), rel=1e-5)
    assert error(2.0, weight=5.0) < error(-4.0, weight=5.0)
