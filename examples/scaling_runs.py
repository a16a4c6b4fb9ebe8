# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The runs of `scaling_law.py`: sizes and budgets, and what each takes before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.evaluation.writing import markdown
from modeling_mdm.planning.flops import Batch, sampling_flops, step_flops
from modeling_mdm.planning.states import model_sizes

HEAD = 32  # width of a head of attention; widths are multiples of it


def read_size(word: str) -> tuple[int, int]:
    """Read a size, its width and blocks.

    Raises:
        ValueError: it is no size.
    """
    width, _, blocks = word.partition("x")
    if width.isdecimal() and blocks.isdecimal() and int(blocks) and int(width):
        if int(width) % HEAD == 0:
            return int(width), int(blocks)
        raise ValueError(f"sizes={word}: the width must be a multiple of {HEAD}, as in 96x8.")
    raise ValueError(f"sizes={word} is no size: write WIDTHxBLOCKS, as in 96x8.")


@dataclass(frozen=True)
class Run:
    """One run: a model's width, its blocks and their mixer, and the budget in whole steps."""

    width: int
    blocks: int
    mixer: str
    steps: int
    batch_size: int
    base: MDMConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.mixer}-{self.width}x{self.blocks}-{self.items}"

    @property
    def items(self) -> int:
        """Items that it trains on: those of whole steps."""
        return self.steps * self.batch_size

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of its configuration: everything grows with the width."""
        layers = self.blocks if self.mixer == "mamba2" else max(1, round(self.blocks / 2))
        return {
            "mixer": self.mixer,
            "hidden_size": self.width,
            "num_hidden_layers": layers,
            "vae_hidden_size": self.width,
            "intermediate_size": 8 * -(-self.width // 3),
            "head_dim": gcd(self.base.head_dim, self.base.expand * self.width),
            "num_attention_heads": self.width // HEAD,
        }

    @cached_property
    def config(self) -> MDMConfig:
        """Its configuration."""
        return MDMConfig(**{**self.base.to_dict(), **self.overrides})

    @cached_property
    def weights(self) -> int:
        """How many numbers learn."""
        return model_sizes(self.config).learning

    def flops(self) -> float:
        """Of its training, by the count that `mfu` is made of, as if all texts were the longest."""
        return self.steps * step_flops(self.config, self._batch(self.batch_size)).model

    def flops_of_figures(self, held_out: int, judged: int, sampling_steps: int) -> float:
        """Of its figures: one evaluation of each held-out item, guided samples of two tasks."""
        read = sampling_flops(self.config, self._batch(held_out), 1)
        if not judged:
            return read
        return read + 2 * sampling_steps * sampling_flops(self.config, self._batch(judged), 2)

    def _batch(self, items: int) -> Batch:
        patches = (self.config.image_size // self.config.patch_size) ** 2
        return Batch(items, self.config.max_text_length, patches)


@dataclass(frozen=True)
class Costs:
    """What is counted of all runs: items whose loss is taken, samples of each task, their steps."""

    held_out: int
    judged: int
    sampling_steps: int
    flops_per_second: float | None = None

    def hours(self, flops: float) -> str:
        """How long so many flops take, where that is known."""
        if self.flops_per_second is None:
            return "-"
        return f"{flops / self.flops_per_second / 3600:.3g}"

    def table(self, runs: Sequence[Run], done: Sequence[bool]) -> list[str]:
        """Say what would be run, what is done, and what it takes."""
        rows = [("run", "weights", "steps", "training, Tflop", "figures, Tflop", "hours", "done")]
        total = left = 0.0
        for run, is_done in zip(runs, done, strict=True):
            figures = run.flops_of_figures(self.held_out, self.judged, self.sampling_steps)
            both = (run.flops(), figures)
            total, left = total + sum(both), left + (0.0 if is_done else sum(both))
            tera = (f"{flops / 1e12:,.2f}" for flops in both)
            told = (self.hours(sum(both)), "yes" if is_done else "no")
            rows.append((run.name, f"{run.weights:,}", f"{run.steps:,}", *tera, *told))
        said = [f"{total / 1e12:,.1f} Tflop in all, {left / 1e12:,.1f} of them left"]
        if self.flops_per_second is not None:
            said.append(f"{self.hours(left)} hours left at {self.flops_per_second:g} flop/s")
        return [*markdown(rows), "", *said]
