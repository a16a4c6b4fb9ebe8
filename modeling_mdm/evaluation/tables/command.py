# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fill a table of the paper: `mdm evaluate --table`.

::

    mdm evaluate --checkpoint FOLDER --table 2 --data_root FOLDER --output_dir outputs/table-2

reads data sets as they are distributed, keeps every answer in `--output_dir`, goes on there after a
kill, and writes `table-2.json` and `table-2.md` into it. `--dry_run` says which files are missing
and how long it would take. Several processes share the items:
`accelerate launch examples/evaluate.py --table 2 ...`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from mdm_cli.places import require_file, require_folder, require_place, require_writable
from modeling_mdm.evaluation.tables.answers import Answers
from modeling_mdm.evaluation.tables.arguments import TableArguments
from modeling_mdm.evaluation.tables.columns import MEASUREMENTS
from modeling_mdm.evaluation.tables.measurement import Figure, Measurement
from modeling_mdm.evaluation.tables.page import difference_lines, table_lines, write_page
from modeling_mdm.evaluation.tables.paper import TABLES
from modeling_mdm.evaluation.tables.plots import require_matplotlib
from modeling_mdm.evaluation.tables.processes import num_launched, rank
from modeling_mdm.evaluation.tables.samples import Bench
from modeling_mdm.evaluation.writing import markdown, write_json
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, describe_processor, load_dtype
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained, require_device

LIBRARIES = ("transformers", "torch-fidelity", "lm-eval", "pycocoevalcap", "modeling-mdm")
NUM_NAMED = 5
TIMED_STEPS = 2


def parse(
    argv: Sequence[str], prog: str, defaults: Mapping[str, Any] | None = None
) -> TableArguments:
    """Read the command line and the YAML file that it may begin with.

    Raises:
        ValueError: an unknown option, or a value that makes no sense.
    """
    own = {one.name for one in fields(TableArguments)}
    known = {name: value for name, value in (defaults or {}).items() if name in own}
    (chosen,) = read_command_line((TableArguments,), argv, __doc__, prog, known)
    return chosen


def run(chosen: TableArguments, command: str) -> dict[str, Any]:
    """Fill the chosen columns, print the table or JSON, write and return the JSON's content.

    Args:
        chosen: what is measured. command: what the file names as the command that wrote it.

    Raises:
        ImportError: a library is missing.
        FileNotFoundError: the checkpoint or files of a column are missing; names them.
        ValueError: data sets that contradict themselves, or a folder of other settings.
    """
    measurements = chosen_measurements(chosen)
    _check_places(chosen)
    missing = {
        one: [] if chosen.is_of_hub(one.columns) else one.missing(chosen.root)
        for one in measurements
    }
    if chosen.dry_run:
        return _dry_run(chosen, missing)
    if absent := [file for files in missing.values() for file in files]:
        raise FileNotFoundError(
            f"data_root={chosen.data_root!r} lacks {_some(absent)}: put them there, leave their "
            "columns out by --columns, or see all by --dry_run."
        )
    require_matplotlib()
    model, processor = load(chosen)
    settings = chosen.settings() | {"weights": fingerprint(model)}
    folder = Path(chosen.output_dir)
    answers = Answers.open(folder, settings)
    bench = _bench(model, processor, answers, chosen)
    figures: dict[str, Figure] = {}
    with autocast(chosen.bf16, chosen.device):
        prepared = [one.prepare(bench, chosen) for one in measurements]
        for measure in prepared:
            figures |= measure()
    if rank() != 0:
        return {}
    wanted = chosen.columns or TABLES[chosen.table].columns
    figures = {column: figures[column] for column in wanted if column in figures}
    content = _content(chosen, command, settings, model, figures)
    return _report(chosen, command, content, figures)


def chosen_measurements(chosen: TableArguments) -> list[Measurement]:
    """Give the measurements that fill the chosen columns."""
    wanted = set(chosen.columns or TABLES[chosen.table].columns)
    return [one for one in MEASUREMENTS[chosen.table] if wanted & set(one.columns)]


def load(chosen: TableArguments) -> tuple[Any, Any]:
    """Load the model, with its adapters merged if there are any, and its processor."""
    processor = load_pretrained(MDMProcessor, "checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "checkpoint", chosen.checkpoint, dtype=dtype)
    check_processor(processor, model.config)
    if chosen.adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, chosen.adapter).merge_and_unload()
    return model.to(own_device(chosen.device)).eval(), processor


def own_device(device: str) -> str:
    """Give each process of a machine an accelerator of its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and num_launched() > 1 else device


def fingerprint(model: Any) -> str:
    """Tell weights apart: names, shapes and some values of each."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        some = value.detach().flatten()[:: max(1, value.numel() // 16)].float().cpu()
        digest.update(f"{name} {tuple(value.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]


def _check_places(chosen: TableArguments) -> None:
    require_device("device", chosen.device)
    require_place("checkpoint", chosen.checkpoint)
    if chosen.data_root is not None:
        require_folder("data_root", chosen.data_root)
    require_writable("output_dir", chosen.output_dir)
    chosen.choices()
    if chosen.adapter is not None:
        require_folder("adapter", chosen.adapter)
    if chosen.compare is not None:
        require_file("compare", chosen.compare)


def _bench(model: Any, processor: Any, answers: Answers, chosen: TableArguments) -> Bench:
    return Bench(
        model,
        processor,
        answers,
        seed=chosen.seed,
        batch_size=chosen.batch_size,
        options={"num_inference_steps": chosen.num_inference_steps},
        disable_tqdm=chosen.disable_tqdm,
    )


def _dry_run(
    chosen: TableArguments, missing: Mapping[Measurement, Sequence[Path]]
) -> dict[str, Any]:
    """Say what is missing, and estimate what the rest would take."""
    found = [one for one, files in missing.items() if not files]
    seconds = _seconds_of_an_evaluation(chosen) if found else 0.0
    rows, content = [("columns", "samples", "evaluations", "hours, about")], {}
    for one, files in missing.items():
        name = ", ".join(one.columns)
        if files:
            rows.append((name, "-", "-", f"missing: {', '.join(map(str, files))}"))
            content[name] = {"missing": list(map(str, files))}
        else:
            work = one.work(chosen)
            hours = work.num_evaluations * seconds / 3600 / num_launched()
            rows.append((name, str(work.num_samples), str(work.num_evaluations), f"{hours:.2g}"))
            content[name] = {**asdict(work), "hours": hours}
    print(json.dumps(content, indent=2) if chosen.json else "\n".join(markdown(rows)))
    return content


def _seconds_of_an_evaluation(chosen: TableArguments) -> float:
    """Time a few joint samples: how long the network takes for one of them, once."""
    model, processor = load(chosen)
    count = min(chosen.batch_size, 8)
    inputs = processor(generation_mode="joint", return_tensors="pt").to(model.device)
    with autocast(chosen.bf16, chosen.device):
        start = time.perf_counter()
        model.generate(
            **inputs,
            num_return_sequences=count,
            num_inference_steps=TIMED_STEPS,
            show_progress=False,
        )
        return (time.perf_counter() - start) / (count * TIMED_STEPS)


def _content(
    chosen: TableArguments,
    command: str,
    settings: Mapping[str, Any],
    model: Any,
    figures: Mapping[str, Figure],
) -> dict[str, Any]:
    is_cuda = torch.device(chosen.device).type == "cuda"
    return {
        "command": command,
        "table": chosen.table,
        "source_of_other_rows": TABLES[chosen.table].source,
        "settings": {**asdict(chosen), **settings},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **_versions(),
        },
        "machine": {
            "processor": describe_processor(chosen.device),
            "dtype": "bfloat16" if chosen.bf16 else "float32",
            "threads": torch.get_num_threads(),
            "processes": num_launched(),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
        },
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "columns": {
            column: {
                "estimate": asdict(figure.estimate),
                "by": figure.by,
                "details": figure.details,
                "plots": {plot.kind: plot.summary() for plot in figure.plots},
            }
            for column, figure in figures.items()
        },
    }


def _versions() -> dict[str, str | None]:
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def _report(
    chosen: TableArguments, command: str, content: dict[str, Any], figures: Mapping[str, Figure]
) -> dict[str, Any]:
    table, folder = TABLES[chosen.table], Path(chosen.output_dir)
    name = Path(chosen.checkpoint).name + (" + adapter" if chosen.adapter else "")
    lines = table_lines(table, name, figures)
    if chosen.compare is not None:
        old = json.loads(Path(chosen.compare).read_text(encoding="utf-8"))["columns"]
        lines += ["", f"Beside {chosen.compare}:", "", *difference_lines(figures, old)]
    write_json(folder / f"table-{table.number}.json", content)
    page = folder / f"table-{table.number}.md"
    write_page(page, f"Table {table.number}", lines, figures, command)
    print(
        json.dumps(content, indent=2)
        if chosen.json
        else "\n".join([*lines, "", f"written to {page}"])
    )
    return content


def _some(files: Sequence[Path]) -> str:
    more = f" and {len(files) - NUM_NAMED} more" if len(files) > NUM_NAMED else ""
    return ", ".join(map(str, files[:NUM_NAMED])) + more
