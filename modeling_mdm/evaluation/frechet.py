# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frechet distance of a judge's features, by torch-fidelity.

The distance of two normal distributions with the means and covariances of the features of two sets
of pictures: |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)). It is named after its extractor,
since numbers of another extractor, Inception's FID above all, are on another scale.

Axis legend: picture, feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from modeling_mdm.evaluation.fidelity import (
    JudgeExtractor,
    library_metrics,
    require_torch_fidelity,
)
from modeling_mdm.evaluation.gaussians import bootstrap_interval
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.panel import Comparison, ratio_of


@dataclass(frozen=True)
class FrechetFigures:
    """Frechet distance of pictures from as many real test pictures, by `judge`'s features.

    `interval` holds 95 % of the distances after drawing the pictures of both sets again. `floor` is
    the distance of as many real training pictures from the same test pictures, `ratio` the distance
    in floors.
    """

    judge: str
    num_pictures: int
    distance: float
    interval: tuple[float, float]
    floor: float
    floor_interval: tuple[float, float]
    ratio: float | None

    def comparison(self) -> Comparison:
        """Lay them out for the table."""
        low, high = self.interval
        value = f"{self.distance:.4g} ({low:.4g} to {high:.4g})"
        measure = f"Frechet distance of the {self.judge}'s features"
        return Comparison(measure, value, f"{self.floor:.4g} (training pictures)", self.ratio)


class FrechetDistance:
    """Measures pictures by their distance from real ones.

    Args:
        judge: its features are those that are compared.
        real: pictures of the test split.
        training: as many of the training split, for the floor.
        seed: of the draws of the interval.
        name: what the judge is called.

    Raises:
        ImportError: torch-fidelity is missing.
    """

    def __init__(
        self,
        judge: JudgeNetwork,
        real: Sequence[Image.Image],
        training: Sequence[Image.Image],
        seed: int = 0,
        name: str = "judge",
    ) -> None:
        require_torch_fidelity()
        self.judge, self.real, self.training = judge, real, training
        self.seed, self.name = seed, name
        self._floor: tuple[float, tuple[float, float]] | None = None

    def __call__(self, pictures: Sequence[Image.Image]) -> FrechetFigures:
        """Measure pictures, and once the floor.

        Raises:
            ValueError: there are fewer than two pictures.
        """
        if self._floor is None:
            self._floor = self._measure(self.training)
        distance, interval = self._measure(pictures)
        floor, floor_interval = self._floor
        return FrechetFigures(
            judge=self.name,
            num_pictures=len(pictures),
            distance=distance,
            interval=interval,
            floor=floor,
            floor_interval=floor_interval,
            ratio=ratio_of(distance, floor),
        )

    def _measure(self, pictures: Sequence[Image.Image]) -> tuple[float, tuple[float, float]]:
        distance, features, real = judged_distance(self.judge, pictures, self.real)
        return distance, bootstrap_interval(distance, features, real, self.seed)


def judged_distance(
    judge: JudgeNetwork, pictures: Sequence[Image.Image], others: Sequence[Image.Image]
) -> tuple[float, Tensor, Tensor]:
    """Measure the Frechet distance of two sets of pictures in the features of a judge.

    Returns:
        the distance, and the features of both, (picture, feature) in float64, as its extractor saw
        them.

    Raises:
        ImportError: torch-fidelity is missing.
        ValueError: a set has fewer than two pictures.
    """
    if min(len(pictures), len(others)) < 2:
        raise ValueError(
            f"sets of {len(pictures)} and {len(others)} pictures have no covariance: pass at least "
            "2 of each."
        )
    device = str(judge.head.weight.device)
    found, seen = library_metrics(pictures, others, JudgeExtractor(judge), device, fid=True)
    features, real = torch.cat(seen).split([len(pictures), len(others)])
    return found["frechet_inception_distance"], features, real
