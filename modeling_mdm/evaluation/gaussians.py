# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Two normal distributions that are told from samples: their Frechet distance, and its interval.

Axis legend: picture, feature.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NUM_DRAWS = 200


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Frechet distance in closed form of two sets of features, (picture, feature) in float64."""
    difference = features.mean(0) - others.mean(0)
    first, second = features.T.cov(), others.T.cov()  # (feature, feature)
    # tr (S_1 S_2)^(1/2) is the sum of the singular values of S_1^(1/2) S_2^(1/2).
    common = torch.linalg.svdvals(_square_root(first) @ _square_root(second)).sum()
    return float(difference.square().sum() + first.trace() + second.trace() - 2 * common)


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def bootstrap_interval(
    distance: float, features: Tensor, others: Tensor, seed: int = 0, draws: int = NUM_DRAWS
) -> tuple[float, float]:
    """Where 95 % of the distances lie when the pictures of both sets are drawn again.

    The pictures are drawn with repetition, each set for itself (for pictures and what was made of
    the same ones the interval is too wide), from the features that the extractor gave; their
    distance is `frechet_distance`'s closed form. Repeated pictures make sets look further apart, by
    as much on the average as the measured sets are too far apart for being finite; this is taken
    off, so that the interval lies about the distance of so many pictures.

    Args:
        distance: of the sets as they are.
        features, others: (picture, feature) in float64.
        seed: of the draws. draws: how many.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        frechet_distance(_drawn_again(features, rng), _drawn_again(others, rng))
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn - np.mean(drawn) + distance, [0.025, 0.975])
    return max(float(low), 0.0), float(high)


def _drawn_again(features: Tensor, rng: np.random.Generator) -> Tensor:
    return features[torch.from_numpy(rng.integers(len(features), size=len(features)))]
