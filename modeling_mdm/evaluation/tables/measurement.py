# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A measurement of a table: what it wants, how much work it is, and the figures that it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.evaluation.tables.arguments import TableArguments
from modeling_mdm.evaluation.tables.estimates import Estimate
from modeling_mdm.evaluation.tables.plots import Plot
from modeling_mdm.evaluation.tables.samples import Bench


@dataclass(frozen=True)
class Figure:
    """What fills one cell.

    Args:
        estimate: the figure with its error.
        by: who measured: a network, a library, a metric of its.
        details: what else was measured, and what the samples cost.
        shown: rows for the page, head first.
        sheet: samples for the page.
        plots: more pictures for it.
    """

    estimate: Estimate
    by: str
    details: dict[str, Any] = field(default_factory=dict)
    shown: list[tuple[str, ...]] = field(default_factory=list)
    sheet: Image.Image | None = None
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Work:
    """How much a measurement takes: samples or questions, and evaluations of the network."""

    num_samples: int
    num_evaluations: int


@dataclass(frozen=True)
class Measurement:
    """What fills one column or several of a table.

    Args:
        columns: that it fills.
        missing: names the files that it wants and that are not there.
        work: what it takes, its files being there.
        prepare: loads what it needs, and gives what measures: figures by column on the first
            process, anything on the others.
    """

    columns: tuple[str, ...]
    missing: Callable[[Path], list[Path]]
    work: Callable[[TableArguments], Work]
    prepare: Callable[[Bench, TableArguments], Callable[[], dict[str, Figure]]]


def absent(*names: str) -> Callable[[Path], list[Path]]:
    """Tell which of these files and folders are not below a root."""
    return lambda root: [root / name for name in names if not (root / name).exists()]


def sampled(chosen: TableArguments, count: int) -> Work:
    """Tell what so many samples take, a sampler step being an evaluation."""
    return Work(count, count * chosen.num_inference_steps)


def sheet_of(shown: Sequence[tuple[Image.Image, str | None]]) -> Image.Image:
    """Draw pictures and what was said of them on one sheet."""
    samples = [SimpleNamespace(image=picture, text=text) for picture, text in shown]
    return contact_sheet(samples, columns=10, picture_size=84)
