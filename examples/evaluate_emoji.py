# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint of the emoji world: what it draws, says, answers and changes.

Judges look at what it makes, and beside each figure stand theirs on real pictures and by chance::

    python examples/evaluate_emoji.py --checkpoint runs/emoji --dataset runs/emoji-64 \\
        --second_judge examples/checkpoints/emoji-judge-2 --output figures.json

`--tasks` names some of what is measured. Options may stand in a YAML file that comes first.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train")

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emoji_figures import Eye
from emoji_tasks import SHEET, TASKS, Bench

from judge_emoji_network import EmojiJudge
from mdm_cli.places import require_place, require_writable, require_writable_file
from modeling_mdm.data.archives import folder_of
from modeling_mdm.evaluation.sampling import Sampling, read_options
from modeling_mdm.evaluation.writing import circumstances, markdown, write_json
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, load_dtype, use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import bf16_argument, read_command_line
from modeling_mdm.training.loading import load_pretrained, require_device

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"


@dataclass
class EmojiEvaluationArguments:
    """What is measured, and how samples are made."""

    checkpoint: str = field(metadata={"help": "Folder or Hub id of the model and its processor."})
    dataset: str = field(
        metadata={"help": "What examples/data/emoji_world.py makes: its folder, or its tar file."}
    )
    judge: str = field(
        default=str(CHECKPOINTS / "emoji-judge"),
        metadata={"help": "Folder of a judge, from examples/judge_emoji.py."},
    )
    second_judge: str | None = field(
        default=None, metadata={"help": "Folder of one more, of another architecture."}
    )
    tasks: list[str] = field(
        default_factory=lambda: [*TASKS], metadata={"help": "Some of what can be measured."}
    )
    num_samples: int = field(default=500, metadata={"help": "Samples of each task."})
    num_inference_steps: int = field(default=36, metadata={"help": "Sampling steps."})
    generation_options: str = field(
        default="{}", metadata={"help": "More arguments of generate, as JSON, for every task."}
    )
    batch_size: int = field(default=100, metadata={"help": "Samples at a time."})
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    bf16: str = bf16_argument()
    output: str = field(default="figures.json", metadata={"help": "JSON file that is written."})
    samples_dir: str | None = field(
        default=None, metadata={"help": f"Folder for sheets of the first {SHEET} samples."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})

    def __post_init__(self) -> None:
        if unknown := sorted({*self.tasks} - {*TASKS}):
            raise ValueError(f"tasks={unknown} are unknown: use some of {[*TASKS]}.")
        if self.num_samples < 2:
            raise ValueError(f"num_samples={self.num_samples} must be >= 2.")
        self.bf16 = use_bfloat16(self.bf16, self.device)
        self.generation_options = read_options(self.generation_options)


def parse(argv: Sequence[str]) -> tuple[EmojiEvaluationArguments, str]:
    """Read the command line; also give it as it was written."""
    prog = "python examples/evaluate_emoji.py"
    (chosen,) = read_command_line([EmojiEvaluationArguments], argv, __doc__, prog=prog)
    return chosen, f"{prog} {shlex.join(argv)}"


def run(chosen: EmojiEvaluationArguments, command: str) -> dict[str, Any]:
    """Measure, print, write and return the figures."""
    require_writable_file("output", chosen.output)
    require_device("device", chosen.device)
    require_place("checkpoint", chosen.checkpoint)
    if chosen.samples_dir:
        require_writable("samples_dir", chosen.samples_dir)
    place = folder_of(chosen.dataset)
    require_place("dataset", place)
    folders = {"judge": chosen.judge, "second_judge": chosen.second_judge}
    judges = {
        name: EmojiJudge.from_pretrained(folder, name).to(chosen.device)
        for name, folder in folders.items()
        if folder
    }
    processor = load_pretrained(MDMProcessor, "checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "checkpoint", chosen.checkpoint, dtype=dtype)
    check_processor(processor, model.config)
    sampling = Sampling(
        num_inference_steps=chosen.num_inference_steps,
        batch_size=chosen.batch_size,
        seed=chosen.seed,
        options=chosen.generation_options,
        disable_tqdm=chosen.disable_tqdm,
    )
    eyes = {name: Eye(judge) for name, judge in judges.items()}
    model = model.to(chosen.device).eval()
    bench = Bench(
        *(model, processor, eyes, place, sampling), chosen.num_samples, chosen.samples_dir
    )
    figures: dict[str, Any] = {}
    content = {
        "command": command,
        **circumstances(chosen.device, chosen.bf16),
        "judges_on_test_pictures": {n: j.description.get("test") for n, j in judges.items()},
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_inference_steps": chosen.num_inference_steps,
        "num_samples": chosen.num_samples,
        "seed": chosen.seed,
        "figures": figures,
    }
    with autocast(chosen.bf16, chosen.device):
        for name in (name for name in TASKS if name in chosen.tasks):
            start = time.perf_counter()
            figures[name] = TASKS[name](bench)
            figures[name]["seconds"] = round(time.perf_counter() - start, 1)
            write_json(chosen.output, content)  # a task that fails later loses nothing
    print("\n".join(markdown([("task", "what", "share"), *_lines(figures)])))
    print(f"written to {chosen.output}")
    return content


def _lines(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """One row for each share."""
    rows = []

    def walk(found: Any, task: str, path: tuple[str, ...]) -> None:
        if isinstance(found, Mapping) and {"share", "of"} == {*found}:
            rows.append((task, ", ".join(path), f"{found['share']:.1%} of {found['of']}"))
        elif isinstance(found, Mapping):
            for key, value in found.items():
                walk(value, task, (*path, key))
        elif isinstance(found, float) and path[-1] != "seconds":
            rows.append((task, ", ".join(path), f"{found:.3f}"))

    for task, found in figures.items():
        walk(found, task, ())
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what the command line says."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
