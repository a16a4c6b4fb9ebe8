# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure speed and memory, and write JSON, tables and plots.

::

    python -m benchmarks.run                      # everything: `make bench`
    python -m benchmarks.run --plan quick         # under 3 minutes: `make bench-quick`
    python -m benchmarks.run --topics scan block  # some of it
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: no notes of the profiler, no server is asked.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import HfArgumentParser
from transformers.utils import logging

from . import generation, layers
from .machine import Peaks, describe_machine, device_slug, measure_peaks, versions
from .plans import PLANS, Plan, plan_for
from .results import Record, Row
from .training_step import training_rows
from .whole_step import step_rows

DRY_RESULTS = Path(__file__).resolve().parent.parent / "outputs"
RESULTS = Path(__file__).resolve().parent / "results"
Topic = Callable[[Plan, torch.device, Peaks], Iterator[Row]]


def _growth(plan: Plan, device: torch.device, peaks: Peaks) -> Iterator[Row]:
    for row in generation.growth_rows(plan, device):
        generation.predict_growth(row, plan, peaks)
        yield row


def _topic(rows: Callable[[Plan, torch.device], Iterator[Row]]) -> Topic:
    return lambda plan, device, _: rows(plan, device)


TOPICS: dict[str, Topic] = {
    "scan": _topic(layers.scan_rows),
    "backends": _topic(layers.backend_rows),
    "pair": _topic(layers.pair_rows),
    "block": _topic(layers.block_rows),
    "attention": _topic(layers.attention_rows),
    "growth": _growth,
    "prompt_cache": _topic(generation.cache_rows),
    "past_turns": _topic(generation.past_rows),
    "selection": _topic(generation.selection_rows),
    "table_3": _topic(generation.table_3_rows),
    "image": _topic(generation.image_rows),
    "text": _topic(generation.text_rows),
    "step": step_rows,
    "training": training_rows,
}
# The large presets take minutes on a CPU, and say nothing there.
CPU_TOPICS = tuple(name for name in TOPICS if name not in ("step", "training"))


@dataclass
class BenchmarkArguments:
    """What to measure and where to write it."""

    plan: str = field(default="full", metadata={"help": f"one of {', '.join(PLANS)}"})
    topics: list[str] = field(
        default_factory=list, metadata={"help": f"some of {', '.join(TOPICS)} (none: all)"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    threads: int = field(default=1, metadata={"help": "threads of torch on a CPU"})
    minutes: float | None = field(
        default=None,
        metadata={
            "help": "no row is begun after so long; the record says which (None: the plan's)"
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file (None: benchmarks/results/<device>.json or <device>-quick.json)"
        },
    )


def check(arguments: BenchmarkArguments) -> None:
    """Refuse what cannot be run.

    Raises:
        ValueError: names the argument and the fix.
    """
    if arguments.plan not in PLANS:
        raise ValueError(f"`plan` is {arguments.plan!r}: choose one of {', '.join(PLANS)}.")
    unknown = [topic for topic in arguments.topics if topic not in TOPICS]
    if unknown:
        raise ValueError(f"`topics` holds {unknown}: choose out of {', '.join(TOPICS)}.")
    if arguments.device not in ("cpu", "cuda"):
        raise ValueError(f"`device` is {arguments.device!r}: use cpu or cuda.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda', but torch finds no CUDA device: use cpu.")
    if arguments.threads < 1:
        raise ValueError(f"`threads` is {arguments.threads}: use at least 1.")


def measure_topic(
    name: str, plan: Plan, device: torch.device, peaks: Peaks, deadline: float
) -> tuple[list[Row], bool]:
    """Measure a topic's rows; False if one of them failed."""
    rows, measured = TOPICS[name](plan, device, peaks), []
    while True:
        if time.monotonic() > deadline:
            measured.append(Row(name, "not run", {}, missing={"all": "the time was up"}))
            print(f"{name}: not run any further, the time is up", flush=True)
            return measured, True
        start = time.monotonic()
        try:
            row = next(rows, None)
        except Exception as error:  # a row that fails must not take the others with it
            reason = f"{type(error).__name__}: {error}"
            measured.append(Row(name, "failed", {}, missing={"all": reason}))
            print(f"{name}: FAILED, {reason}", file=sys.stderr, flush=True)
            return measured, False
        if row is None:
            return measured, True
        measured.append(row)
        times = ", ".join(f"{n} {one.median * 1e3:.3g} ms" for n, one in row.contenders.items())
        print(f"[{time.monotonic() - start:5.1f} s] {row.topic} {row.name}: {times}", flush=True)


def _measure_apart(threads: int, *topic: Any) -> tuple[list[Row], bool]:
    prepare(threads)
    return measure_topic(*topic)


def run(arguments: BenchmarkArguments) -> tuple[Record, Path, bool]:
    """Measure, on a CPU every topic in a process of its own.

    What malloc keeps of the rows before decides how much memory the system must hand out anew,
    which costs as much as the arithmetic of some contenders.

    Returns:
        the record, its file, and whether no row failed.
    """
    device = torch.device(arguments.device)
    plan = plan_for(arguments.plan, device)
    minutes = plan.minutes if arguments.minutes is None else arguments.minutes
    deadline = time.monotonic() + 60 * minutes
    suffix = "" if plan.name in ("full", "gpu") else f"-{plan.name}"
    folder = DRY_RESULTS if plan.is_dry else RESULTS
    path = Path(arguments.output or folder / f"{device_slug(device)}{suffix}.json")
    peaks = measure_peaks(device, small=plan.is_dry)
    settings = {"plan": asdict(plan), "topics": arguments.topics, "device": device.type}
    record = Record(describe_machine(device, peaks), versions(), settings)
    in_this_process = device.type == "cuda" or plan.is_dry
    topics = arguments.topics or (TOPICS if in_this_process else CPU_TOPICS)
    whole = True
    for name in topics:
        gc.collect()
        topic = (name, plan, device, peaks, deadline)
        if in_this_process:
            rows, succeeded = measure_topic(*topic)
        else:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                rows, succeeded = pool.submit(_measure_apart, arguments.threads, *topic).result()
        record.rows += rows
        whole &= succeeded
        record.save(path)
    return record, path, whole


def prepare(threads: int) -> None:
    """Set this process up for timing: threads, no warnings of other libraries' slow paths."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    gc.freeze()  # what is imported stays: a collection need not look at it


def main(arguments: BenchmarkArguments) -> int:
    """Measure and report; the exit status is 1 if a row failed."""
    from .report import write_report

    check(arguments)
    prepare(arguments.threads)
    record, path, whole = run(arguments)
    for written in (path, *write_report(record, path)):
        print(f"wrote {os.path.relpath(written)}")
    return 0 if whole else 1


def cli(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(args=argv)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(cli())
