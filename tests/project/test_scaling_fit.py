# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scaling law's fit: known laws come back, and what runs cannot tell is called so."""

import numpy as np
import pytest
from scaling_fit import fit_law, why_not

SIZES, BUDGETS = (1.2e5, 3.4e5, 9.1e5, 3.1e6), (2.5e4, 1e5, 4e5)
# E, A, a, B, b
TRUE = (0.8, 60.0, 0.45, 90.0, 0.5)


def runs(truth=TRUE, noise=0.005, sizes=SIZES, budgets=BUDGETS, seed=1):
    """Losses of a law with so much noise on their logarithms: weights, items, losses."""
    e, big_a, a, big_b, b = truth
    grid = [(n, d) for n in sizes for d in budgets]
    draw = np.random.default_rng(seed)
    losses = [(e + big_a * n**-a + big_b * d**-b) * np.exp(noise * draw.normal()) for n, d in grid]
    return [n for n, _ in grid], [d for _, d in grid], losses


@pytest.fixture(scope="module")
def law():
    return fit_law(*runs(), draws=30)


def test_a_law_without_noise_is_found_exactly():
    found = fit_law(*runs(noise=0.0), draws=2)
    values = [found.numbers[name].value for name in ("E", "A", "a", "B", "b")]
    assert values == pytest.approx(TRUE, rel=1e-3)
    assert found.error < 1e-6


def test_a_noisy_law_lies_within_its_intervals(law):
    for name, true in zip(("E", "A", "a", "B", "b"), TRUE, strict=True):
        low, high = law.numbers[name].interval
        assert low < true < high, name
        assert low <= law.numbers[name].value <= high
    for name in "ab":  # and that is not because they are wide
        low, high = law.numbers[name].interval
        assert law.numbers[name].untold is None and high - low < 0.7
    low, high = law.share.interval
    assert low < 0.5 / 0.95 < high


def test_one_bad_run_bends_little(law):
    weights, items, losses = runs()
    losses[4] *= 1.5
    found = fit_law(weights, items, losses, draws=2)
    assert found.numbers["b"].value == pytest.approx(law.numbers["b"].value, abs=0.15)
    assert found.at(9.1e5, 1e5).value == pytest.approx(law.at(9.1e5, 1e5).value, rel=0.03)


def test_the_same_seed_draws_the_same():
    one, two, other = (fit_law(*runs(), draws=3, seed=seed) for seed in (0, 0, 1))
    assert one.to_dict() == two.to_dict() != other.to_dict()


def test_weights_that_change_nothing_are_not_told():
    """Where only items count, a could be anything."""
    found = fit_law(*runs((0.8, 1e-9, 0.45, 90.0, 0.5), noise=0.02), draws=20)
    assert "do not tell" in found.numbers["a"].untold and found.share.untold
    assert found.numbers["b"].untold is None
    assert found.to_dict()["numbers"]["a"]["untold"] == found.numbers["a"].untold


def test_noise_tells_nothing():
    found = fit_law(*runs((1.0, 1e-9, 0.5, 1e-9, 0.5), noise=0.3), draws=20)
    assert found.numbers["a"].untold and found.numbers["b"].untold


def test_losses_that_fall_to_nothing_tell_no_offset():
    found = fit_law(*runs((1e-9, 60.0, 0.45, 90.0, 0.5)), draws=20)
    assert found.numbers["E"].untold == "the runs do not tell it from none"


def test_the_best_use_of_flops(law):
    """Of all pairs with as many flops, none has a smaller loss than the best items' own."""
    weights = 3e8
    items = law.best_items(weights).value
    factors = np.geomspace(0.01, 100, 2001)
    around = [law.at(weights * f, items / f).value for f in factors]
    assert factors[int(np.argmin(around))] == pytest.approx(1.0, rel=0.01)
    assert law.at_best(weights).value == pytest.approx(min(around))
    # Ten times the flops: 10^share times the weights.
    grown = weights * 10**law.share.value
    assert grown * law.best_items(grown).value == pytest.approx(10 * weights * items, rel=1e-6)
    low, high = law.at_best(weights).interval
    assert low <= law.at_best(weights).value <= high


@pytest.mark.parametrize(
    ("sizes", "budgets"), [(SIZES[:2], BUDGETS), (SIZES, BUDGETS[:2]), (SIZES[:1], BUDGETS)]
)
def test_too_few_runs_are_refused(sizes, budgets):
    with pytest.raises(ValueError, match="cannot tell five numbers: use at least 6 runs"):
        fit_law(*runs(sizes=sizes, budgets=budgets))
    assert why_not(*runs()[:2]) is None


def test_bad_numbers_are_named():
    weights, items, losses = runs()
    with pytest.raises(ValueError, match=r"losses holds \[0.0, nan\]: .*leave such a run out"):
        fit_law(weights, items, [0.0, float("nan"), *losses[2:]])
    with pytest.raises(ValueError, match="12, 12, 11 long"):
        fit_law(weights, items, losses[1:])
    with pytest.raises(ValueError, match="draws=1 make no interval"):
        fit_law(weights, items, losses, draws=1)
