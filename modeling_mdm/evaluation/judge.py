# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Train a judge, the small classifier that says what a generated picture shows.

It is trained on the training split alone; its accuracy on the test split bounds what the figures of
a model can say. The shipped one was made by::

    python -m modeling_mdm.evaluation.judge --dataset fashion_mnist \\
        --data_dir /usr/share/datasets/fashion-mnist \\
        --output_dir examples/checkpoints/fashion-judge

A second of another architecture, of whose faults the first knows nothing, is
examples/checkpoints/fashion-judge-2, with `--architecture mixer --learning_rate 0.003
--num_epochs 7`. With `--visible upper` or `lower` a judge learns what half of a picture tells of
its class.

Axis legend: batch, channels, height, width, classes.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from mdm_cli.endings import perform
from mdm_cli.places import require_writable
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.evaluation.judge_network import (
    DEFAULT_WIDTHS,
    JudgeConfig,
    JudgeNetwork,
    pictures_to_tensor,
    to_unit_range,
)
from modeling_mdm.precision import describe_processor, use_bfloat16
from modeling_mdm.training.command_line import bf16_argument, read_command_line


def _labelled_tensors(data: PictureDataset, config: JudgeConfig) -> tuple[Tensor, Tensor]:
    labels = data.labels
    if labels is None or any(label is None for label in labels):
        raise ValueError("data has items without a label: a judge learns from labelled pictures.")
    items = [data[i] for i in range(len(data))]  # in place of a damaged one stands another
    pictures = [item["image"] for item in items]
    return pictures_to_tensor(pictures, config), torch.tensor([item["label"] for item in items])


@dataclass
class JudgeArguments:
    """Train a judge on the training split of a labelled set and measure it on the test split."""

    dataset: str = field(
        default="fashion_mnist",
        metadata={"help": "digits, fashion_mnist, or a `datasets` folder or id"},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of Fashion-MNIST's IDX files"}
    )
    output_dir: str = field(
        default="outputs/judge", metadata={"help": "where the judge is written"}
    )
    architecture: str = field(
        default="convolutional", metadata={"help": f"one of: {', '.join(DEFAULT_WIDTHS)}"}
    )
    visible: str = field(
        default="all", metadata={"help": "rows that it sees: all, or the upper or lower half"}
    )
    num_epochs: int = field(default=8, metadata={"help": "passes over the training split"})
    batch_size: int = field(default=128, metadata={"help": "pictures a step"})
    learning_rate: float = field(
        default=4e-3, metadata={"help": "peak of the one-cycle learning rate (AdamW)"}
    )
    mirror: bool = field(default=True, metadata={"help": "flip half of the pictures left to right"})
    bf16: str = bf16_argument()
    limit: int | None = field(default=None, metadata={"help": "first items of each split only"})
    seed: int = field(default=0, metadata={"help": "seed of weights, order and augmentation"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bar"})

    def __post_init__(self) -> None:
        self.bf16 = use_bfloat16(self.bf16)


def train_judge(
    train: PictureDataset, test: PictureDataset, arguments: JudgeArguments
) -> JudgeNetwork:
    """Train on `train` alone; `judge.description` then holds the accuracy on `test`.

    The pictures' size and colour are those of the first training picture.

    Raises:
        ValueError: if an item has no label, or an argument is below 1.
    """
    if min(arguments.num_epochs, arguments.batch_size) < 1:
        raise ValueError(
            f"num_epochs={arguments.num_epochs} and batch_size={arguments.batch_size} must be >= 1."
        )
    first = train[0]["image"]
    config = JudgeConfig(
        num_classes=train.num_classes or 0,
        image_size=first.size[::-1],
        num_channels=1 if first.mode in ("1", "L", "I;16") else 3,
        mirror=arguments.mirror,
        architecture=arguments.architecture,
        visible=arguments.visible,
    )
    images, labels = _labelled_tensors(train, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        judge = JudgeNetwork(config)
    start = time.perf_counter()
    with torch.autocast("cpu", enabled=False):  # whatever evaluation this one is a part of
        _fit(judge, images, labels, arguments)
    seconds = time.perf_counter() - start
    judge.description = {
        "dataset": arguments.dataset,
        "class_names": list(train.source.class_names or map(str, range(config.num_classes))),
        "num_train": len(images),
        "num_test": len(test),
        "test": judge.accuracy(*_labelled_tensors(test, config)),
        "training_seconds": round(seconds, 1),
        "machine": {"processor": describe_processor(), "threads": torch.get_num_threads()},
        "arguments": asdict(arguments),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }
    return judge.eval()


def _fit(judge: JudgeNetwork, images: Tensor, labels: Tensor, arguments: JudgeArguments) -> None:
    def shown(chosen: Tensor, draw: torch.Generator) -> Tensor:
        return _augmented(to_unit_range(images[chosen]), arguments.mirror, draw)

    def loss_of(logits: Tensor, chosen: Tensor) -> Tensor:  # logits: (batch, classes)
        return functional.cross_entropy(logits.float(), labels[chosen])

    fit(judge, len(images), shown, loss_of, arguments)


class HowToFit(Protocol):
    """Those of a judge's arguments by which it learns."""

    learning_rate: float
    num_epochs: int
    batch_size: int
    seed: int
    bf16: Any
    disable_tqdm: bool


def fit(
    judge: nn.Module,
    count: int,
    shown: Callable[[Tensor, torch.Generator], Tensor],
    loss_of: Callable[[Any, Tensor], Tensor],
    how: HowToFit,
) -> None:
    """Train a judge in place: AdamW without decay of vectors, one cycle of the learning rate.

    Args:
        judge: from pictures (batch, channels, height, width) to what `loss_of` takes.
        count: of the examples. shown: pictures of some of them (batch,), augmented by a generator.
        loss_of: of what the judge says of them (batch,). how: it learns.
    """
    draw = torch.Generator().manual_seed(how.seed)
    batch_size = min(how.batch_size, count)
    num_batches = count // batch_size
    num_steps = how.num_epochs * num_batches
    decayed = [p for p in judge.parameters() if p.ndim > 1]
    others = [p for p in judge.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=how.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=how.learning_rate, total_steps=max(num_steps, 2)
    )
    # Channels last makes convolutions on a CPU about a third faster.
    judge.train().to(memory_format=torch.channels_last)
    with tqdm(total=num_steps, desc="judge", disable=how.disable_tqdm) as steps:
        for _ in range(how.num_epochs):
            order = torch.randperm(count, generator=draw)
            for chosen in order[: num_batches * batch_size].split(batch_size):
                images = shown(chosen, draw).contiguous(memory_format=torch.channels_last)
                # Weights cast for an evaluation around this one would be those of before the step.
                with torch.autocast("cpu", torch.bfloat16, bool(how.bf16), cache_enabled=False):
                    said = judge(images)
                loss = loss_of(said, chosen)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                steps.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                steps.update()


def _augmented(images: Tensor, mirror: bool, draw: torch.Generator) -> Tensor:
    """Mirror half of a batch and shift the whole of it by up to one pixel each way."""
    height, width = images.shape[-2:]
    if mirror:
        flip = torch.rand(len(images), 1, 1, 1, generator=draw) < 0.5
        images = torch.where(flip, images.flip(-1), images)
    down, right = torch.randint(0, 3, (2,), generator=draw).tolist()
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return padded[..., down : down + height, right : right + width]


def parse(argv: Sequence[str]) -> tuple[JudgeArguments, str]:
    """Read the command line; return the arguments, and the whole command."""
    (chosen,) = read_command_line((JudgeArguments,), argv, __doc__)
    return chosen, f"python -m modeling_mdm.evaluation.judge {shlex.join(argv)}"


def run(chosen: JudgeArguments, command: str) -> JudgeNetwork:
    """Train a judge, print its accuracy, save and return it."""
    require_writable("output_dir", chosen.output_dir)
    train, test = (
        load_training_data(
            chosen.dataset, split=split, data_dir=chosen.data_dir, limit=chosen.limit
        )
        for split in ("train", "test")
    )
    judge = train_judge(train, test, chosen)
    judge.description["command"] = command
    judge.save_pretrained(chosen.output_dir)
    result = judge.description["test"]
    for name, share in zip(
        judge.description["class_names"], result["accuracy_by_class"], strict=True
    ):
        print(f"{name:>14}  {'-' if share is None else f'{share:.1%}'}")
    print(f"test accuracy {result['accuracy']:.2%}, written to {chosen.output_dir}")
    return judge


def main(arguments: Sequence[str] | None = None) -> JudgeNetwork:
    """Run the command line; return the judge that was trained and saved."""
    return run(*parse(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(perform("judge", lambda: (parse, run), sys.argv[1:]))
