# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`model.score` as a judge of captions: which of one caption a class belongs to a picture.

::

    python -m modeling_mdm.evaluation.ranking --checkpoint examples/checkpoints/mdm-fashion \\
        --captions examples/captions/fashion_mnist.json --data_dir FOLDER --output ranking.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from mdm_cli.endings import perform
from mdm_cli.places import require_writable_file
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, load_dtype, use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import bf16_argument, read_command_line
from modeling_mdm.training.loading import load_pretrained


@dataclass
class RankingArguments:
    """Which model ranks which captions, and with how many evaluations."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of the model and its processor"})
    captions: str = field(metadata={"help": "JSON table of names and templates of the classes"})
    dataset: str = field(default="fashion_mnist", metadata={"help": "a labelled data set"})
    data_dir: str | None = field(default=None, metadata={"help": "folder of its IDX files"})
    num_pictures: int = field(
        default=200, metadata={"help": "the first pictures of the test split"}
    )
    num_evaluations: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "noise levels, a run for each"}
    )
    bf16: str = bf16_argument()
    batch_size: int = field(default=10, metadata={"help": "pictures at a time"})
    seed: int = field(default=0, metadata={"help": "seed of phrasings and noise"})
    output: str = field(default="ranking.json", metadata={"help": "JSON file that is written"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bars"})

    def __post_init__(self) -> None:
        self.bf16 = use_bfloat16(self.bf16)


@dataclass(frozen=True)
class RankingFigures:
    """How often the true class's caption came first among all classes', and its bound."""

    num_evaluations: int
    num_pictures: int
    right_by_bound: float
    right_by_score_entropy: float
    nats_of_true_caption: float


def ranking_figures(
    model: Any,
    processor: Any,
    captions: CaptionTable,
    dataset: PictureDataset,
    num_evaluations: int,
    arguments: RankingArguments,
) -> RankingFigures:
    """Rank one caption a class, all of one phrasing, for each of the first pictures.

    Raises:
        ValueError: there is no picture, or one without a label.
    """
    count = min(arguments.num_pictures, len(dataset))
    labels = (dataset.labels or [None])[:count]
    if count < 1 or any(label is None for label in labels):
        raise ValueError("dataset has no labelled pictures: ranking needs the true class.")
    rng = np.random.default_rng(arguments.seed)
    rows = [captions.captions_of(label) for label in range(captions.num_classes)]
    phrasings = rng.integers(min(map(len, rows)), size=count)
    noise = torch.Generator().manual_seed(arguments.seed)
    bounds, entropies = [], []
    for first in tqdm(
        range(0, count, arguments.batch_size),
        desc=f"ranking, {num_evaluations} evaluations",
        disable=arguments.disable_tqdm,
    ):
        chosen = range(first, min(first + arguments.batch_size, count))
        items = [dataset[n] for n in chosen]
        labels[chosen.start : chosen.stop] = [item["label"] for item in items]
        inputs = processor(
            images=[item["image"] for item in items for _ in rows],
            text=[row[phrasings[n]] for n in chosen for row in rows],
            return_tensors="pt",
        ).to(model.device)
        out = model.score(
            **inputs, content="text", num_evaluations=num_evaluations, generator=noise
        )
        bounds.append(out.log_likelihood.view(len(chosen), -1).cpu().double())
        entropies.append(out.score_entropy.view(len(chosen), -1).cpu().double())
    bound, entropy, true = torch.cat(bounds), torch.cat(entropies), torch.tensor(labels)
    return RankingFigures(
        num_evaluations=num_evaluations,
        num_pictures=count,
        right_by_bound=float((bound.argmax(-1) == true).double().mean()),
        right_by_score_entropy=float((entropy.argmin(-1) == true).double().mean()),
        nats_of_true_caption=round(float(bound.gather(1, true[:, None]).mean()), 3),
    )


def parse(argv: Sequence[str]) -> tuple[RankingArguments]:
    """Read the command line and the YAML file that it may begin with."""
    return read_command_line((RankingArguments,), argv, __doc__)


def run(chosen: RankingArguments) -> list[RankingFigures]:
    """Measure each number of evaluations, print and write the figures."""
    require_writable_file("output", chosen.output)
    captions = CaptionTable.from_json(chosen.captions)
    dataset = load_training_data(chosen.dataset, split="test", data_dir=chosen.data_dir)
    processor = load_pretrained(MDMProcessor, "checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "checkpoint", chosen.checkpoint, dtype=dtype)
    model = model.eval()
    figures = []
    for count in chosen.num_evaluations:
        with autocast(chosen.bf16, "cpu"):
            figures.append(ranking_figures(model, processor, captions, dataset, count, chosen))
        print(figures[-1])
    content = json.dumps([asdict(one) for one in figures], indent=2)
    Path(chosen.output).write_text(content + "\n", encoding="utf-8")
    return figures


def main(arguments: Sequence[str] | None = None) -> list[RankingFigures]:
    """Do what the command line says."""
    return run(*parse(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(perform("ranking", lambda: (parse, run), sys.argv[1:]))
