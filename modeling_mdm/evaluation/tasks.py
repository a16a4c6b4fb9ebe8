# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `mdm evaluate` can measure: one row of `TASKS` for each task.

A task is a function of the `Bench` that loads what it needs and returns the measurement, which runs
later: so that a missing file is found before hours of the other tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.garment_talks import FashionTalks
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.data.questions import FashionQuestions
from modeling_mdm.evaluation.borders import PatchBorders
from modeling_mdm.evaluation.figures import (
    Figures,
    Sampling,
    captioning_figures,
    joint_figures,
    text_to_image_figures,
)
from modeling_mdm.evaluation.frechet import FrechetDistance, require_torch_fidelity
from modeling_mdm.evaluation.inpainting import InpaintingFigures, half_judges, inpainting_figures
from modeling_mdm.evaluation.judge import JudgeArguments
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.panel import Panel, as_seen, balanced
from modeling_mdm.evaluation.questions import question_figures, reply_figures
from modeling_mdm.evaluation.reconstruction import reconstruction_figures
from modeling_mdm.evaluation.sampling import read_options
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
    second_judge: JudgeNetwork | None = None

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

    @cached_property
    def training(self) -> PictureDataset:
        """The training pictures."""
        chosen = self.chosen
        return load_training_data(chosen.dataset, split="train", data_dir=chosen.data_dir)

    @cached_property
    def classes(self) -> list[int]:
        """Classes of as many pictures as there are samples; they take turns."""
        return [n % self.captions.num_classes for n in range(self.chosen.num_samples)]

    def real(self, dataset: PictureDataset) -> list[Image.Image]:
        """As many pictures of a split as there are samples, of `classes`, as the model sees."""
        count = self.chosen.num_samples
        return as_seen(self.processor, balanced(dataset, count, self.captions.num_classes))

    @cached_property
    def test_pictures(self) -> list[Image.Image]:
        """Real pictures that generated ones are compared with."""
        return self.real(self.pictures)

    @cached_property
    def panel(self) -> Panel:
        """What looks at pictures beside the judge."""
        chosen = self.chosen
        measures = [name for name in MEASURES if name in chosen.measures]
        return Panel(
            self.second_judge,
            {key: measure for name in measures for key, measure in MEASURES[name](self).items()},
            Path(chosen.samples_dir) if chosen.samples_dir else None,
        )


def _frechet(bench: Bench) -> dict[str, Callable[..., Any]]:
    require_torch_fidelity()
    judges = {"judge": bench.judge, "second judge": bench.second_judge}
    real, training = bench.test_pictures, bench.real(bench.training)
    return {
        f"frechet_{name.replace(' ', '_')}": FrechetDistance(
            judge, real, training, bench.chosen.seed, name
        )
        for name, judge in judges.items()
        if judge is not None
    }


def _borders(bench: Bench) -> dict[str, Callable[..., Any]]:
    config = bench.model.config
    if config.vq_config is not None:
        raise ValueError(
            "measures=['borders'] asks for the borders of patches, which a model with vq_config "
            "does not decode one by one: leave it out."
        )
    return {"borders": PatchBorders(config.patch_size, bench.test_pictures)}


# What can be measured of all pictures of a task together.
MEASURES: dict[str, Callable[[Bench], dict[str, Callable[..., Any]]]] = {
    "frechet": _frechet,
    "borders": _borders,
}


def _judged(measure: Any, bench: Bench, **more: Any) -> Measurement:
    return partial(
        measure,
        *(bench.model, bench.processor, bench.judge, bench.captions),
        num_samples=bench.chosen.num_samples,
        sampling=bench.sampling,
        panel=bench.panel,
        **more,
    )


def _joint(bench: Bench) -> Measurement:
    return _judged(joint_figures, bench)


def _text_to_image(bench: Bench) -> Measurement:
    return _judged(text_to_image_figures, bench, guidance_scales=bench.chosen.guidance_scale)


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


def _reconstruction(bench: Bench) -> Measurement:
    return partial(
        reconstruction_figures,
        *(bench.model, bench.processor, bench.judge, bench.test_pictures, bench.classes),
        sampling=bench.sampling,
        panel=bench.panel,
    )


def _inpainting(bench: Bench) -> Measurement:
    chosen, pictures = bench.chosen, bench.pictures
    judges = partial(
        half_judges,
        chosen.half_judges,
        None if chosen.half_judges else bench.training,
        pictures,
        JudgeArguments(
            dataset=chosen.dataset,
            num_epochs=HALF_JUDGE_EPOCHS,
            mirror=bench.judge.config.mirror,
            seed=chosen.seed,
            disable_tqdm=chosen.disable_tqdm,
        ),
    )
    read = judges() if chosen.half_judges else None  # found missing before hours of other tasks

    def measure() -> list[InpaintingFigures]:
        return inpainting_figures(
            *(bench.model, bench.processor, bench.judge, read or judges(), pictures),
            num_samples=chosen.inpainting_samples,
            sampling=bench.sampling,
            panel=bench.panel,
        )

    return measure


TASKS: dict[str, Callable[[Bench], Measurement]] = {
    "joint": _joint,
    "text_to_image": _text_to_image,
    "captioning": _captioning,
    "questions": _questions,
    "replies": _replies,
    "inpainting": _inpainting,
    "reconstruction": _reconstruction,
}
MEASURED = ("joint", "text_to_image", "reconstruction")
DEFAULT_TASKS = ("joint", "text_to_image", "captioning")  # others ask for what few models can
HALF_JUDGE_EPOCHS = 3


@dataclass
class EvaluationArguments:
    """What to measure, on which data, and how samples are made."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of the model and its processor"})
    judge: str = field(metadata={"help": "folder of the judge network"})
    captions: str = field(
        metadata={"help": "caption table, or a folder that holds one named <dataset>.json"}
    )
    second_judge: str | None = field(
        default=None,
        metadata={"help": "folder of one more, of another architecture: its figures come second"},
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
    measures: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"what else is measured of the pictures of {', '.join(MEASURED)}: frechet "
            "(distance of the judge's features from as many real test pictures), borders (steps "
            "across the borders of patches)"
        },
    )
    num_samples: int = field(
        default=2000,
        metadata={"help": "samples of text to image (per scale), joint and reconstruction"},
    )
    inpainting_samples: int = field(
        default=500, metadata={"help": "pictures of which each half is repainted"}
    )
    half_judges: str | None = field(
        default=None,
        metadata={
            "help": "folder with the judges `upper` and `lower`, which say what one half alone "
            "tells (None: inpainting trains them)"
        },
    )
    samples_dir: str | None = field(
        default=None,
        metadata={"help": "folder for sheets of the first joint and repainted samples"},
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
        for name, known in (("tasks", TASKS), ("measures", MEASURES)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise ValueError(f"{name}={unknown} are unknown: use some of {list(known)}.")
        if self.inpainting_samples < 1:
            raise ValueError(f"inpainting_samples={self.inpainting_samples} must be >= 1.")
        if self.measures and not set(MEASURED) & set(self.tasks):
            raise ValueError(
                f"measures={self.measures} are of the pictures of {', '.join(MEASURED)}, of which "
                f"tasks={self.tasks} has none: add one, or leave measures out."
            )
        self.bf16 = use_bfloat16(self.bf16, self.device)
        if Path(self.captions).is_dir():
            self.captions = str(Path(self.captions) / f"{self.dataset}.json")
        self.generation_options = read_options(self.generation_options)


def measure(bench: Bench) -> dict[str, Figures | list[Any]]:
    """Measure the chosen tasks in the order of `TASKS`; return their figures by task."""
    names = [name for name in TASKS if name in bench.chosen.tasks]
    measurements = {name: TASKS[name](bench) for name in names}
    return {name: measurement() for name, measurement in measurements.items()}
