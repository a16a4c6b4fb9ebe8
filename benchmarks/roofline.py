# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one denoising step must cost at least on a given machine, operation by operation.

::

    python -m benchmarks.roofline --preset mdm-1b --machine h100 --lengths 256 1024 4096
    python -m benchmarks.roofline --preset mdm-fashion --machine here --measure true

Predicted: an operation reads its inputs and weights and writes its outputs once, and takes as long
as the slower of that traffic and its arithmetic; operations do not overlap, starting one is free.
Bound: as if all were fused, the slower of all arithmetic and of reading the weights once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.planning.operations import Operation, Step, step_operations

from .machine import GIVEN, Peaks, measure_peaks
from .steps import measure_evaluation

PRESETS = Path(__file__).resolve().parent.parent / "configuration"
BYTES = {"float32": 4, "bfloat16": 2}


def arithmetic(one: Operation, peaks: Peaks, dtype: str) -> float:
    """Seconds of arithmetic alone."""
    return one.matmul_flops / peaks.products(dtype) + one.exponentials / peaks.exponentials


def least_seconds(one: Operation, peaks: Peaks, dtype: str) -> float:
    """Least seconds of an operation by itself."""
    return max(arithmetic(one, peaks, dtype), one.bytes / peaks.bandwidth)


def predict(config: MDMConfig, step: Step, peaks: Peaks, dtype: str) -> float:
    """Least seconds of one step, operation by operation."""
    return sum(least_seconds(one, peaks, dtype) for one in step_operations(config, step))


def bound(config: MDMConfig, step: Step, peaks: Peaks, dtype: str) -> float:
    """Least seconds of one step of which every operation is fused with its neighbours."""
    operations = step_operations(config, step)
    weights = sum(one.weight_bytes for one in operations)
    computing = sum(arithmetic(one, peaks, dtype) for one in operations)
    return max(computing, weights / peaks.bandwidth)


@dataclass
class RooflineArguments:
    """Which model, on which machine."""

    preset: str = field(
        default="mdm-1b", metadata={"help": "folder of configuration/, or of any config.json"}
    )
    machine: str = field(
        default="h100",
        metadata={"help": f"{', '.join(GIVEN)}, `here` (measured), or a record of `make bench`"},
    )
    lengths: list[int] = field(
        default_factory=lambda: [256, 1024, 4096], metadata={"help": "patches of a step"}
    )
    words: int = field(default=0, metadata={"help": "words of a step, beside the patches"})
    branches: int = field(default=2, metadata={"help": "rows of the batch: 2 with guidance"})
    dtype: str = field(default="bfloat16", metadata={"help": f"one of {', '.join(BYTES)}"})
    measure: bool = field(
        default=False, metadata={"help": "also run a step here and print measured over predicted"}
    )
    threads: int = field(default=1, metadata={"help": "threads of torch, where measured"})


def load_config(preset: str) -> MDMConfig:
    """Read a ready configuration by name, or any folder with a config.json.

    Raises:
        ValueError: neither.
    """
    folders = [PRESETS / preset, Path(preset)]
    folder = next((one for one in folders if (one / "config.json").is_file()), None)
    if folder is None:
        known = sorted(path.parent.name for path in PRESETS.glob("*/config.json"))
        raise ValueError(
            f"`preset` is {preset!r}: name one of {', '.join(known)}, or a folder with config.json."
        )
    return MDMConfig.from_pretrained(folder)


def load_peaks(machine: str, device: torch.device) -> Peaks:
    """Find the peaks of a machine: given, measured here, or of a record.

    Raises:
        ValueError: none of these.
    """
    if machine in GIVEN:
        return GIVEN[machine]
    if machine == "here":
        return measure_peaks(device)
    if Path(machine).is_file():
        return Peaks(**json.loads(Path(machine).read_text(encoding="utf-8"))["machine"]["peaks"])
    raise ValueError(
        f"`machine` is {machine!r}: name one of {', '.join(GIVEN)}, `here`, or a record's path."
    )


def report(config: MDMConfig, step: Step, peaks: Peaks, dtype: str) -> str:
    """A table of all operations, the heaviest first."""
    operations = step_operations(config, step)
    total = predict(config, step, peaks, dtype)
    lines = [
        f"{step.batch} x ({step.words} words + {step.patches} patches): predicted "
        f"{total * 1e3:.3g} ms, bound {bound(config, step, peaks, dtype) * 1e3:.3g} ms",
        f"  {'operation':<32}{'ms':>10}{'share':>8}{'Gflop':>10}{'GB':>9}",
    ]
    for one in sorted(operations, key=lambda one: -least_seconds(one, peaks, dtype)):
        seconds = least_seconds(one, peaks, dtype)
        lines.append(
            f"  {one.name:<32}{seconds * 1e3:>10.4f}{seconds / total:>8.1%}"
            f"{one.matmul_flops / 1e9:>10.2f}{one.bytes / 1e9:>9.3f}"
        )
    return "\n".join(lines)


def main(arguments: RooflineArguments) -> dict[int, dict[str, Any]]:
    """Print and return, by length, predicted and (on request) measured seconds."""
    if arguments.dtype not in BYTES:
        raise ValueError(f"`dtype` is {arguments.dtype!r}: choose one of {', '.join(BYTES)}.")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, peaks = load_config(arguments.preset), load_peaks(arguments.machine, device)
    print(f"{arguments.preset} on {arguments.machine} ({peaks.source}), {arguments.dtype}")
    results: dict[int, dict[str, Any]] = {}
    for length in arguments.lengths:
        step = Step(arguments.branches, arguments.words, length, BYTES[arguments.dtype])
        print(report(config, step, peaks, arguments.dtype))
        results[length] = {
            "predicted": predict(config, step, peaks, arguments.dtype),
            "bound": bound(config, step, peaks, arguments.dtype),
        }
        if arguments.measure:
            dtype = getattr(torch, arguments.dtype)
            measured = measure_evaluation(
                config, device, dtype, step.batch, step.patches, step.words
            )
            results[length]["measured"] = measured
            print(
                f"  measured {measured * 1e3:.3g} ms: {measured / results[length]['predicted']:.2f}"
                " x predicted"
            )
    return results


def cli(argv: Sequence[str] | None = None) -> None:
    """Read the command line."""
    (arguments,) = HfArgumentParser(RooflineArguments).parse_args_into_dataclasses(args=argv)
    main(arguments)


if __name__ == "__main__":
    cli()
