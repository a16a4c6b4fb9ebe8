# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table by which patch and width of a set are chosen, beside a slow PCA."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from tiny_digits import ROOT, load_script

script = load_script(ROOT / "examples" / "data" / "patch_table.py")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def save_set(folder, count):
    """Two splits of noisy gradients, as bytes (split, picture, height, width, channel)."""
    rng = np.random.default_rng(0)
    slopes = rng.uniform(-6, 6, (2, count, 2, 3))
    rows, columns = np.mgrid[:8, :8]
    pixels = (
        128 + slopes[:, :, :1, None] * rows[..., None] + slopes[:, :, 1:, None] * columns[..., None]
    )
    pixels = np.clip(pixels + rng.normal(0, 9, pixels.shape), 0, 255).astype(np.uint8)
    for split, own in zip(("train", "test"), pixels, strict=True):
        (folder / split).mkdir(parents=True)
        lines = []
        for number, picture in enumerate(own):
            Image.fromarray(picture).save(folder / split / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "text": "a slope"}) + "\n")
        (folder / split / "metadata.jsonl").write_text("".join(lines))
    return pixels / 127.5 - 1


def slow_error(pixels, size, width):
    """Cut by loops, SVD of the training patches, residual of those of the test, in float64."""
    cut = [
        [
            picture[row : row + size, column : column + size].ravel()
            for picture in own
            for row in range(0, 8, size)
            for column in range(0, 8, size)
        ]
        for own in pixels
    ]
    train, test = map(np.array, cut)
    mean = train.mean(0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:width]
    left = (test - mean) - (test - mean) @ axes.T @ axes
    return float((left**2).mean())


def test_the_table_says_what_a_slow_pca_says(tmp_path, capsys):
    pixels = save_set(tmp_path / "set", 40)
    options = f"--dataset {tmp_path / 'set'} --image_size 8 --patch_sizes 2 4 --widths 1 3 12 47 99"
    found = script.main(options.split())
    assert [(row.patch_size, row.positions, row.width) for row in found] == [
        *((2, 16, 1), (2, 16, 3), (2, 16, 12)),
        *((4, 4, 1), (4, 4, 3), (4, 4, 12), (4, 4, 47)),
    ]
    for row in found:
        expected = slow_error(pixels, row.patch_size, row.width)
        assert row.squared == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert "| 4 | 4 | 12 | 0.0" in capsys.readouterr().out


def test_pictures_are_spread_over_a_split(tmp_path):
    save_set(tmp_path / "set", 9)
    data = script.load_training_data(str(tmp_path / "set"), "test")
    processor = script.MDMImageProcessor(size={"height": 8, "width": 8}, num_channels=3)
    every, some = (script.pictures(data, processor, limit) for limit in (20, 3))
    assert len(every) == 9 and (some == every[[0, 3, 6]]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--patch_sizes 4 5", r"patch_sizes holds 5, which does not divide image_size=32"),
        ("--widths 0", r"limit=4000 and widths=\[0\] must be >= 1"),
        ("--limit 0", r"limit=0 and widths=.* must be >= 1"),
    ],
)
def test_arguments_are_judged(options, said):
    with pytest.raises(ValueError, match=said):
        script.parse(["--dataset", "set", *options.split()])
