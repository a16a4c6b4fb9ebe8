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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.evaluation.judge_network import JudgeNetwork

NUM_EXAMPLES = 10


@dataclass(frozen=True)
class Sampling:
    """How samples are made.

    One generator is seeded with `seed` for each figure and passed from batch to batch.
    `options` goes to `model.generate` as it is, for example `{"solver": {"text": "ddim"}}`.

    Raises:
        ValueError: if a number is below 1.
    """

    num_inference_steps: int = 30
    batch_size: int = 100
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1.")


DEFAULT_SAMPLING = Sampling()


# A row of the table: task, samples, well formed, right class, weakest class.
Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Figures(ABC):
    """What was measured of one task."""

    @abstractmethod
    def rows(self, names: Sequence[str]) -> list[Row]:
        """Rows of the table; `names` are those of the classes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, lists and dictionaries."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the figures as JSON."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class TextToImageFigures(Figures):
    """Text to image at one guidance scale: does the judge see the class that was asked for.

    `confusion[asked][seen]` counts samples; the shares are its diagonal.
    """

    guidance_scale: float
    num_samples: int
    share_right: float
    share_right_by_class: list[float | None]  # None: no sample of that class
    confusion: list[list[int]]
    mean_evaluations: float
    seconds: float

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how often the judge saw what was asked for."""
        task = f"text to image, guidance {self.guidance_scale:g}"
        worst = weakest(self.share_right_by_class, names)
        return [(task, str(self.num_samples), "-", f"{self.share_right:.1%}", worst)]


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
    `histogram_of_pictures[c]` that of those whose picture the judge takes for class c.
    """

    num_samples: int
    share_well_formed: float
    share_agreeing: float
    histogram: list[float]
    histogram_of_pictures: list[float]
    ill_formed: list[str]  # the first few
    mean_evaluations: float
    seconds: float

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how often picture and caption agree, and how evenly the classes are drawn."""
        shares = f"{self.share_well_formed:.1%}", f"{self.share_agreeing:.1%} (judge agrees)"
        low, high = min(self.histogram), max(self.histogram)
        classes = f"classes are {low:.1%} to {high:.1%} of samples"
        return [("joint", str(self.num_samples), *shares, classes)]


def weakest(shares: Sequence[float | None], names: Sequence[str]) -> str:
    """Name the class that does worst, and its share."""
    share, name = min((s, n) for s, n in zip(shares, names, strict=True) if s is not None)
    return f"{name} {share:.1%}"


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _generate(
    model: Any, processor: Any, inputs: Mapping[str, Any], evaluations: list[int], **options: Any
) -> list[Any]:
    """Process, generate and post-process one batch; note each sample's network evaluations."""
    batch = processor(**inputs, return_tensors="pt").to(model.device)
    out = model.generate(**batch, **options)
    samples = processor.post_process(out)
    evaluations += [out.num_evaluations] * len(samples)
    return samples


def _batches(count: int, sampling: Sampling, name: str) -> Iterator[range]:
    """Yield the indices of each batch beside a progress bar over samples."""
    if count < 1:
        raise ValueError(f"num_samples={count} must be >= 1.")
    with tqdm(total=count, desc=name, disable=sampling.disable_tqdm) as bar:
        for start in range(0, count, sampling.batch_size):
            indices = range(start, min(start + sampling.batch_size, count))
            yield indices
            bar.update(len(indices))


def _options(sampling: Sampling) -> dict[str, Any]:
    return {
        "num_inference_steps": sampling.num_inference_steps,
        "show_progress": False,  # the bar over samples is enough
        "generator": torch.Generator().manual_seed(sampling.seed),
        **sampling.options,
    }


def _check_same_classes(judge: JudgeNetwork, captions: CaptionTable) -> int:
    if judge.config.num_classes != captions.num_classes:
        raise ValueError(
            f"judge knows {judge.config.num_classes} classes and captions names "
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
) -> list[TextToImageFigures]:
    """Measure text to image: sample n asks for class n modulo the number of classes.

    The captions and the noise are the same at every guidance scale.

    Raises:
        ValueError: if num_samples is below 1 or the judge does not belong to the table.
    """
    num_classes = _check_same_classes(judge, captions)
    rng = np.random.default_rng(sampling.seed)
    asked = [n % num_classes for n in range(num_samples)]
    texts = [captions.draw(label, rng) for label in asked]
    figures = []
    for scale in guidance_scales:
        seen: list[int] = []
        evaluations: list[int] = []
        start = time.perf_counter()
        options = _options(sampling) | {"guidance_scale": scale}
        with _evaluating(model):
            for chosen in _batches(num_samples, sampling, f"text to image, guidance {scale:g}"):
                inputs = {"text": [texts[n] for n in chosen], "generation_mode": "image"}
                samples = _generate(model, processor, inputs, evaluations, **options)
                seen += judge.classify([sample.image for sample in samples])
        confusion = np.zeros((num_classes, num_classes), dtype=int)  # (asked, seen)
        np.add.at(confusion, (asked, seen), 1)
        figures.append(
            TextToImageFigures(
                guidance_scale=float(scale),
                num_samples=num_samples,
                share_right=float(confusion.trace() / num_samples),
                share_right_by_class=_diagonal_shares(confusion),
                confusion=confusion.tolist(),
                mean_evaluations=float(np.mean(evaluations)),
                seconds=round(time.perf_counter() - start, 1),
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
    labels = dataset.labels
    if labels is None or any(label is None for label in labels[:count]):
        raise ValueError("dataset has items without a label: captioning needs the true class.")
    texts: list[str] = []
    true_labels: list[int] = []
    evaluations: list[int] = []
    start = time.perf_counter()
    options = _options(sampling)
    with _evaluating(model):
        for chosen in _batches(count, sampling, "captioning"):
            items = [dataset[n] for n in chosen]
            true_labels += [item["label"] for item in items]  # a damaged one's stand-in has its own
            inputs = {"images": [item["image"] for item in items], "generation_mode": "text"}
            texts += [s.text for s in _generate(model, processor, inputs, evaluations, **options)]
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


def _ill_formed(texts: Sequence[str], named: Sequence[int | None]) -> list[str]:
    return [t for t, name in zip(texts, named, strict=True) if name is None][:NUM_EXAMPLES]


def joint_figures(
    model: Any,
    processor: Any,
    judge: JudgeNetwork,
    captions: CaptionTable,
    num_samples: int = 1000,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> JointFigures:
    """Measure joint generation from nothing.

    Raises:
        ValueError: if num_samples is below 1 or the judge does not belong to the table.
    """
    num_classes = _check_same_classes(judge, captions)
    texts: list[str] = []
    seen: list[int] = []
    evaluations: list[int] = []
    start = time.perf_counter()
    options = _options(sampling)
    with _evaluating(model):
        for chosen in _batches(num_samples, sampling, "joint"):
            options["num_return_sequences"] = len(chosen)
            inputs = {"generation_mode": "joint"}
            samples = _generate(model, processor, inputs, evaluations, **options)
            texts += [sample.text for sample in samples]
            seen += judge.classify([sample.image for sample in samples])
    named = [captions.label_of(text) for text in texts]
    return JointFigures(
        num_samples=num_samples,
        share_well_formed=sum(name is not None for name in named) / num_samples,
        share_agreeing=sum(a == b for a, b in zip(named, seen, strict=True)) / num_samples,
        histogram=_shares(named, num_classes),
        histogram_of_pictures=_shares(seen, num_classes),
        ill_formed=_ill_formed(texts, named),
        mean_evaluations=float(np.mean(evaluations)),
        seconds=round(time.perf_counter() - start, 1),
    )
