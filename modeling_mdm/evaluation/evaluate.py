# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint: text to image, captioning and joint generation, told by a judge network.

::

    mdm evaluate --checkpoint FOLDER --judge FOLDER --captions captions.json \\
        --dataset fashion_mnist --data_dir FOLDER --output figures.json

Options may stand in a YAML file that comes first: `mdm evaluate options.yaml`. `--json` prints what
is written to `--output` instead of a table.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from mdm_cli.places import require_place, require_writable_file
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.evaluation.figures import (
    CaptioningFigures,
    JointFigures,
    Sampling,
    TextToImageFigures,
    captioning_figures,
    joint_figures,
    text_to_image_figures,
)
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, describe_processor, load_dtype, use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import bf16_argument, read_command_line
from modeling_mdm.training.loading import load_pretrained, require_device

TASKS = ("text_to_image", "captioning", "joint")


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
        default_factory=lambda: list(TASKS), metadata={"help": f"some of: {', '.join(TASKS)}"}
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


def parse(
    argv: Sequence[str],
    description: str | None = __doc__,
    prog: str = "mdm evaluate",
    defaults: Mapping[str, Any] | None = None,
) -> tuple[EvaluationArguments, str]:
    """Read the command line and the YAML file that it may begin with.

    Args:
        argv: words of the command line. description, prog: what `--help` shows.
        defaults: values that need not be named.

    Returns:
        the arguments, and the whole command.

    Raises:
        ValueError: an unknown option, or a value that makes no sense.
        FileNotFoundError: there is no such file.
    """
    (chosen,) = read_command_line((EvaluationArguments,), argv, description, prog, defaults)
    return chosen, f"{prog} {shlex.join(argv)}".strip()


def measure(
    model: Any,
    processor: Any,
    judge: JudgeNetwork,
    captions: CaptionTable,
    chosen: EvaluationArguments,
) -> dict[str, Any]:
    """Measure the chosen tasks; return their figures by task."""
    sampling = Sampling(
        num_inference_steps=chosen.num_inference_steps,
        batch_size=chosen.batch_size,
        seed=chosen.seed,
        options=chosen.generation_options,
        disable_tqdm=chosen.disable_tqdm,
    )
    if "captioning" in chosen.tasks:  # a missing set is found before hours of the other tasks
        pictures = load_training_data(chosen.dataset, split=chosen.split, data_dir=chosen.data_dir)
    figures: dict[str, Any] = {}
    if "joint" in chosen.tasks:
        figures["joint"] = joint_figures(
            model, processor, judge, captions, chosen.num_samples, sampling
        )
    if "text_to_image" in chosen.tasks:
        figures["text_to_image"] = text_to_image_figures(
            model, processor, judge, captions, chosen.num_samples, chosen.guidance_scale, sampling
        )
    if "captioning" in chosen.tasks:
        figures["captioning"] = captioning_figures(
            model, processor, captions, pictures, chosen.limit, sampling
        )
    return figures


def table(figures: dict[str, Any], names: Sequence[str]) -> str:
    """Lay the figures out as a Markdown table, the classes that do worst beside each share."""
    rows = [("task", "samples", "well formed", "right class", "weakest class")]
    joint: JointFigures | None = figures.get("joint")
    if joint is not None:
        low, high = min(joint.histogram), max(joint.histogram)
        rows.append(
            (
                *("joint", str(joint.num_samples), f"{joint.share_well_formed:.1%}"),
                f"{joint.share_agreeing:.1%} (judge agrees)",
                f"classes are {low:.1%} to {high:.1%} of samples",
            )
        )
    by_scale: list[TextToImageFigures] = figures.get("text_to_image", [])
    for one in by_scale:
        rows.append(
            (
                *(f"text to image, guidance {one.guidance_scale:g}", str(one.num_samples), "-"),
                *(f"{one.share_right:.1%}", _weakest(one.share_right_by_class, names)),
            )
        )
    captioning: CaptioningFigures | None = figures.get("captioning")
    if captioning is not None:
        rows.append(
            (
                *("captioning", str(captioning.num_samples)),
                *(f"{captioning.share_well_formed:.1%}", f"{captioning.share_right:.1%}"),
                _weakest(captioning.share_right_by_class, names),
            )
        )
    rows.insert(1, tuple("---" for _ in rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _weakest(shares: Sequence[float | None], names: Sequence[str]) -> str:
    share, name = min((s, n) for s, n in zip(shares, names, strict=True) if s is not None)
    return f"{name} {share:.1%}"


def write(path: str, content: dict[str, Any]) -> None:
    """Write JSON, the old file staying whole until the new one is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, target)


def run(chosen: EvaluationArguments, command: str) -> dict[str, Any]:
    """Measure, print the table or JSON, write and return the content of the JSON file.

    Args:
        chosen: what is measured. command: what the file names as the command that wrote it.

    Raises:
        OSError: if a file or folder is missing, or the output could not be written.
    """
    require_writable_file("output", chosen.output)
    require_device("device", chosen.device)
    require_place("checkpoint", chosen.checkpoint)
    captions = CaptionTable.from_json(chosen.captions)
    judge = JudgeNetwork.from_pretrained(chosen.judge).to(chosen.device)
    processor = load_pretrained(MDMProcessor, "checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "checkpoint", chosen.checkpoint, dtype=dtype)
    check_processor(processor, model.config)
    model = model.to(chosen.device).eval()
    with autocast(chosen.bf16, chosen.device):
        figures = measure(model, processor, judge, captions, chosen)
    content = {
        "command": command,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {
            "processor": describe_processor(chosen.device),
            "dtype": "bfloat16" if chosen.bf16 else "float32",
            "threads": torch.get_num_threads(),
        },
        "judge_test_accuracy": judge.description.get("test", {}).get("accuracy"),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_inference_steps": chosen.num_inference_steps,
        "figures": {
            task: [f.to_dict() for f in found] if isinstance(found, list) else found.to_dict()
            for task, found in figures.items()
        },
    }
    write(chosen.output, content)
    if chosen.json:
        print(json.dumps(content, indent=2))
    else:
        print(table(figures, [names[0] for names in captions.labels]))
        print(f"written to {chosen.output}")
    return content
