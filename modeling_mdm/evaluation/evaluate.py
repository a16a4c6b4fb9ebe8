# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint by its tasks, told by a judge network, and the pictures that it makes.

::

    mdm evaluate --checkpoint FOLDER --judge FOLDER --captions captions.json \\
        --dataset fashion_mnist --data_dir FOLDER --output figures.json

What can be measured is told at `--tasks` and `--measures`. `--table 1`, 2 or 3 fills a table of the
paper instead, from data sets as they are distributed: `mdm evaluate --table 1 --help`.
Options may stand in a YAML file that comes first: `mdm evaluate options.yaml`. `--json` prints what
is written to `--output` instead of a table.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdm_cli.places import require_place, require_writable, require_writable_file
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.tables import command as table_command
from modeling_mdm.evaluation.tables.arguments import TableArguments
from modeling_mdm.evaluation.tasks import Bench, EvaluationArguments, measure
from modeling_mdm.evaluation.writing import circumstances, markdown, write_json
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, load_dtype
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import read_command_line, read_values
from modeling_mdm.training.loading import load_pretrained, require_device


def parse(
    argv: Sequence[str],
    description: str | None = __doc__,
    prog: str = "mdm evaluate",
    defaults: Mapping[str, Any] | None = None,
) -> tuple[EvaluationArguments | TableArguments, str]:
    """Read the command line and the YAML file that it may begin with.

    With `table` among what they name, it is a table of the paper that is filled.

    Args:
        argv: words of the command line. description, prog: what `--help` shows.
        defaults: values that need not be named.

    Returns:
        the arguments, and the whole command.

    Raises:
        ValueError: an unknown option, or a value that makes no sense.
        FileNotFoundError: there is no such file.
    """
    command = f"{prog} {shlex.join(argv)}".strip()
    if _names_table(argv):
        return table_command.parse(argv, prog, defaults), command
    (chosen,) = read_command_line((EvaluationArguments,), argv, description, prog, defaults)
    return chosen, command


def _names_table(argv: Sequence[str]) -> bool:
    if any(word == "--table" or word.startswith("--table=") for word in argv):
        return True
    file = Path(argv[0]) if argv and argv[0].endswith((".yaml", ".yml")) else None
    return file is not None and file.is_file() and "table" in read_values(file)


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
    lines = markdown(rows + [row for one in found for row in one.rows(names)])
    if comparisons := [row for one in found for row in one.comparisons()]:
        rows = [("measure", "of", "value", "beside", "ratio")]
        for task, (measure, value, beside, ratio) in comparisons:
            rows.append((measure, task, value, beside, "-" if ratio is None else f"{ratio:.3f}"))
        lines += ["", *markdown(rows)]
    return "\n".join(lines)


def run(chosen: EvaluationArguments | TableArguments, command: str) -> dict[str, Any]:
    """Measure, print the table or JSON, write and return the content of the JSON file.

    Args:
        chosen: what is measured. command: what the file names as the command that wrote it.

    Raises:
        OSError: if a file or folder is missing, or the output could not be written.
    """
    if isinstance(chosen, TableArguments):
        return table_command.run(chosen, command)
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
        **circumstances(chosen.device, chosen.bf16),
        "judge_test_accuracy": _test_accuracy(judge),
        "second_judge_test_accuracy": second and _test_accuracy(second),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_inference_steps": chosen.num_inference_steps,
        "figures": {
            task: [f.to_dict() for f in found] if isinstance(found, list) else found.to_dict()
            for task, found in figures.items()
        },
    }
    write_json(chosen.output, content)
    if chosen.json:
        print(json.dumps(content, indent=2))
    else:
        print(table(figures, [names[0] for names in captions.labels], second is not None))
        print(f"written to {chosen.output}")
    return content


def _test_accuracy(judge: JudgeNetwork) -> float | None:
    return judge.description.get("test", {}).get("accuracy")
