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
from modeling_mdm.decoder import PlaceEmbedding

from .machine import GIVEN, Peaks, measure_peaks
from .steps import measure_evaluation

PRESETS = Path(__file__).resolve().parent.parent / "configuration"
CHUNK = 64
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Operation:
    """Work of one operation over all layers.

    matmul_flops: of matrix products. bytes: read and written, the weights' among them.
    """

    name: str
    matmul_flops: float = 0.0
    exponentials: float = 0.0
    bytes: float = 0.0
    weight_bytes: float = 0.0

    def __mul__(self, times: int) -> "Operation":
        work = (self.matmul_flops, self.exponentials, self.bytes, self.weight_bytes)
        return Operation(self.name, *(times * one for one in work))

    def arithmetic(self, peaks: Peaks, dtype: str) -> float:
        """Seconds of arithmetic alone."""
        products = self.matmul_flops / peaks.products(dtype)
        return products + self.exponentials / peaks.exponentials

    def seconds(self, peaks: Peaks, dtype: str) -> float:
        """Least seconds of this operation by itself."""
        return max(self.arithmetic(peaks, dtype), self.bytes / peaks.bandwidth)


@dataclass(frozen=True)
class Step:
    """One evaluation of the decoder.

    batch: rows, guidance's branches included. words, patches: what each row reads. size: bytes of a
    number.
    """

    batch: int
    words: int
    patches: int
    size: int = 4

    @property
    def positions(self) -> int:
        """Positions of the whole batch, the three or so special tokens of each row left out."""
        return self.batch * (self.words + self.patches)


def linear(name: str, rows: int, inputs: int, outputs: int, size: int) -> Operation:
    """A matrix product with weights."""
    weights = inputs * outputs * size
    moved = rows * (inputs + outputs) * size + weights
    return Operation(name, 2 * rows * inputs * outputs, 0, moved, weights)


def scan_flops(positions: int, inner: int, state_size: int) -> float:
    """Flop of the recurrence as matrix products over chunks of 64.

    They are C B^T, its product with X, the update of the state, and its reading.
    """
    within = 2 * CHUNK * state_size + 2 * CHUNK * inner
    return positions * (within + 4 * state_size * inner)


def mamba_block(config: MDMConfig, step: Step) -> list[Operation]:
    """One Mamba-2 block of our decoder."""
    rows, size, width, inner = step.positions, step.size, config.hidden_size, config.inner_size
    state, heads = config.state_size, config.num_ssm_heads
    scans = len(config.joint_scans) if config.scan_mode == "parallel" else 1
    separate = config.scan_projections == "separate"
    shared = 1 if not separate else scans  # copies of x and the gate
    per_scan = 2 * state + heads
    projected = shared * 2 * inner + scans * per_scan
    channels = scans * (inner + 2 * state)
    operations = [
        Operation("norm and modulation", 0, 0, 2 * rows * width * size),
        linear("input projection", rows, width, projected, size),
        Operation(
            "convolution",
            0,
            rows * channels,
            rows * (shared * inner + scans * 2 * state + channels) * size,
        ),
        Operation(
            "scan",
            scans * scan_flops(rows, inner, state),
            4 * rows * scans * heads,
            rows * ((channels + scans * inner) * size + 2 * scans * heads * 4),
        ),
        Operation("merge", 0, 0, rows * (scans + shared) * inner * size),
        Operation("gated norm", 0, rows * shared * inner, 3 * rows * shared * inner * size),
        linear("output projection", rows, shared * inner, width, size),
        Operation("residual", 0, 0, 3 * rows * width * size),
    ]
    if separate:  # every order of either modality has weights, a position uses one set a scan
        sets = len({i for i, _ in config.joint_scans}) + len({t for _, t in config.joint_scans})
        unused = (sets - scans) * (width * (2 * inner + per_scan) + inner * width)
        moved = unused * size
        operations.append(Operation("weights of other orders", 0, 0, moved, moved))
    return operations


def attention_block(config: MDMConfig, step: Step) -> list[Operation]:
    """One block of the Transformer."""
    rows, size, width = step.positions, step.size, config.hidden_size
    length, middle = step.words + step.patches, config.intermediate_size
    return [
        Operation("norm and modulation", 0, 0, 4 * rows * width * size),
        linear("input projection", rows, width, 3 * width, size),
        Operation(
            "attention",
            4 * rows * length * width,
            rows * length * config.num_attention_heads,
            4 * rows * width * size,
        ),
        linear("output projection", rows, width, width, size),
        linear("feed-forward, in", rows, width, 2 * middle, size),
        Operation("feed-forward, gate", 0, rows * middle, 3 * rows * middle * size),
        linear("feed-forward, out", rows, middle, width, size),
        Operation("residual", 0, 0, 6 * rows * width * size),
    ]


def step_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """One evaluation of the network: embeddings, all blocks, heads."""
    width, size = config.hidden_size, step.size
    block = attention_block if config.mixer == "attention" else mamba_block
    latent = config.latent_dim * (2 if config.self_conditioning else 1)
    words, patches = step.batch * step.words, step.batch * step.patches
    features = PlaceEmbedding.features  # of an axis; the turn is one more
    operations = [
        linear("embedding", step.positions, latent, width, size),
        linear("place embedding, words", words, 2 * features, width, size),
        linear("place embedding, patches", patches, 3 * features, width, size),
    ]
    operations += [one * config.num_hidden_layers for one in block(config, step)]
    if words:
        operations.append(linear("word head", words, width, config.vocab_size, size))
    if patches:
        codes = (config.vq_config or {}).get("num_embeddings", 16384)  # of transformers' VQ-VAEs
        outputs = codes if config.vq_config else config.latent_dim
        operations.append(linear("patch head", patches, width, outputs, size))
    return operations


def predict(config: MDMConfig, step: Step, peaks: Peaks, dtype: str) -> float:
    """Least seconds of one step, operation by operation."""
    return sum(one.seconds(peaks, dtype) for one in step_operations(config, step))


def bound(config: MDMConfig, step: Step, peaks: Peaks, dtype: str) -> float:
    """Least seconds of one step of which every operation is fused with its neighbours."""
    operations = step_operations(config, step)
    weights = sum(one.weight_bytes for one in operations)
    arithmetic = sum(one.arithmetic(peaks, dtype) for one in operations)
    return max(arithmetic, weights / peaks.bandwidth)


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
    for one in sorted(operations, key=lambda one: -one.seconds(peaks, dtype)):
        seconds = one.seconds(peaks, dtype)
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
