# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The law L(N, D) = E + A N^-a + B D^-b through the losses of some runs, with intervals.

N: weights. D: items that were trained on. Logarithms of the losses are fitted, with Huber's loss so
that one bad run bends nothing, all five numbers positive and from several starts. Intervals are
those of fits to runs drawn with replacement. A number whose interval reaches the end of the range
in which it is looked for is one that the runs do not tell, and is called so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

EXPONENTS = (0.02, 2.0)  # a and b are looked for between these
SMALLEST = 1e-3  # least share of a loss that E, A N^-a or B D^-b is looked for at
HUBER = 0.03  # of a logarithm, so about 3 % of a loss: from there on residuals count linearly
LEVELS = 3  # sizes, and budgets, without which an exponent and an offset are one curve
FEWEST = 6  # runs for five numbers
NEAR_AN_END = 0.02  # of a range
SPREAD = 0.95  # of an interval
NAMES = ("E", "A", "a", "B", "b")


@dataclass(frozen=True)
class Number:
    """One number of the law: its value, its interval, and what the runs cannot tell of it."""

    value: float
    interval: tuple[float, float]
    untold: str | None = None


@dataclass(frozen=True)
class Law:
    """A fitted law.

    numbers: E, A, a, B and b by name. share: exponent of the weights in the best use of flops,
    b / (a + b), that of the items being a / (a + b). error: of the fit, the median of |log
    residual|. drawn: (draws, 5) E, log A, a, log B, b of the draws, which intervals are made of.
    """

    numbers: dict[str, Number]
    share: Number
    error: float
    drawn: np.ndarray

    @property
    def theta(self) -> np.ndarray:
        """E, log A, a, log B, b of the fit to all runs."""
        value = {name: one.value for name, one in self.numbers.items()}
        return np.array(
            [value["E"], np.log(value["A"]), value["a"], np.log(value["B"]), value["b"]]
        )

    def at(self, weights: float, items: float) -> Number:
        """The loss of so many weights after so many items."""
        return self._number(_loss(self.theta, weights, items), _loss(self.drawn, weights, items))

    def best_items(self, weights: float) -> Number:
        """Items with which so many weights use their flops best: dL is equal for both, per flop.

        Flops are as N D, so there a A N^-a = b B D^-b.
        """
        return self._number(_best_items(self.theta, weights), _best_items(self.drawn, weights))

    def at_best(self, weights: float) -> Number:
        """The loss of so many weights after `best_items`."""
        one, all_drawn = self.theta, self.drawn
        value = _loss(one, weights, _best_items(one, weights))
        return self._number(value, _loss(all_drawn, weights, _best_items(all_drawn, weights)))

    @staticmethod
    def _number(value: Any, drawn: Any) -> Number:
        return Number(float(value), interval(drawn))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        numbers = {name: asdict(one) for name, one in self.numbers.items()}
        share = asdict(self.share)
        return {"numbers": numbers, "share_of_weights": share, "median_error": self.error}


def interval(values: Any) -> tuple[float, float]:
    """Where the middle `SPREAD` of some values lies."""
    low, high = np.quantile(np.asarray(values, np.float64), [(1 - SPREAD) / 2, (1 + SPREAD) / 2])
    return float(low), float(high)


def _loss(theta: np.ndarray, weights: float, items: float) -> np.ndarray:
    offset, log_a, a, log_b, b = np.moveaxis(np.asarray(theta), -1, 0)
    return offset + np.exp(log_a - a * np.log(weights)) + np.exp(log_b - b * np.log(items))


def _best_items(theta: np.ndarray, weights: float) -> np.ndarray:
    _, log_a, a, log_b, b = np.moveaxis(np.asarray(theta), -1, 0)
    with np.errstate(over="ignore"):  # of exponents that nothing tells: infinitely many
        return np.exp((np.log(b) + log_b - np.log(a) - log_a + a * np.log(weights)) / b)


@dataclass(frozen=True)
class _Runs:
    """Runs as they are fitted: logarithms, of weights and items from their means on.

    x, y, z: (runs,) of weights, items and losses.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def chosen(self, which: np.ndarray) -> _Runs:
        return _Runs(self.x[which], self.y[which], self.z[which])

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and most of log E, log A, a, log B, b, where N and D are those of the middle.

        E is below every loss; a term may be larger in the middle than any loss only if it falls.
        """
        low, high = self.z.min(), self.z.max()
        least, most = low + np.log(SMALLEST), high + np.log(2.0)
        return (
            np.array([least, least, EXPONENTS[0], least, EXPONENTS[0]]),
            np.array([low, most, EXPONENTS[1], most, EXPONENTS[1]]),
        )

    def residuals(self, p: np.ndarray) -> np.ndarray:
        return np.log(self._terms(p).sum(0)) - self.z

    def jacobian(self, p: np.ndarray) -> np.ndarray:
        offset, of_weights, of_items = self._terms(p) / self._terms(p).sum(0)
        columns = (offset, of_weights, -self.x * of_weights, of_items, -self.y * of_items)
        return np.stack(columns, axis=1)

    def _terms(self, p: np.ndarray) -> np.ndarray:
        log_e, log_a, a, log_b, b = p
        whole = np.full_like(self.x, log_e)
        return np.exp(np.stack([whole, log_a - a * self.x, log_b - b * self.y]))


def _starts(runs: _Runs) -> list[np.ndarray]:
    """Where fits begin: an offset of nearly all, half or little of a loss, steep and flat."""
    low = float(runs.z.min())
    return [
        np.array([low + np.log(e), low + np.log(rest), a, low + np.log(rest), b])
        for e, rest in ((0.9, 0.1), (0.5, 0.3), (0.05, 0.6))
        for a, b in ((0.3, 0.3), (1.0, 0.3), (0.3, 1.0))
    ]


def _fit(runs: _Runs, starts: Sequence[np.ndarray], bounds: Any) -> np.ndarray:
    """The best of the fits from all starts: log E, log A, a, log B, b."""
    low, high = bounds
    inside = [np.clip(start, low + 1e-6, high - 1e-6) for start in starts]
    found = [
        least_squares(
            runs.residuals, start, runs.jacobian, (low, high), loss="huber", f_scale=HUBER
        )
        for start in inside
    ]
    return min(found, key=lambda one: float(one.cost)).x


def why_not(weights: Sequence[float], items: Sequence[float]) -> str | None:
    """Say why runs of so many weights and items can tell no law, or None if they can."""
    sizes, budgets, runs = len(set(weights)), len(set(items)), len(weights)
    if sizes >= LEVELS and budgets >= LEVELS and runs >= FEWEST:
        return None
    return (
        f"runs={runs} of sizes={sizes} and budgets={budgets} cannot tell five numbers: use at "
        f"least {FEWEST} runs, {LEVELS} sizes and {LEVELS} budgets."
    )


def _checked(weights: Any, items: Any, losses: Any) -> list[np.ndarray]:
    arrays = [np.asarray(one, np.float64) for one in (weights, items, losses)]
    if len({len(one) for one in arrays}) > 1:
        lengths = ", ".join(str(len(one)) for one in arrays)
        raise ValueError(f"weights, items and losses are {lengths} long: give one of each a run.")
    for name, array in zip(("weights", "items", "losses"), arrays, strict=True):
        if not np.all(np.isfinite(array) & (array > 0)):
            wrong = [float(v) for v in array if not (np.isfinite(v) and v > 0)]
            raise ValueError(
                f"{name} holds {wrong}: a law has logarithms of them, so give positive numbers; "
                "leave such a run out."
            )
    if (reason := why_not(arrays[0].tolist(), arrays[1].tolist())) is not None:
        raise ValueError(reason)
    return arrays


def fit_law(weights: Any, items: Any, losses: Any, draws: int = 200, seed: int = 0) -> Law:
    """Fit the law to runs, and again to as many runs drawn with replacement, for its intervals.

    Args:
        weights, items, losses: (runs,), positive.
        draws: how often runs are drawn. seed: of the draws.

    Raises:
        ValueError: runs that cannot tell it, or numbers that have no logarithm.
    """
    if draws < 2:
        raise ValueError(f"draws={draws} make no interval: use at least 2, better 200.")
    weights, items, losses = _checked(weights, items, losses)
    log_n, log_d = np.log(weights), np.log(items)
    middle = (log_n.mean(), log_d.mean())
    runs = _Runs(log_n - middle[0], log_d - middle[1], np.log(losses))
    bounds = runs.bounds
    starts = _starts(runs)
    best = _fit(runs, starts, bounds)
    again = [best, *starts[::3]]
    drawn = np.stack([_fit(runs.chosen(one), again, bounds) for one in _draws(runs, draws, seed)])
    return _law(best, drawn, bounds, middle, float(np.median(np.abs(runs.residuals(best)))))


def _draws(runs: _Runs, draws: int, seed: int) -> list[np.ndarray]:
    """Draw runs with replacement, anew where too few of them differ for five numbers."""
    draw, found = np.random.default_rng(seed), []
    while len(found) < draws:
        which = draw.integers(0, len(runs.x), len(runs.x))
        levels = min(len(set(runs.x[which])), len(set(runs.y[which])))
        if levels >= LEVELS and len(set(which.tolist())) >= len(NAMES):
            found.append(which)
    return found


def _absolute(p: np.ndarray, middle: tuple[float, float]) -> np.ndarray:
    """From numbers at the middle of the runs to E, log A, a, log B, b of the law."""
    log_e, log_a, a, log_b, b = np.moveaxis(p, -1, 0)
    return np.stack([np.exp(log_e), log_a + a * middle[0], a, log_b + b * middle[1], b], axis=-1)


def _law(
    best: np.ndarray, drawn: np.ndarray, bounds: Any, middle: tuple[float, float], error: float
) -> Law:
    untold = [_untold(*interval(drawn[:, n]), bounds[0][n], bounds[1][n]) for n in range(5)]
    # A and B, as they stand before N = D = 1, are known only as well as their exponents are.
    untold[1] = untold[1] or untold[2]
    untold[3] = untold[3] or untold[4]
    one, many = _absolute(best, middle), _absolute(drawn, middle)
    logarithmic = {"A", "B"}
    numbers = {}
    for n, name in enumerate(NAMES):
        value, ends = float(one[n]), interval(many[:, n])
        if name in logarithmic:
            value, ends = float(np.exp(value)), (float(np.exp(ends[0])), float(np.exp(ends[1])))
        numbers[name] = Number(value, ends, untold[n])
    # Of the weights: b / (a + b).
    share = Number(
        float(one[4] / (one[2] + one[4])),
        interval(many[:, 4] / (many[:, 2] + many[:, 4])),
        untold[2] or untold[4],
    )
    return Law(numbers, share, error, many)


def _untold(low: float, high: float, least: float, most: float) -> str | None:
    """Say at which ends of its range an interval arrives."""
    near = NEAR_AN_END * (most - least)
    at_least, at_most = low <= least + near, high >= most - near
    if at_least and at_most:
        return "the runs do not tell it at all"
    if at_least:
        return "the runs do not tell it from none"
    return "the runs do not tell how large it is" if at_most else None
