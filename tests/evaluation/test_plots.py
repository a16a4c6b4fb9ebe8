# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Confusion and calibration, counted by hand."""

import numpy as np
import pytest
from PIL import Image

from modeling_mdm.evaluation.tables.plots import OTHER, Calibration, Confusion, save_plot


def test_the_commonest_answers_have_a_row_each():
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "no")] * 2 + [("no", "a $ dog_{1}")]
    found = Confusion.of(pairs, "right", "said")
    assert found.names == ("yes", "no", OTHER)
    assert found.counts.tolist() == [[3, 1, 0], [0, 2, 1], [0, 0, 0]]
    assert found.summary() == {"share_on_the_diagonal": pytest.approx(5 / 7)}


def test_rare_answers_are_taken_together():
    pairs = [(str(n), str(n)) for n in range(11) for _ in range(12 - n)]
    found = Confusion.of(pairs, "right", "said")
    assert len(found.names) == 11 and found.names[-1] == OTHER and "10" not in found.names
    assert found.counts.sum() == len(pairs) and found.counts[-1, -1] == 2


def test_the_calibration_error_is_that_of_the_tenths():
    """One of one at 0.86; four of six at a mean of (4 * 0.9 + 2) / 6."""
    sure = [0.86, 0.9, 0.9, 0.9, 0.9, 1.0, 1.0]
    right = [True, True, True, False, True, True, False]
    found = Calibration(sure, right)
    assert found.bins() == [
        (pytest.approx(0.86), 1.0, 1),
        (pytest.approx(5.6 / 6), pytest.approx(4 / 6), 6),
    ]
    expected = (0.14 + 6 * (5.6 / 6 - 4 / 6)) / 7
    assert found.summary() == {"calibration_error": pytest.approx(expected)}


@pytest.mark.parametrize(
    "plot",
    [
        Confusion.of([("$a$", "b_{"), ("b", "b")], "right", "said"),
        Confusion(tuple(map(str, range(50))), np.eye(50, dtype=int), "right", "said"),
        Calibration([0.3, 0.31, 0.99], [True, False, True]),
        Calibration([1.0], [True]),
    ],
)
def test_every_plot_is_drawn(plot, tmp_path):
    file = tmp_path / "plot.png"
    save_plot(plot, file)
    pixels = np.asarray(Image.open(file).convert("L"))
    assert pixels.shape[0] > 300 and pixels.min() < 100 < pixels.max()
