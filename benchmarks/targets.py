# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of targets: floor, stretch and what a record holds for each; empty if not measured."""

from collections.abc import Callable
from dataclasses import dataclass

from .results import Record, Row
from .timing import fit_power

Extract = Callable[[Record], float | None]


@dataclass(frozen=True)
class Target:
    """One row of the table.

    device: `cpu` or `cuda`, where it is measured. unit: `x`, `%` or none. lower_is_better: of the
    value. measure: finds it in a record, None if it is not there.
    """

    text: str
    device: str
    floor: float
    stretch: float
    measure: Extract
    unit: str = "x"
    lower_is_better: bool = False

    def value(self, record: Record) -> float | None:
        """What a record of the right device holds."""
        return self.measure(record) if record.machine["device"] == self.device else None

    def reached(self, value: float) -> str:
        """Name what a value reaches: `stretch`, `floor` or `no`."""
        sign = -1 if self.lower_is_better else 1
        if sign * value >= sign * self.stretch:
            return "stretch"
        return "floor" if sign * value >= sign * self.floor else "no"


def speed(topic: str, name: str, slow: str, fast: str = "mdm") -> Extract:
    """How many times longer one contender of a row took."""

    def measure(record: Record) -> float | None:
        row = record.find(topic, name)
        return row.ratio(slow, fast) if row else None

    return measure


def memory(topic: str, name: str, large: str, small: str = "mdm") -> Extract:
    """How many times more memory one contender of a row needed."""

    def measure(record: Record) -> float | None:
        row = record.find(topic, name)
        return row.memory_ratio(large, small) if row else None

    return measure


def matmul_fraction(record: Record) -> float | None:
    """Share of the measured peak of float32 `torch.mm` that the scan reaches at L=1024."""
    row = record.find("scan", "forward 1024")
    return scan_fraction(record, row) if row else None


def scan_fraction(record: Record, row: Row) -> float | None:
    """Share of the peak of `torch.mm` that our scan of a row reaches."""
    ours = row.contenders.get("mdm")
    if ours is None or "matmul_flops" not in ours.details:
        return None
    peak = record.machine["peaks"]["matmul"][row.parameters["dtype"]]
    return ours.details["matmul_flops"] / ours.median / peak


def growth_exponent(record: Record, contender: str = "mdm") -> float | None:
    """Exponent of a step's time from 1024 to 16384 patches; None unless both ends are there."""
    points = [
        (row.parameters["patches"], row.contenders[contender].median)
        for row in record.of("growth")
        if contender in row.contenders and 1024 <= row.parameters["patches"] <= 16384
    ]
    sizes = [size for size, _ in points]
    if not {1024, 16384} <= set(sizes):
        return None
    return fit_power(sizes, [value for _, value in points])[0]


def roofline_fraction(record: Record) -> float | None:
    """Smallest share of the fused bound over steps of at least 1024 patches, the faster way."""
    shares = [
        max(one.details["bound_seconds"] / one.median for one in row.contenders.values())
        for row in record.of("step")
        if row.parameters["patches"] >= 1024 and row.contenders
    ]
    return min(shares) if shares else None


TARGETS = (
    Target(
        "SSD forward against transformers' default chunk, L=1024 N=128",
        "cpu", 6, 10, speed("scan", "forward 1024", "transformers"),
    ),
    Target(
        "SSD forward against transformers' best chunk, L=1024 N=128",
        "cpu", 3, 5, speed("scan", "forward 1024", "transformers_best_chunk"),
    ),
    Target(
        "SSD forward + backward against transformers' default chunk, L=4096",
        "cpu", 6, 9, speed("scan", "training 4096", "transformers"),
    ),
    Target(
        "block of 4 scans against 4 transformers mixers, L=1024",
        "cpu", 4, 6, speed("block", "forward 4 scans 1024", "transformers"),
    ),
    Target(
        "block of 4 scans against 4 transformers mixers, L=4096",
        "cpu", 6, 10, speed("block", "forward 4 scans 4096", "transformers"),
    ),
    Target(
        "peak memory of that block (forward + backward), L=4096",
        "cpu", 6, 10, memory("block", "training 4 scans 4096", "transformers"),
    ),
    Target(
        "block of one scan against attention of the same width, L=4096",
        "cpu", 2.5, 3.5, speed("attention", "forward 4096", "attention", "mdm_1_scan"),
    ),
    Target(
        "block of one scan against attention of the same width, L=16384",
        "cpu", 4.5, 6, speed("attention", "forward 16384", "attention", "mdm_1_scan"),
    ),
    Target(
        "share of the peak of float32 torch.mm, SSD forward L=1024",
        "cpu", 0.60, 0.80, matmul_fraction, "%",
    ),
    Target(
        "growth of one step's time from L=1024 to 16384, exponent",
        "cpu", 1.10, 1.02, growth_exponent, "", lower_is_better=True,
    ),
    Target(
        "prompt cache: a step with 1024 given and 64 noisy positions against uncached",
        "cpu", 8, 14, speed("prompt_cache", "text to image", "mdm uncached", "mdm cached"),
    ),
    Target(
        "hard selection: scan time at keep 25 % against keep 100 %",
        "cpu", 0.40, 0.28, speed("selection", "scan", "keep 25%", "keep 100%"),
        lower_is_better=True,
    ),
    Target(
        "H100: both directions against 2 mamba-ssm calls and flips, L=4096",
        "cuda", 1.7, 3, speed("pair", "forward 4096", "mamba_ssm"),
    ),
    Target(
        "H100: block of 4 scans against 4 mamba-ssm mixers, L=4096",
        "cuda", 3, 5, speed("block", "forward 4 scans 4096", "mamba_ssm"),
    ),
    Target(
        "H100: step in a CUDA graph against eager, B=1 L=256",
        "cuda", 1.5, 2.5, speed("step", "1 x 256", "eager", "cuda_graph"),
    ),
    Target(
        "H100: share of the roofline, 4 scans, L >= 1024",
        "cuda", 0.35, 0.60, roofline_fraction, "%",
    ),
)  # fmt: skip
