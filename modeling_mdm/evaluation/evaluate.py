# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint by its tasks, told by a judge network, and the pictures that it makes.

::

    mdm evaluate --checkpoint FOLDER --judge FOLDER --captions captions.json \\
        --dataset fashion_mnist --data_dir FOLDER --output figures.json

What can be measured is told at `--tasks` and `--measures`.
Options may stand in a YAML file that comes first: `mdm evaluate options.yaml`. `--json` prints what
is written to `--output` instead of a table.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from mdm_cli.places import require_place, require_writable, require_writable_file
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.tasks import Bench, EvaluationArguments, measure
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, describe_processor, load_dtype
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained, require_device


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


def table(figures: Mapping[str, Any], names: Sequence[str], second: bool = False) -> str:
    """Lay the figures out as Markdown, the classes that do worst beside each share.

    Args:
        figures: by task. names: of the classes.
        second: a second judge says the second share.
    """
    found = [
        one for some in figures.values() for one in (some if isinstance(some, list) else [some])
    ]
    right = "right class, by both judges" if second else "right class"
    rows = [("task", "samples", "well formed", right, "weakest class")]
    lines = _markdown(rows + [row for one in found for row in one.rows(names)])
    if comparisons := [row for one in found for row in one.comparisons()]:
        rows = [("measure", "of", "value", "beside", "ratio")]
        for task, (measure, value, beside, ratio) in comparisons:
            rows.append((measure, task, value, beside, "-" if ratio is None else f"{ratio:.3f}"))
        lines += ["", *_markdown(rows)]
    return "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


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
    if chosen.samples_dir:
        require_writable("samples_dir", chosen.samples_dir)
    captions = CaptionTable.from_json(chosen.captions)
    judge = JudgeNetwork.from_pretrained(chosen.judge).to(chosen.device)
    second = None
    if chosen.second_judge:
        second = JudgeNetwork.from_pretrained(chosen.second_judge, "second_judge").to(chosen.device)
    processor = load_pretrained(MDMProcessor, "checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "checkpoint", chosen.checkpoint, dtype=dtype)
    check_processor(processor, model.config)
    model = model.to(chosen.device).eval()
    with autocast(chosen.bf16, chosen.device):
        figures = measure(Bench(model, processor, judge, captions, chosen, second))
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
        "judge_test_accuracy": _test_accuracy(judge),
        "second_judge_test_accuracy": second and _test_accuracy(second),
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
        print(table(figures, [names[0] for names in captions.labels], second is not None))
        print(f"written to {chosen.output}")
    return content


def _test_accuracy(judge: JudgeNetwork) -> float | None:
    return judge.description.get("test", {}).get("accuracy")
