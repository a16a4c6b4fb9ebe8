# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures against real ones by torch-fidelity: Frechet distance, KID, IS, precision and recall.

All of them are measured in the features of one network, which every figure names. They are FID, KID
and IS as papers give them with the extractor `inception-v3-compat` alone; ADM's suite measures
precision and recall in it too, where torch-fidelity would take VGG16.

Axis legend: picture, feature, channels, height, width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from modeling_mdm.evaluation.gaussians import bootstrap_interval
from modeling_mdm.evaluation.judge_network import JudgeNetwork, pictures_to_tensor, to_unit_range

INCEPTION = "inception-v3-compat"
OWN_EXTRACTOR = "mdm-own"
NUM_NEIGHBOURS = 3  # of precision and recall
KID_SUBSET = 1000
MAX_DRAWN_FEATURES = 256  # whose Frechet distance is worked out 200 times
IS_SPLITS = 10
IS_SPLIT = 500  # pictures at least: a score of few is near 1 whatever they show


class Extractor(Protocol):
    """A network of ours whose features are compared."""

    name: str

    def pixels(self, picture: Image.Image) -> Tensor:
        """What the network reads of a picture, uint8 (channels, height, width)."""

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (picture, feature), and logits of classes (picture, class) if it has any."""


@dataclass(frozen=True)
class JudgeExtractor:
    """A judge network as an extractor."""

    judge: JudgeNetwork
    name: str = "judge"

    def pixels(self, picture: Image.Image) -> Tensor:
        """See `Extractor`."""
        return pictures_to_tensor([picture], self.judge.config)[0]

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Extractor`."""
        features = self.judge.features(to_unit_range(pixels))
        return features.double(), self.judge.head(features)


@dataclass(frozen=True)
class NamedExtractor:
    """A network of torch-fidelity's: `inception-v3-compat`, `vgg16`, `dinov2-vit-l-14`, ...

    Args:
        name: of its registry.
        weights: file of its weights; None downloads them.
    """

    name: str = INCEPTION
    weights: str | None = None


@dataclass(frozen=True)
class FidelityFigures:
    """Generated pictures against real ones, in the features of `extractor`.

    Args:
        extractor: the network; the Frechet distance is FID only in "inception-v3-compat".
        num_pictures, num_real: how many were compared.
        frechet_distance: of the two sets of features.
        frechet_interval: where 95 % of the distances lie when the pictures of both sets are drawn
            again; None where the network has too many features to tell in minutes.
        kid, kid_deviation: kernel distance, a mean over subsets, and their standard deviation.
        inception_score, inception_score_deviation: a mean over splits, and their standard
            deviation; None where the network has no classes.
        precision, recall: shares of generated pictures near real ones, and of real ones near
            generated ones (within the third-nearest neighbour's distance).
    """

    extractor: str
    num_pictures: int
    num_real: int
    frechet_distance: float
    frechet_interval: tuple[float, float] | None
    kid: float
    kid_deviation: float
    inception_score: float | None
    inception_score_deviation: float | None
    precision: float
    recall: float

    @property
    def is_fid(self) -> bool:
        """Whether the Frechet distance may be called FID."""
        return self.extractor == INCEPTION


def require_torch_fidelity() -> Any:
    """Give the library.

    Raises:
        ImportError: it is missing; names the extra that has it.
    """
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            "the Frechet distance needs torch-fidelity, which comes with the extra `eval`"
        ) from error
    return torch_fidelity


def fidelity_figures(
    pictures: Sequence[Image.Image],
    real: Sequence[Image.Image],
    extractor: Extractor | NamedExtractor,
    cache_dir: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> FidelityFigures:
    """Measure pictures against real ones.

    Args:
        pictures: generated ones. real: what they are compared with. Both may read their pictures
            as they are asked for them.
        extractor: the network whose features are compared.
        cache_dir: folder of the features of these real pictures and no others, which are read
            from it or written to it; for networks of torch-fidelity's.
        device: of the network.
        seed: of the subsets of KID and the splits of the inception score.

    Raises:
        ImportError: torch-fidelity is missing.
        OSError: the network has no weights here.
        ValueError: a set has too few pictures, or the network is unknown.
    """
    least = min(len(pictures), len(real))
    if least <= NUM_NEIGHBOURS:
        raise ValueError(
            f"sets of {len(pictures)} and {len(real)} pictures have no third-nearest neighbours: "
            f"pass at least {NUM_NEIGHBOURS + 1} of each."
        )
    found, seen = library_metrics(
        *(pictures, real, extractor, device),
        isc=_has_classes(extractor, pictures[0]),
        fid=True,
        kid=True,
        prc=True,
        isc_splits=max(1, min(IS_SPLITS, len(pictures) // IS_SPLIT)),
        kid_subset_size=min(KID_SUBSET, least),
        prc_neighborhood=NUM_NEIGHBOURS,
        rng_seed=seed,
        **_cache(extractor, cache_dir, len(real)),
    )
    distance = found["frechet_inception_distance"]
    return FidelityFigures(
        extractor=extractor.name,
        num_pictures=len(pictures),
        num_real=len(real),
        frechet_distance=distance,
        frechet_interval=_interval(distance, seen, len(pictures), seed),
        kid=found["kernel_inception_distance_mean"],
        kid_deviation=found["kernel_inception_distance_std"],
        inception_score=found.get("inception_score_mean"),
        inception_score_deviation=found.get("inception_score_std"),
        precision=found["precision"],
        recall=found["recall"],
    )


def _interval(
    distance: float, seen: Sequence[Tensor], count: int, seed: int
) -> tuple[float, float] | None:
    if not seen or seen[0].shape[-1] > MAX_DRAWN_FEATURES:
        return None
    features = torch.cat(list(seen))
    return bootstrap_interval(distance, features[:count], features[count:], seed)


def _cache(
    extractor: Extractor | NamedExtractor, folder: Path | None, count: int
) -> dict[str, Any]:
    if folder is None or not isinstance(extractor, NamedExtractor):
        return {}
    weights = f"-{Path(extractor.weights).stem}" if extractor.weights else ""
    name = f"real-{count}{weights}"  # the library adds the network's
    return {"cache": True, "cache_root": str(folder), "input2_cache_name": name}


def library_metrics(
    pictures: Sequence[Image.Image],
    others: Sequence[Image.Image],
    extractor: Extractor | NamedExtractor,
    device: str = "cpu",
    **options: Any,
) -> tuple[dict[str, float], list[Tensor]]:
    """Call torch-fidelity's `calculate_metrics` with these options.

    Returns:
        what it returns, and the features of both sets that an extractor of ours gave, batch by
        batch, (picture, feature).

    Raises:
        See `fidelity_figures`.
    """
    library = require_torch_fidelity()
    seen: list[Tensor] = []
    if isinstance(extractor, NamedExtractor):
        _require_known(extractor)
        options["feature_extractor"] = extractor.name
        options["feature_extractor_weights_path"] = extractor.weights
        if extractor.name == INCEPTION:  # as ADM's suite has it, for precision and recall too
            options["feature_layer_prc"] = "2048"
    else:
        _register_own()
        options |= {"feature_extractor": OWN_EXTRACTOR, "own": extractor, "seen": seen}
    try:
        found = library.calculate_metrics(
            input1=_Pictures(pictures, extractor),
            input2=_Pictures(others, extractor),
            cuda=torch.device(device).type == "cuda",
            save_cpu_ram=True,  # no processes that load what is in memory already
            verbose=False,
            **{"cache": False} | options,
        )
    except OSError as error:
        if not isinstance(extractor, NamedExtractor):
            raise
        raise OSError(
            f"extractor={extractor.name!r} could not be loaded ({error}): name the file of its "
            "weights by extractor_weights, or load them once while there is a network."
        ) from error
    return found, seen


def _require_known(extractor: NamedExtractor) -> None:
    known = require_torch_fidelity().utils.FEATURE_EXTRACTORS_REGISTRY
    names = sorted(set(known) - {OWN_EXTRACTOR})
    if extractor.name not in names:
        raise ValueError(f"extractor={extractor.name!r} is unknown: use one of {', '.join(names)}.")
    if extractor.weights and not Path(extractor.weights).is_file():
        raise FileNotFoundError(
            f"extractor_weights={extractor.weights!r} is missing: name an existing file."
        )


def _has_classes(extractor: Extractor | NamedExtractor, picture: Image.Image) -> bool:
    if isinstance(extractor, NamedExtractor):
        return extractor.name in (INCEPTION, "vgg16")
    with torch.no_grad():
        return extractor.look(extractor.pixels(picture)[None])[1] is not None


@dataclass
class _Pictures(Dataset[Tensor]):
    """Pictures as an extractor reads them, (channels, height, width) uint8."""

    pictures: Sequence[Image.Image]
    extractor: Extractor | NamedExtractor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.pictures[index]
        if not isinstance(self.extractor, NamedExtractor):
            return self.extractor.pixels(picture)
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


@cache
def _register_own() -> None:
    """Tell torch-fidelity of an extractor that is given its network, and notes what it saw."""
    library = require_torch_fidelity()

    class OwnFeatures(library.FeatureExtractorBase):
        def __init__(
            self, name: str, features: list[str], own: Extractor, seen: list[Tensor], **_: Any
        ) -> None:
            super().__init__(name, features)
            self.look, self.seen = own.look, seen  # a method: no part of this module

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, pixels: Tensor) -> tuple[Tensor | None, ...]:
            features, logits = self.look(pixels)
            self.seen.append(features.cpu())
            found = {"features": features, "logits": logits}
            return tuple(found[name] for name in self.features_list)

    library.register_feature_extractor(OWN_EXTRACTOR, OwnFeatures)
