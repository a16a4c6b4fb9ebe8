# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `mdm evaluate` can measure: one row of `TASKS` for each task.

A task is a function of the `Bench` that loads what it needs and returns the measurement, which runs
later: so that a missing file is found before hours of the other tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.garment_talks import FashionTalks
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.data.questions import FashionQuestions
from modeling_mdm.evaluation.figures import (
    Figures,
    Sampling,
    captioning_figures,
    joint_figures,
    text_to_image_figures,
)
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.questions import question_figures, reply_figures
from modeling_mdm.precision import use_bfloat16
from modeling_mdm.training.command_line import bf16_argument

# Measures one task; text to image has figures for each guidance scale.
Measurement = Callable[[], Figures | list[Any]]


@dataclass
class Bench:
    """What every task measures with."""

    model: Any
    processor: Any
    judge: JudgeNetwork
    captions: CaptionTable
    chosen: EvaluationArguments

    @property
    def sampling(self) -> Sampling:
        """How samples are made."""
        return Sampling(
            num_inference_steps=self.chosen.num_inference_steps,
            batch_size=self.chosen.batch_size,
            seed=self.chosen.seed,
            options=self.chosen.generation_options,
            disable_tqdm=self.chosen.disable_tqdm,
        )

    @cached_property
    def pictures(self) -> PictureDataset:
        """The pictures of the chosen split."""
        chosen = self.chosen
        return load_training_data(chosen.dataset, split=chosen.split, data_dir=chosen.data_dir)


def _joint(bench: Bench) -> Measurement:
    return partial(
        joint_figures,
        *(bench.model, bench.processor, bench.judge, bench.captions),
        num_samples=bench.chosen.num_samples,
        sampling=bench.sampling,
    )


def _text_to_image(bench: Bench) -> Measurement:
    return partial(
        text_to_image_figures,
        *(bench.model, bench.processor, bench.judge, bench.captions),
        num_samples=bench.chosen.num_samples,
        guidance_scales=bench.chosen.guidance_scale,
        sampling=bench.sampling,
    )


def _captioning(bench: Bench) -> Measurement:
    return partial(
        captioning_figures,
        *(bench.model, bench.processor, bench.captions, bench.pictures),
        num_samples=bench.chosen.limit,
        sampling=bench.sampling,
    )


def _questions(bench: Bench) -> Measurement:
    items = FashionQuestions(bench.pictures, seed=1)
    return _of_conversations(question_figures, bench, items)


def _replies(bench: Bench) -> Measurement:
    items = FashionTalks(bench.pictures, bench.captions, seed=1)
    return _of_conversations(reply_figures, bench, items)


def _of_conversations(measure: Any, bench: Bench, items: FashionQuestions) -> Measurement:
    held_out = [items[index] for index in range(min(bench.chosen.num_samples, len(items)))]
    return partial(measure, bench.model, bench.processor, held_out, bench.sampling)


TASKS: dict[str, Callable[[Bench], Measurement]] = {
    "joint": _joint,
    "text_to_image": _text_to_image,
    "captioning": _captioning,
    "questions": _questions,
    "replies": _replies,
}
DEFAULT_TASKS = ("joint", "text_to_image", "captioning")  # others ask for what few models can


@dataclass
class EvaluationArguments:
    """What to measure, on which data, and how samples are made."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of the model and its processor"})
    judge: str = field(metadata={"help": "folder of the judge network"})
    captions: str = field(
        metadata={"help": "caption table, or a folder that holds one named <dataset>.json"}
    )
    dataset: str = field(
        default="fashion_mnist",
        metadata={"help": "digits, fashion_mnist, or a `datasets` folder or id with labels"},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of Fashion-MNIST's IDX files (None: the Hub)"}
    )
    split: str = field(default="test", metadata={"help": "split whose pictures are captioned"})
    tasks: list[str] = field(
        default_factory=lambda: list(DEFAULT_TASKS),
        metadata={"help": f"some of: {', '.join(TASKS)}"},
    )
    num_samples: int = field(
        default=1000, metadata={"help": "samples of text to image (per scale) and of joint"}
    )
    limit: int | None = field(
        default=None, metadata={"help": "caption the first pictures only (None: all of them)"}
    )
    num_inference_steps: int = field(default=30, metadata={"help": "sampling steps"})
    guidance_scale: list[float] = field(
        default_factory=lambda: [1.0, 2.0, 3.0],
        metadata={"help": "guidance scales at which text to image is measured"},
    )
    generation_options: str = field(
        default="{}",
        metadata={"help": "more arguments of generate, as JSON, for every task"},
    )
    batch_size: int = field(default=100, metadata={"help": "samples at a time"})
    seed: int = field(default=0, metadata={"help": "seed of captions and noise"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    bf16: str = bf16_argument()
    output: str = field(default="figures.json", metadata={"help": "JSON file that is written"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bars"})
    json: bool = field(default=False, metadata={"help": "print JSON instead of a table"})

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"tasks={unknown} are unknown: use some of {list(TASKS)}.")
        self.bf16 = use_bfloat16(self.bf16, self.device)
        if Path(self.captions).is_dir():
            self.captions = str(Path(self.captions) / f"{self.dataset}.json")
        if isinstance(self.generation_options, str):  # YAML gives a dictionary
            try:
                self.generation_options = json.loads(self.generation_options)
            except ValueError as error:
                raise ValueError(
                    f"generation_options={self.generation_options!r} is not JSON: {error}"
                ) from error


def measure(bench: Bench) -> dict[str, Figures | list[Any]]:
    """Measure the chosen tasks in the order of `TASKS`; return their figures by task."""
    names = [name for name in TASKS if name in bench.chosen.tasks]
    measurements = {name: TASKS[name](bench) for name in names}
    return {name: measurement() for name, measurement in measurements.items()}
