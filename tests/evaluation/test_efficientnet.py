# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 as an extractor, where it is installed, and what is said where it is not."""

import sys
from importlib.util import find_spec

import pytest
from PIL import Image, ImageFilter

from mdm_cli.endings import MissingExtra
from modeling_mdm.evaluation.efficientnet import LiteExtractor
from modeling_mdm.evaluation.fidelity import fidelity_figures

needs_lite = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None,
    reason='needs `pip install "modeling-mdm[eval-lite]"`',
)
DAISY, CASTLES = 985, {483, 698, 832}  # castle, palace, stupa


@pytest.fixture(scope="module")
def photographs():
    """Tiles of two photographs that scikit-learn ships: a temple and a flower."""
    datasets = pytest.importorskip("sklearn.datasets")
    return [
        Image.fromarray(datasets.load_sample_image(f"{one}.jpg")) for one in ("china", "flower")
    ]


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtra, match=r"efficientnet-lite0' needs .* the extra `eval-lite`"):
        LiteExtractor()


@needs_lite
@pytest.mark.slow
def test_it_knows_what_photographs_show(photographs):
    """Wrong pixels or weights would see something else."""
    extractor = LiteExtractor()
    seen = []
    for picture in photographs:
        side = min(picture.size)
        left = (picture.width - side) // 2
        square = picture.crop((left, 0, left + side, side))
        features, logits = extractor.look(extractor.pixels(square)[None])
        assert features.shape == (1, 1280) and logits.shape == (1, 1000)
        seen.append(set(logits.topk(5).indices[0].tolist()))
    assert seen[0] & CASTLES and DAISY in seen[1]


@needs_lite
@pytest.mark.slow
def test_blurred_photographs_are_further_away(photographs):
    tiles = [
        picture.crop((left, top, left + 96, top + 96))
        for picture in photographs
        for left in range(0, 512, 128)
        for top in range(0, 320, 107)
    ]
    half, other = tiles[::2], tiles[1::2]
    extractor = LiteExtractor()
    sets = [other] + [
        [one.filter(ImageFilter.GaussianBlur(radius)) for one in other] for radius in (2, 6)
    ]
    found = [fidelity_figures(one, half, extractor) for one in sets]
    distances = [one.frechet_distance for one in found]
    assert distances == sorted(distances) and distances[2] > 1.2 * distances[0]
    assert all(one.extractor == "efficientnet-lite0" and not one.is_fid for one in found)
