# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""GenEval's rules: does a picture show what its prompt says, told by what a detector found in it.

The rules and thresholds are those of GenEval's own scorer (github.com/djghosh13/geneval), as
functions of detections; who detects, and who sees colours, is `geneval_eyes`'s.

Boxes are (left, top, right, bottom) in pixels, y pointing down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_mdm.evaluation.tables.estimates import Estimate, mean_of

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
)
MIN_SCORE = 0.3
MIN_SCORE_OF_COUNTING = 0.9
MAX_OBJECTS = 16  # of one class
POSITION_MARGIN = 0.1  # in widths, or heights, of both boxes together


@dataclass(frozen=True)
class Detection:
    """One thing that a detector found: its box, its score in [0, 1], its mask (h, w) if any."""

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


Detections = Mapping[str, Sequence[Detection]]  # by class
# Names the colours of things of one class.
SeesColors = Callable[[Sequence[Detection], str], Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was asked for, and what is wrong with it."""

    category: str
    is_right: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenEvalFigures:
    """Share of right pictures: the mean over categories, and each category's."""

    score: Estimate
    by_category: dict[str, Estimate]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Read GenEval's `evaluation_metadata.jsonl`: a prompt and what it asks for on each line.

    Raises:
        ValueError: a line has no prompt, or is of an unknown category.
    """
    prompts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    for number, prompt in enumerate(prompts, 1):
        if "prompt" not in prompt or prompt.get("tag") not in CATEGORIES:
            raise ValueError(
                f"{path}, line {number}: a prompt needs `prompt`, and a `tag` of "
                f"{', '.join(CATEGORIES)}."
            )
    return prompts


def believable(found: Detections, category: str) -> dict[str, list[Detection]]:
    """Keep what a category's threshold lets pass, the surest first, 16 of a class at most."""
    least = MIN_SCORE_OF_COUNTING if category == "counting" else MIN_SCORE
    kept = {}
    for name, some in found.items():
        sure = sorted((one for one in some if one.score > least), key=lambda one: -one.score)
        if sure:
            kept[name] = sure[:MAX_OBJECTS]
    return kept


def relations(one: Detection, other: Detection) -> set[str]:
    """Tell where one thing lies of another: left of, right of, above, below, two of them, or none.

    Their centres must be apart by more than a tenth of both sizes together, and the direction
    within 60 degrees of the axis.
    """
    boxes = np.array([one.box, other.box], dtype=float).reshape(2, 2, 2)  # (thing, corner, x or y)
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0]).sum(0)
    apart = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_MARGIN * sizes, 0)
    if np.all(np.abs(apart) < 1e-3):
        return set()
    x, y = apart / np.linalg.norm(offset)
    told = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in told.items() if holds}


def judge(prompt: Mapping[str, Any], found: Detections, sees_colors: SeesColors) -> Verdict:
    """Judge one picture.

    Args:
        prompt: of GenEval's file: what a picture must include (class, count, color, position
            relative to an earlier one) and must not include so many of (exclude).
        found: all detections, by class; `believable` is applied here.
        sees_colors: names colours of some of them.
    """
    kept = believable(found, prompt["tag"])
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []
    for asked in prompt.get("include", ()):
        some = kept.get(asked["class"], [])[: asked["count"]]
        reason = _unmet(asked, some, matched, sees_colors)
        matched.append(None if reason else some)
        reasons += [reason] if reason else []
    for asked in prompt.get("exclude", ()):
        count = len(kept.get(asked["class"], ()))
        if count >= asked["count"]:
            reasons.append(f"{asked['class']}: {count}, fewer than {asked['count']} expected")
    return Verdict(prompt["tag"], not reasons, tuple(reasons))


def _unmet(
    asked: Mapping[str, Any],
    some: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    sees_colors: SeesColors,
) -> str | None:
    """Say what is missing of one thing that was asked for; None if nothing is."""
    name, count = asked["class"], asked["count"]
    if len(some) < count:
        return f"{name}: {len(some)}, {count} expected"
    if "color" in asked:
        colors = list(sees_colors(some, name))
        if colors.count(asked["color"]) < count:
            return f"{name}: {', '.join(colors)}, {asked['color']} expected"
    if "position" in asked:
        where, target = asked["position"]
        others = matched[target]
        if others is None:
            return f"{name}: nothing that it could be {where}"
        if any(where not in relations(one, other) for one in some for other in others):
            return f"{name}: not {where}"
    return None


def geneval_figures(verdicts: Sequence[Verdict]) -> GenEvalFigures:
    """Average each category, then the categories, as GenEval's summary does.

    Raises:
        ValueError: there are no verdicts.
    """
    if not verdicts:
        raise ValueError("verdicts is empty: judge at least one picture.")
    found = {
        category: mean_of([float(one.is_right) for one in verdicts if one.category == category])
        for category in CATEGORIES
        if any(one.category == category for one in verdicts)
    }
    errors = [one.standard_error for one in found.values()]
    known = [error for error in errors if error is not None]
    error = float(np.linalg.norm(known)) / len(found) if len(known) == len(found) else None
    mean = float(np.mean([one.value for one in found.values()]))
    return GenEvalFigures(Estimate(mean, len(verdicts), error), found)
