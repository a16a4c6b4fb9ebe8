# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of merit: does a model draw what it is asked, and say what it sees.

Samples are made as a user makes them, `processor(...)`, `model.generate(...)`,
`processor.post_process(...)`. A caption is *well formed* if it is one of the caption table's; only
then does it name a class. Every share is of all samples: what is not well formed counts as wrong.
`mean_evaluations` is how often the network was evaluated for a sample.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.panel import NO_PANEL, SHEET_SAMPLES, Comparison, Measured, Panel
from modeling_mdm.evaluation.sampling import (
    DEFAULT_SAMPLING,
    Sampling,
    batches,
    evaluating,
    generate,
    options_of,
)

NUM_EXAMPLES = 10

# A row of the table: task, samples, well formed, right class, weakest class.
Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Figures(ABC):
    """What was measured of one task."""

    @abstractmethod
    def rows(self, names: Sequence[str]) -> list[Row]:
        """Rows of the table; `names` are those of the classes."""

    def comparisons(self) -> list[tuple[str, Comparison]]:
        """Rows of the second table: which pictures, and what was measured of them."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, lists and dictionaries."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the figures as JSON."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class Seen:
    """What a judge sees in pictures whose class is known.

    `confusion[class][seen]` counts pictures; the shares are its diagonal.
    """

    share_right: float
    share_right_by_class: list[float | None]  # None: no picture of that class
    confusion: list[list[int]]

    @classmethod
    def by(
        cls, judge: JudgeNetwork, pictures: Sequence[Image.Image], classes: Sequence[int]
    ) -> Seen:
        """Let a judge classify pictures of these classes."""
        num_classes = judge.config.num_classes
        confusion = np.zeros((num_classes, num_classes), dtype=int)  # (class, seen)
        np.add.at(confusion, (list(classes), judge.classify(pictures)), 1)
        share = float(confusion.trace() / len(pictures))
        return cls(share, _diagonal_shares(confusion), confusion.tolist())


@dataclass(frozen=True)
class SeenJointly:
    """What a judge sees in pictures whose captions name a class: how often the same."""

    share_agreeing: float
    histogram_of_pictures: list[float]

    @classmethod
    def by(
        cls, judge: JudgeNetwork, pictures: Sequence[Image.Image], named: Sequence[int | None]
    ) -> SeenJointly:
        """Let a judge classify pictures whose captions name these classes."""
        seen = judge.classify(pictures)
        agreeing = sum(a == b for a, b in zip(named, seen, strict=True)) / len(named)
        return cls(agreeing, _shares(seen, judge.config.num_classes))


@dataclass(frozen=True)
class TextToImageFigures(Figures):
    """Text to image at one guidance scale: does the judge see the class that was asked for.

    `confusion[asked][seen]` counts samples; the shares are its diagonal. `measures` holds by name
    what else was measured of the pictures.
    """

    guidance_scale: float
    num_samples: int
    share_right: float
    share_right_by_class: list[float | None]  # None: no sample of that class
    confusion: list[list[int]]
    mean_evaluations: float
    seconds: float
    second_judge: Seen | None = None
    measures: dict[str, Measured] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """What the tables call it."""
        return f"text to image, guidance {self.guidance_scale:g}"

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how often the judge saw what was asked for."""
        worst = weakest(self.share_right_by_class, names)
        share = share_and_second(self.share_right, self.second_judge)
        return [(self.task, str(self.num_samples), "-", share, worst)]

    def comparisons(self) -> list[tuple[str, Comparison]]:
        """What else was measured of the pictures."""
        return [(self.task, measured.comparison()) for measured in self.measures.values()]


@dataclass(frozen=True)
class CaptioningFigures(Figures):
    """Captioning of test pictures: is the caption well formed, and is its class the true one."""

    num_samples: int
    share_well_formed: float
    share_right: float
    share_right_by_class: list[float | None]  # None: no sample of that class
    ill_formed: list[str]  # the first few
    mean_evaluations: float
    seconds: float

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how many captions are well formed, and right."""
        shares = f"{self.share_well_formed:.1%}", f"{self.share_right:.1%}"
        worst = weakest(self.share_right_by_class, names)
        return [("captioning", str(self.num_samples), *shares, worst)]


@dataclass(frozen=True)
class JointFigures(Figures):
    """Pictures and captions from nothing: does the judge see what the caption says.

    `histogram[c]` is the share of all samples whose caption names class c,
    `histogram_of_pictures[c]` that of those whose picture the judge takes for class c. `measures`
    holds by name what else was measured of the pictures.
    """

    num_samples: int
    share_well_formed: float
    share_agreeing: float
    histogram: list[float]
    histogram_of_pictures: list[float]
    ill_formed: list[str]  # the first few
    mean_evaluations: float
    seconds: float
    second_judge: SeenJointly | None = None
    measures: dict[str, Measured] = field(default_factory=dict)

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how often picture and caption agree, and how evenly the classes are drawn."""
        second = self.second_judge
        share = f"{self.share_agreeing:.1%}" + (f" / {second.share_agreeing:.1%}" if second else "")
        low, high = min(self.histogram), max(self.histogram)
        classes = f"classes are {low:.1%} to {high:.1%} of samples"
        well_formed = f"{self.share_well_formed:.1%}"
        return [("joint", str(self.num_samples), well_formed, f"{share} (judge agrees)", classes)]

    def comparisons(self) -> list[tuple[str, Comparison]]:
        """What else was measured of the pictures."""
        return [("joint", measured.comparison()) for measured in self.measures.values()]


def share_and_second(share: float, second: Seen | None) -> str:
    """Show the share that a judge finds right, and that of the second judge if there is one."""
    return f"{share:.1%}" + (f" / {second.share_right:.1%}" if second else "")


def weakest(shares: Sequence[float | None], names: Sequence[str]) -> str:
    """Name the class that does worst, and its share."""
    share, name = min((s, n) for s, n in zip(shares, names, strict=True) if s is not None)
    return f"{name} {share:.1%}"


def _check_same_classes(judge: JudgeNetwork, captions: CaptionTable, panel: Panel) -> int:
    for name, one in (("judge", judge), ("second_judge", panel.second_judge)):
        if one is not None and one.config.num_classes != captions.num_classes:
            raise ValueError(
                f"{name} knows {one.config.num_classes} classes and captions names "
                f"{captions.num_classes}: use the judge and the table of one data set."
            )
    return captions.num_classes


def _shares(values: Sequence[int | None], num_classes: int) -> list[float]:
    counts = Counter(values)
    return [counts[c] / len(values) for c in range(num_classes)]


def text_to_image_figures(
    model: Any,
    processor: Any,
    judge: JudgeNetwork,
    captions: CaptionTable,
    num_samples: int = 1000,
    guidance_scales: Sequence[float] = (1.0, 2.0, 3.0),
    sampling: Sampling = DEFAULT_SAMPLING,
    panel: Panel = NO_PANEL,
) -> list[TextToImageFigures]:
    """Measure text to image: sample n asks for class n modulo the number of classes.

    The captions and the noise are the same at every guidance scale.

    Raises:
        ValueError: if num_samples is below 1 or the judge does not belong to the table.
    """
    num_classes = _check_same_classes(judge, captions, panel)
    rng = np.random.default_rng(sampling.seed)
    asked = [n % num_classes for n in range(num_samples)]
    texts = [captions.draw(label, rng) for label in asked]
    figures = []
    for scale in guidance_scales:
        pictures: list[Image.Image] = []
        evaluations: list[int] = []
        start = time.perf_counter()
        options = options_of(sampling) | {"guidance_scale": scale}
        with evaluating(model):
            for chosen in batches(num_samples, sampling, f"text to image, guidance {scale:g}"):
                inputs = {"text": [texts[n] for n in chosen], "generation_mode": "image"}
                samples = generate(model, processor, inputs, evaluations, **options)
                pictures += [sample.image for sample in samples]
        figures.append(
            TextToImageFigures(
                guidance_scale=float(scale),
                num_samples=num_samples,
                **vars(Seen.by(judge, pictures, asked)),
                mean_evaluations=float(np.mean(evaluations)),
                seconds=round(time.perf_counter() - start, 1),
                second_judge=panel.second(Seen.by, pictures, asked),
                measures=panel.measure(pictures),
            )
        )
    return figures


def _diagonal_shares(confusion: np.ndarray) -> list[float | None]:
    return [float(row[c] / row.sum()) if row.any() else None for c, row in enumerate(confusion)]


def captioning_figures(
    model: Any,
    processor: Any,
    captions: CaptionTable,
    dataset: PictureDataset,
    num_samples: int | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> CaptioningFigures:
    """Measure captioning on the first `num_samples` pictures of a labelled set (None: on all).

    Raises:
        ValueError: if num_samples is below 1 or an item has no label.
    """
    count = len(dataset) if num_samples is None else min(num_samples, len(dataset))
    labels_of(dataset, count)
    texts: list[str] = []
    true_labels: list[int] = []
    evaluations: list[int] = []
    start = time.perf_counter()
    options = options_of(sampling)
    with evaluating(model):
        for chosen in batches(count, sampling, "captioning"):
            items = [dataset[n] for n in chosen]
            true_labels += [item["label"] for item in items]  # a damaged one's stand-in has its own
            inputs = {"images": [item["image"] for item in items], "generation_mode": "text"}
            texts += [s.text for s in generate(model, processor, inputs, evaluations, **options)]
    named = [captions.label_of(text) for text in texts]
    right = np.array([label == name for label, name in zip(true_labels, named, strict=True)])
    true = np.array(true_labels)
    return CaptioningFigures(
        num_samples=count,
        share_well_formed=sum(name is not None for name in named) / count,
        share_right=float(right.mean()),
        share_right_by_class=[
            float(right[true == c].mean()) if (true == c).any() else None
            for c in range(captions.num_classes)
        ],
        ill_formed=_ill_formed(texts, named),
        mean_evaluations=float(np.mean(evaluations)),
        seconds=round(time.perf_counter() - start, 1),
    )


def labels_of(dataset: PictureDataset, count: int) -> list[int]:
    """Labels of the first `count` pictures.

    Raises:
        ValueError: if one has none.
    """
    labels = (dataset.labels or [None])[:count]
    if any(label is None for label in labels):
        raise ValueError("dataset has items without a label: the true class is needed.")
    return labels


def _ill_formed(texts: Sequence[str], named: Sequence[int | None]) -> list[str]:
    return [t for t, name in zip(texts, named, strict=True) if name is None][:NUM_EXAMPLES]


def joint_figures(
    model: Any,
    processor: Any,
    judge: JudgeNetwork,
    captions: CaptionTable,
    num_samples: int = 1000,
    sampling: Sampling = DEFAULT_SAMPLING,
    panel: Panel = NO_PANEL,
) -> JointFigures:
    """Measure joint generation from nothing.

    Raises:
        ValueError: if num_samples is below 1 or the judge does not belong to the table.
    """
    num_classes = _check_same_classes(judge, captions, panel)
    samples: list[Any] = []
    evaluations: list[int] = []
    start = time.perf_counter()
    options = options_of(sampling)
    with evaluating(model):
        for chosen in batches(num_samples, sampling, "joint"):
            options["num_return_sequences"] = len(chosen)
            inputs = {"generation_mode": "joint"}
            samples += generate(model, processor, inputs, evaluations, **options)
    panel.keep("joint", samples[:SHEET_SAMPLES])
    texts = [sample.text for sample in samples]
    pictures = [sample.image for sample in samples]
    named = [captions.label_of(text) for text in texts]
    return JointFigures(
        num_samples=num_samples,
        share_well_formed=sum(name is not None for name in named) / num_samples,
        **vars(SeenJointly.by(judge, pictures, named)),
        histogram=_shares(named, num_classes),
        ill_formed=_ill_formed(texts, named),
        mean_evaluations=float(np.mean(evaluations)),
        seconds=round(time.perf_counter() - start, 1),
        second_judge=panel.second(SeenJointly.by, pictures, named),
        measures=panel.measure(pictures),
    )
