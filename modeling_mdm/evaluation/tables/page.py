# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of a table: ours beside the paper's rows, sheets of samples, the best and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modeling_mdm.evaluation.tables.estimates import Estimate
from modeling_mdm.evaluation.tables.measurement import Figure
from modeling_mdm.evaluation.tables.paper import PaperTable
from modeling_mdm.evaluation.tables.plots import save_plot
from modeling_mdm.evaluation.writing import markdown


def shown(estimate: Estimate) -> str:
    """Show a figure with its standard error, or with its interval where it has that alone."""
    value, error, interval = estimate.value, estimate.standard_error, estimate.interval
    if error is not None:
        return f"{value:.4g} ± {error:.2g}"
    return f"{value:.4g}" + ("" if interval is None else " ({:.4g} to {:.4g})".format(*interval))


def table_lines(table: PaperTable, name: str, figures: Mapping[str, Figure]) -> list[str]:
    """Lay the paper's table out with our row, and say what measured ours."""
    cells = {column: shown(figure.estimate) for column, figure in figures.items()}
    lines = markdown(table.with_row(name, cells))
    lines += ["", f"The last row is ours, the others are from {table.source}.", ""]
    for column, figure in figures.items():
        lines.append(f"- {column}: {figure.by}, {figure.estimate.num_items} items{_warned(figure)}")
    return lines


def _warned(figure: Figure) -> str:
    fidelity = figure.details.get("fidelity")
    is_other = fidelity is not None and fidelity["extractor"] != "inception-v3-compat"
    return "; not comparable with the paper's, which is in Inception's features" * is_other


def difference_lines(figures: Mapping[str, Figure], old: Mapping[str, Any]) -> list[str]:
    """Lay out differences from an earlier run, with the errors of both taken together."""
    rows = [("column", "now", "before", "difference")]
    for column, figure in figures.items():
        if column not in old:
            continue
        now, before = figure.estimate, Estimate(**old[column]["estimate"])
        errors = [now.standard_error, before.standard_error]
        error = None if None in errors else sum(one**2 for one in errors if one) ** 0.5
        change = Estimate(now.value - before.value, now.num_items, error)
        rows.append((column, shown(now), shown(before), shown(change)))
    return markdown(rows)


def write_page(
    file: Path, title: str, lines: Sequence[str], figures: Mapping[str, Figure], command: str
) -> None:
    """Write the page, and its sheets and plots beside it.

    Args:
        file: the page. title: its title. lines: of the table.
        figures: by column, whose sheets, plots and rows are shown.
        command: that made it.
    """
    page = [f"# {title}", "", "```bash", command, "```", "", *lines]
    drawn: dict[int, str] = {}  # columns of one measurement share pictures

    def show(what: str, column: str, picture: Any, ending: str, save: Any) -> None:
        name = drawn.get(id(picture))
        if name is None:
            name = drawn[id(picture)] = f"{column.lower().replace(' ', '-')}{ending}.png"
            save(file.with_name(name))
        page.extend([f"![{what} of {column}]({name})", ""])

    for column, figure in figures.items():
        page += ["", f"## {column}", ""]
        if figure.sheet is not None:
            show("Samples", column, figure.sheet, "", figure.sheet.save)
        for plot in figure.plots:
            ending, save = f"-{plot.kind}", partial(save_plot, plot)
            show(plot.kind.capitalize(), column, plot, ending, save)
        if figure.shown:
            page += markdown(figure.shown)
    file.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")
