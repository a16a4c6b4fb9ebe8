# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frechet distance of a judge's features: torch-fidelity's number, its interval and its floor."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image, ImageChops, ImageFilter

from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.evaluation.frechet import (
    FrechetDistance,
    judged_distance,
    require_torch_fidelity,
)
from modeling_mdm.evaluation.gaussians import bootstrap_interval, frechet_distance
from modeling_mdm.evaluation.judge_network import JudgeConfig, JudgeNetwork

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def judge(**config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = JudgeNetwork(JudgeConfig(10, image_size=(8, 8), widths=(8, 6), **config))
    return network.eval()


def digits(split, count):
    data = load_training_data("digits", split=split)
    return [data[n]["image"] for n in range(count)]


def by_definition(x, y):
    """Frechet distance in float64, of feature rows."""
    x, y = (np.asarray(a, dtype=np.float64) for a in (x, y))
    (mu, sigma), (nu, tau) = ((a.mean(0), np.cov(a.T)) for a in (x, y))
    root = scipy.linalg.sqrtm(sigma @ tau)
    return ((mu - nu) ** 2).sum() + np.trace(sigma + tau - 2 * root.real)


def test_the_closed_form_for_two_gaussians():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 1
    y = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5))
    found = frechet_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(by_definition(x, y), rel=1e-9)
    # N(0, I) and N((3, 3), 4 I): 9 + 9 + 2 (2 - 1)^2, by points with just that mean and variance.
    corners = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    unit = corners * (3 / 4) ** 0.5
    assert frechet_distance(unit, 3 + 2 * unit) == pytest.approx(20, rel=1e-12)


def test_features_that_are_never_on_are_no_trouble():
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(rng.normal(size=(9, 4))) for _ in range(2))
    x[:, 2] = y[:, 2] = 0
    others = [0, 1, 3]
    assert frechet_distance(x, y) == pytest.approx(by_definition(x[:, others], y[:, others]))


def test_torch_fidelity_measures_the_features_of_the_judge():
    network, some, others = judge(), digits("train", 30), digits("test", 20)
    distance, features, real = judged_distance(network, some, others)
    pixels = torch.tensor(np.stack([np.asarray(p) for p in some])[:, None]) / 127.5 - 1
    with torch.no_grad():
        read = network.layers(pixels.float()).amax((2, 3))
        torch.testing.assert_close(network.head(read), network(pixels.float()))
    torch.testing.assert_close(features, read.double())
    assert features.shape == (30, 6) and real.shape == (20, 6)
    assert distance == pytest.approx(by_definition(features, real), rel=1e-6)
    assert all(p.requires_grad for p in network.parameters())


def test_a_set_has_no_distance_from_itself_and_noise_is_further_than_blur():
    shipped = JudgeNetwork.from_pretrained(EXAMPLES / "checkpoints" / "fashion-judge")
    some = [Image.open(p) for p in sorted((EXAMPLES / "pictures" / "fashion_mnist").glob("*.png"))]
    moved = [ImageChops.offset(picture, 1, 0) for picture in some]
    blurred = [picture.filter(ImageFilter.BoxBlur(2)) for picture in some]
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)) for _ in some]
    own, of_moved, of_blurred, of_noise = (
        judged_distance(shipped, pictures, some)[0] for pictures in (some, moved, blurred, noise)
    )
    assert abs(own) < 1e-4 * of_moved  # roots of eigenvalues that are 0 but for rounding
    assert 0 < of_moved < of_blurred < of_noise


def test_the_floor_and_the_ratio():
    measure = FrechetDistance(judge(), digits("test", 40), digits("train", 40), name="second judge")
    floor = judged_distance(measure.judge, measure.training, measure.real)[0]
    found = measure(digits("train", 60)[20:])
    assert found.floor == pytest.approx(floor) and found.num_pictures == 40
    assert found.ratio == pytest.approx(found.distance / floor)
    assert found.interval[0] < found.distance < found.interval[1]
    assert found.floor_interval[0] < floor < found.floor_interval[1]
    assert measure(measure.training).ratio == 1
    row = found.comparison()
    assert row.measure == "Frechet distance of the second judge's features"


def test_the_interval_covers():
    """The distance of further sets of the same two distributions lies within in 19 of 20 cases."""
    rng = np.random.default_rng(0)

    def sets():
        x, y = rng.normal(size=(150, 2)), rng.normal(size=(150, 2)) * 1.5 + 1
        return torch.from_numpy(x), torch.from_numpy(y)

    centre = np.mean([frechet_distance(*sets()) for _ in range(200)])
    intervals = []
    for seed in range(40):
        x, y = sets()
        intervals.append(bootstrap_interval(frechet_distance(x, y), x, y, seed, draws=60))
    covered = np.mean([low <= centre <= high for low, high in intervals])
    assert covered >= 0.85
    widths = [high - low for low, high in intervals]
    distances = [frechet_distance(*sets()) for _ in range(200)]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(distances), rel=0.3)


def test_the_interval_depends_on_the_seed_alone():
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(30, 2))) for _ in range(2))
    first = bootstrap_interval(0.1, x, y, seed=1, draws=20)
    assert first == bootstrap_interval(0.1, x, y, seed=1, draws=20)
    assert first != bootstrap_interval(0.1, x, y, seed=2, draws=20)
    assert first[0] >= 0


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match="sets of 1 and 5 pictures have no covariance"):
        judged_distance(judge(), digits("test", 1), digits("test", 5))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="torch-fidelity, which comes with the extra `eval`"):
        require_torch_fidelity()
    with pytest.raises(ImportError, match="extra `eval`"):
        FrechetDistance(judge(), [], [])
