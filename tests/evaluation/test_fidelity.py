# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""torch-fidelity's figures with an extractor of ours, against values worked out by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mdm.evaluation.fidelity import (
    FidelityFigures,
    JudgeExtractor,
    NamedExtractor,
    fidelity_figures,
)
from modeling_mdm.evaluation.judge_network import JudgeConfig, JudgeNetwork


@dataclass(frozen=True)
class Pixels:
    """Takes the pixels as they are for features, and the first one for the class."""

    num_classes: int = 0
    name: str = "pixels"

    def pixels(self, picture):
        return torch.from_numpy(np.array(picture))[None]

    def look(self, pixels):
        features = pixels.flatten(1).double()
        if not self.num_classes:
            return features, None
        classes = torch.arange(self.num_classes)
        return features, 40.0 * (features[:, :1] == classes)


def pictures(points):
    """Pictures of one row, whose pixels are a point's coordinates."""
    points = np.asarray(points)
    assert ((points >= 0) & (points < 256) & (points == points.round())).all()
    return [Image.fromarray(np.atleast_2d(point).astype(np.uint8)) for point in points]


def measured(points, others, num_classes=0):
    return fidelity_figures(pictures(points), pictures(others), Pixels(num_classes))


def test_the_frechet_distance_of_two_gaussians():
    """Corners of squares have just these means and variances: sides 2 a have a² 4 / 3."""
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    found = measured(100 + 30 * corners, 130 + 60 * corners)
    one, other = 30 * (4 / 3) ** 0.5, 60 * (4 / 3) ** 0.5
    assert found.frechet_distance == pytest.approx(2 * 30**2 + 2 * (one - other) ** 2, rel=1e-5)


def test_the_interval_of_a_frechet_distance():
    real, made = clusters([0, 1, 2, 3], 40, seed=0), clusters([0, 1, 2, 3], 40, seed=1) + 5
    found = measured(made, real)
    low, high = found.frechet_interval
    assert low < found.frechet_distance < high


def test_the_kernel_distance():
    """The unbiased estimate of MMD² with the kernel (x y / d + 1)³, of all points."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, (6, 3)), rng.integers(2, 9, (6, 3))
    found = measured(x, y)

    def kernel(a, b):
        return (a.astype(float) @ b.T / 3 + 1) ** 3

    def among(a):
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (6 * 5)

    expected = among(x) + among(y) - 2 * kernel(x, y).mean()
    assert found.kid == pytest.approx(expected, rel=1e-6)
    assert found.kid_deviation == pytest.approx(0, abs=1e-9)  # each subset is the whole set


@pytest.mark.parametrize("num_seen", [1, 3, 8])
def test_the_inception_score_of_sure_predictions_is_the_number_of_classes(num_seen):
    points = [[n % num_seen, 0] for n in range(num_seen * 10)]
    found = measured(points, points, num_classes=8)
    assert found.inception_score == pytest.approx(num_seen, rel=1e-6)
    assert found.inception_score_deviation == pytest.approx(0, abs=1e-9)


def test_there_is_no_inception_score_without_classes():
    assert measured([[n, 0] for n in range(5)], [[n, 1] for n in range(5)]).inception_score is None


def test_precision_and_recall_of_points_on_a_line():
    """Radii reach the third neighbour: of 0 10 20 30 they are 30 20 20 30.

    56 is within 30 of 30, the others of nothing. Of 56 70 90 110 radii are 54 40 34 54, which
    reach 10, 20 and 30 but not 0.
    """
    found = measured([[56, 0], [70, 0], [90, 0], [110, 0]], [[0, 0], [10, 0], [20, 0], [30, 0]])
    assert (found.precision, found.recall) == (0.25, 0.75)


def clusters(names, count, seed):
    centres = np.array([[40, 40], [40, 200], [200, 40], [200, 200], [120, 120]])
    rng = np.random.default_rng(seed)
    return np.concatenate([centres[n] + rng.integers(-9, 10, (count, 2)) for n in names])


def test_classes_that_are_left_out_cost_recall():
    real = clusters([0, 1, 2, 3], 40, seed=0)
    whole, collapsed = clusters([0, 1, 2, 3], 40, seed=1), clusters([0, 1], 80, seed=2)
    all_classes, some = measured(whole, real), measured(collapsed, real)
    assert all_classes.precision > 0.9 and all_classes.recall > 0.9
    assert some.precision > 0.9 and 0.4 < some.recall <= 0.5
    assert some.frechet_distance > 20 * all_classes.frechet_distance


def test_foreign_pictures_cost_precision():
    real = clusters([0, 1, 2, 3], 40, seed=0)
    mixed = np.concatenate([clusters([0, 1, 2, 3], 20, seed=1), clusters([4], 80, seed=2)])
    found = measured(mixed, real)
    assert found.recall > 0.9 and 0.4 < found.precision <= 0.5


def test_pictures_that_are_all_the_same():
    same = [[7, 9]] * 6
    found = measured(same, same)
    assert found.frechet_distance == pytest.approx(0, abs=1e-6) and found.kid == 0
    assert (found.precision, found.recall) == (1, 1)
    away = measured(same, [[17, 9]] * 6)
    assert away.frechet_distance == pytest.approx(100) and (away.precision, away.recall) == (0, 0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_pictures_are_refused(count):
    few, enough = [[n, 0] for n in range(count)], [[n, 0] for n in range(4)]
    for sets in ((few, enough), (enough, few)):
        with pytest.raises(ValueError, match="have no third-nearest neighbours: pass at least 4"):
            measured(*sets)


def test_a_judge_as_an_extractor():
    torch.manual_seed(0)
    judge = JudgeNetwork(JudgeConfig(3, image_size=(8, 8), widths=(4,))).eval()
    rng = np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(12)]
    found = fidelity_figures(made, made[::-1], JudgeExtractor(judge, "second judge"))
    assert found.extractor == "second judge" and not found.is_fid
    assert found.num_pictures == found.num_real == 12
    pixels = torch.from_numpy(np.stack([np.array(picture) for picture in made])[:, None])
    with torch.no_grad():
        p = judge(pixels.float() / 127.5 - 1).double().softmax(-1)
    kl = (p * (p.log() - p.mean(0).log())).sum(-1).mean()
    assert found.inception_score == pytest.approx(float(kl.exp()), rel=1e-6)
    assert all(parameter.requires_grad for parameter in judge.parameters())


def test_networks_that_are_not_here_are_named(tmp_path):
    some = pictures([[n, 0] for n in range(4)])
    with pytest.raises(ValueError, match="extractor='inception' is unknown: use one of clip-rn101"):
        fidelity_figures(some, some, NamedExtractor("inception"))
    missing = NamedExtractor(weights=str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"extractor_weights='.*none\.pth' is missing"):
        fidelity_figures(some, some, missing)


def test_only_inceptions_frechet_distance_is_called_fid():
    figures = FidelityFigures(
        "inception-v3-compat", 4, 4, 0.0, None, 0.0, 0.0, None, None, 1.0, 1.0
    )
    assert figures.is_fid
