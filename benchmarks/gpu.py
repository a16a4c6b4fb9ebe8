# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a CUDA device, in one command of at most eight minutes: `make gpu`.

Correctness first (the tests marked `gpu`), then kernels, blocks and steps, training steps beside
what `mdm plan` says of them, then the table of targets; the time that is left trains the colour
checkpoint (`examples/configs/emoji_64.yaml`), each time from where it was left. Without a CUDA
device it goes as far as it can: it collects those tests, compiles every Triton kernel for sm_90
where tests do that, runs every row on tiny sizes in both dtypes, says what was not run, and exits
with 0.

It needs no network and installs nothing: torch, transformers, triton and pytest must be there.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from .report import target_table, write_report
from .run import BenchmarkArguments, prepare, run

ROOT = Path(__file__).resolve().parent.parent
# The rows of the table of targets first: time may be up before the last.
TOPICS = [
    *("pair", "block", "step", "scan", "backends", "attention", "growth", "prompt_cache"),
    "training",
]
DRY_PLANS = ("dry", "dry-bfloat16")
RECIPE = "examples/configs/emoji_64.yaml"
LEAST_SECONDS = 60  # of training: reading the set and saving take some of them


@dataclass
class GpuArguments:
    """How long it may take, and where the record goes."""

    minutes: float = field(default=7.5, metadata={"help": "nothing is begun after so long"})
    test_minutes: float = field(default=3.0, metadata={"help": "the tests are stopped then"})
    topics: list[str] = field(
        default_factory=lambda: list(TOPICS), metadata={"help": "rows to measure, in this order"}
    )
    tests: bool = field(default=True, metadata={"help": "False measures without testing"})
    colour_set: str = field(
        default="runs/emoji-64",
        metadata={"help": "set to train on, a folder or its tar file; not there: no training"},
    )
    output: str | None = field(
        default=None, metadata={"help": "JSON file (None: benchmarks/results/<device>.json)"}
    )


def test_files(word: str) -> list[str]:
    """Test files in which a word occurs: others may import what this machine lacks."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        str(path.relative_to(ROOT)) for path in found if word in path.read_text(encoding="utf-8")
    ]


def run_tests(files: list[str], options: list[str], minutes: float) -> dict[str, Any]:
    """Run pytest in a process of its own.

    Returns:
        command, last line of its output, and whether all passed; True of no files.
    """
    if not files:
        return {"command": "", "summary": "there are no such tests", "passed": True}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=60 * minutes, check=False,
        )  # fmt: skip
        output, passed = done.stdout + done.stderr, done.returncode in (0, 5)  # 5: none collected
    except subprocess.TimeoutExpired as late:
        output, passed = f"{late.stdout or ''}\nstopped after {minutes} minutes", False
    if not passed:
        print(output[-6000:], flush=True)
    lines = [line for line in output.splitlines() if line.strip()]
    shown = " ".join(["pytest", *options, *files])
    return {"command": shown, "summary": lines[-1] if lines else "", "passed": passed}


def train_colours(place: str, seconds: float, options: Sequence[str] = ()) -> int:
    """Train the colour checkpoint for so long, from where it was left; the exit status.

    Args:
        place: the set, a folder or its tar file. options: more of the command.
    """
    if not Path(place).exists():
        print(f"colours: not trained, {place} is not there (examples/data/emoji_world.py makes it)")
        return 0
    if seconds < LEAST_SECONDS:
        print(f"colours: not trained, {seconds:.0f} s are left and {LEAST_SECONDS} are needed")
        return 0
    start, talks = time.monotonic(), Path(place) / "talks"
    if Path(place).is_file():  # which has no conversations
        talks = Path(place).with_name(f"{Path(place).stem}-talks")
        making = ["examples/data/emoji_talks.py", "--dataset", place, "--output_dir", str(talks)]
        if not talks.is_dir() and (failed := run_script(*making)):
            return failed
    seconds -= time.monotonic() - start
    training = ["examples/train.py", RECIPE, "--dataset", place, "--talks", str(talks)]
    return run_script(*training, "--max_train_seconds", f"{seconds:.0f}", *options)


def run_script(*words: str) -> int:
    """Run a script of this repository; its exit status."""
    print(f"python {' '.join(words)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def measure(arguments: GpuArguments) -> int:
    """Test and measure on the CUDA device; the exit status is 1 if anything failed."""
    start, tests = time.monotonic(), None
    if arguments.tests:
        parallel = ["-n", "4"] if importlib.util.find_spec("xdist") else []
        tests = run_tests(test_files("mark.gpu"), ["-m", "gpu", *parallel], arguments.test_minutes)
        print(f"tests: {tests['summary']}", flush=True)
    left = arguments.minutes - (time.monotonic() - start) / 60
    settings = BenchmarkArguments(
        plan="gpu", topics=arguments.topics, device="cuda", minutes=left, output=arguments.output
    )
    record, path, whole = run(settings)
    record.tests = tests or {}
    record.save(path)
    for written in (path, *write_report(record, path)):
        print(f"wrote {os.path.relpath(written)}")
    print(target_table(record))
    left = 60 * arguments.minutes - (time.monotonic() - start)
    trained = train_colours(arguments.colour_set, left)
    return 0 if whole and (tests is None or tests["passed"]) and not trained else 1


def try_without_gpu(arguments: GpuArguments) -> int:
    """Go as far as a machine without a CUDA device goes; 1 if something failed even so."""
    print("No CUDA device: trying all that needs none.", flush=True)
    good = True
    if arguments.tests:
        for what, files, options in (
            ("tests that need a GPU, collected", test_files("mark.gpu"),
             ["-m", "gpu", "--collect-only"]),
            ("kernels compiled for sm_90", test_files("GPUTarget"), ["-m", "not gpu"]),
        ):  # fmt: skip
            outcome = run_tests(files, options, arguments.test_minutes)
            print(f"{what}: {outcome['summary']}", flush=True)
            good &= outcome["passed"]
    with tempfile.TemporaryDirectory() as folder:
        for plan in DRY_PLANS:
            output = Path(folder) / f"{plan}.json"
            settings = BenchmarkArguments(plan=plan, topics=arguments.topics, output=str(output))
            record, path, whole = run(settings)
            write_report(record, path)
            good &= whole
            missing = sorted({why for row in record.rows for why in row.missing.values()})
    print("Not run here, and nothing was recorded:")
    print("* the tests marked `gpu`, every measurement of plan `gpu`")
    print(f"* training by {RECIPE}")
    for reason in missing:
        print(f"* {reason}")
    return 0 if good else 1


def main(arguments: GpuArguments) -> int:
    """Measure, or try."""
    prepare(threads=1)
    return (measure if torch.cuda.is_available() else try_without_gpu)(arguments)


def cli(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    (arguments,) = HfArgumentParser(GpuArguments).parse_args_into_dataclasses(args=argv)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(cli())
