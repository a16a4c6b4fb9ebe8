# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown and plots in PNG, made from a record and nothing else.

::

    python -m benchmarks.report benchmarks/results/cpu.json
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from transformers import HfArgumentParser

from .results import Contender, Record, Row
from .targets import TARGETS, Target, scan_fraction
from .timing import fit_power

PAPER_CROSSING = 1280  # "performance surpasses the Transformer above 1280 tokens", Fig. 5
TITLES = {
    "scan": "The scan alone",
    "backends": "Back-ends of the scan",
    "pair": "Both directions of one sequence",
    "block": "A block of several scans against stacked mixers",
    "attention": "A block against attention of the same width",
    "growth": "One evaluation of the network by length",
    "prompt_cache": "Prompt cache: one step with a long given part",
    "past_turns": "A reply in a conversation: the past read anew, or gone on from",
    "selection": "Hard selection: time by the share of items kept",
    "table_3": "Table 3, speed: one step of joint generation",
    "figure_5": "Fig. 5: a picture by resolution, words by their number",
    "step": "One step of the large preset",
    "training": "A training step of the large presets, beside what `mdm plan` says",
}
LABELS = {
    "mdm": "MDM, 4 scans",
    "mdm_4_scans": "MDM, 4 scans",
    "mdm_1_scan": "MDM, 1 scan",
    "one_scan_mamba": "Mamba, 1 scan",
    "transformer": "Transformer (diffusion)",
    "autoregressive": "Transformer (autoregressive, KV cache)",
    "attention": "attention",
}
# Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = {
    "mdm": "#0072B2",
    "mdm_4_scans": "#0072B2",
    "mdm_1_scan": "#56B4E9",
    "one_scan_mamba": "#56B4E9",
    "transformer": "#D55E00",
    "attention": "#D55E00",
    "autoregressive": "#009E73",
}


def milliseconds(seconds: float) -> str:
    """Three digits of a time."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def time_cell(one: Contender) -> str:
    """Median and quartiles in milliseconds."""
    low, high = one.spread
    return f"{milliseconds(one.median)} ({milliseconds(low)} to {milliseconds(high)})"


def memory_cell(one: Contender) -> str:
    """Peak memory in MiB."""
    return "" if one.peak_bytes is None else f"{one.peak_bytes / 2**20:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def value_text(value: float | None, unit: str) -> str:
    """A value of the table of targets; empty where nothing was measured."""
    if value is None:
        return ""
    return f"{value:.0%}" if unit == "%" else f"{value:.2f}{unit}"


def target_cells(target: Target, record: Record) -> list[str]:
    """One line of the table of targets."""
    value = target.value(record)
    return [
        target.text,
        value_text(target.floor, target.unit),
        value_text(target.stretch, target.unit),
        value_text(value, target.unit),
        "" if value is None else target.reached(value),
    ]


def target_table(record: Record) -> str:
    """Floor, stretch and measured of every target."""
    cells = [target_cells(target, record) for target in TARGETS]
    return table(["target", "floor", "stretch", "measured", "reaches"], cells)


def machine_lines(record: Record) -> str:
    """What the figures hold for."""
    machine, peaks = record.machine, record.machine["peaks"]
    versions = ", ".join(f"{name} {one}" for name, one in record.versions.items() if one)
    products = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks["matmul"].items())
    return "\n".join(
        [
            f"* {machine['name']}, {machine['cores']} cores, {machine['threads']} threads used, "
            f"{machine.get('cpu_capability') or 'vectors not known'}, "
            f"bfloat16 {machine.get('bfloat16') or 'not known'}, "
            f"load before the run {machine['load_before']}, "
            f"transparent huge pages: {machine.get('huge_pages') or 'not known'}",
            f"* {versions}",
            f"* peaks ({peaks['source']}): matrix products, Gflop/s: {products}; memory "
            f"{peaks['bandwidth'] / 1e9:.0f} GB/s; {peaks['exponentials'] / 1e9:.2f} G exp/s",
            f"* plan `{record.settings['plan']['name']}`; time: median (quartiles) of rounds in "
            "which all contenders of a row took turns; ratio: median of the rounds' ratios; "
            "memory: most that was held at once beyond what was held before",
        ]
    )


def row_cells(row: Row, record: Record) -> list[list[str]]:
    """The lines of one row: a contender each, then those that are missing."""
    first = next(iter(row.contenders), None)
    cells = []
    for name, one in row.contenders.items():
        ratio = f"{row.ratio(name, first):.2f}" if name != first else "1"
        cells.append(
            [row.name, name, time_cell(one), ratio, memory_cell(one), one.backend or "",
             remarks(row, one, record)]
        )  # fmt: skip
    cells += [[row.name, name, "", "", "", "", why] for name, why in row.missing.items()]
    return cells


def remarks(row: Row, one: Contender, record: Record) -> str:
    """What else a contender's record says."""
    said, details = [], one.details
    if "matmul_flops" in details:
        said.append(f"{scan_fraction(record, row):.0%} of torch.mm's peak")
    if "chunk_size" in details:
        said.append(f"chunk {details['chunk_size']}")
    if "predicted_seconds" in details:
        said.append(
            f"{one.median / details['predicted_seconds']:.2f} x predicted, "
            f"{one.median / details['bound_seconds']:.2f} x bound"
        )
    if "evaluations_a_step" in details:
        scans = details["scans_a_block"]
        branches = details.get("branches", 1)
        said.append(
            f"{details['sampler_steps']} steps x {details['evaluations_a_step']:.3g} evaluations"
            f" x {branches} branches x {details['blocks']} blocks"
            + (f" x {scans} scans" if scans else " of attention")
        )
    if "mfu" in details:
        said.append(
            f"{details['mfu']:.1%} of the measured peak of torch.mm (mfu), "
            f"{details['model_flops'] / 1e12:.3g} Tflop"
        )
    if "planned_bytes" in details:
        said.append(f"planned {details['planned_bytes'] / 2**20:.1f} MiB")
    if "planned_items" in details:
        said.append(f"{details['items']} items fit, planned {details['planned_items']}")
    if "weights" in details:
        said.append(f"{details['weights'] / 1e6:.2f} M weights")
    if row.name.startswith("image ") and row.topic == "figure_5":
        said.append(f"{1 / one.median:.3g} pictures/s")
    return "; ".join(said)


def curve(record: Record, topic: str, prefix: str, size: str, name: str) -> list[tuple[int, float]]:
    """(size, median seconds) of a contender over a topic's rows."""
    return [
        (row.parameters[size], row.contenders[name].median)
        for row in record.of(topic, prefix)
        if name in row.contenders
    ]


def crossing(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> float | None:
    """Size from which ours is faster to the end, interpolated between logarithms.

    Returns:
        the smallest size if ours is faster everywhere, None if it is not at the largest.
    """
    other = dict(theirs)
    both = [(x, math.log(y / other[x])) for x, y in ours if x in other]
    if not both or both[-1][1] >= 0:
        return None
    for (x0, d0), (x1, d1) in reversed(list(pairwise(both))):
        if d0 >= 0:
            return x0 * (x1 / x0) ** (d0 / (d0 - d1))
    return float(both[0][0])


@dataclass(frozen=True)
class Figure:
    """A plot of curves over a topic's rows.

    rate: plot one over the seconds. mark: also mark the paper's crossing.
    """

    name: str
    topic: str
    prefix: str
    size: str
    contenders: tuple[str, ...]
    against: tuple[str, ...]
    xlabel: str
    rate: bool = False
    mark: bool = False


FIGURES = (
    Figure("images", "figure_5", "image", "patches",
           ("mdm", "transformer", "one_scan_mamba", "autoregressive"),
           ("transformer", "autoregressive"), "patches of a picture", rate=True, mark=True),
    Figure("text", "figure_5", "text", "words",
           ("mdm", "transformer", "one_scan_mamba", "autoregressive"),
           ("transformer", "autoregressive"), "words to write", mark=True),
    Figure("growth", "growth", "", "patches", ("mdm", "transformer"), ("transformer",),
           "patches of a step"),
    Figure("attention", "attention", "", "length",
           ("mdm_1_scan", "mdm_4_scans", "attention"), ("attention",), "positions of a layer"),
)  # fmt: skip


def crossing_lines(record: Record) -> list[str]:
    """Say where ours becomes the faster one, for every plot."""
    said = []
    for figure in FIGURES:
        curves = {
            name: curve(record, figure.topic, figure.prefix, figure.size, name)
            for name in figure.contenders
        }
        for ours in (name for name in figure.contenders if name not in figure.against):
            for theirs in (name for name in figure.against if curves[name] and curves[ours]):
                at, sizes = crossing(curves[ours], curves[theirs]), curves[ours]
                where = (
                    f"not up to {sizes[-1][0]}" if at is None
                    else f"everywhere from {sizes[0][0]}" if at <= sizes[0][0]
                    else f"from {at:.0f}"
                )  # fmt: skip
                paper = f" (the paper: {PAPER_CROSSING})" if figure.mark else ""
                said.append(
                    f"* {figure.xlabel}: {LABELS[ours]} is faster than {LABELS[theirs]} "
                    f"{where}{paper}"
                )
    return said


def growth_lines(record: Record) -> list[str]:
    """Fitted exponents of time and memory."""
    said = []
    for name in ("mdm", "transformer"):
        rows = [row for row in record.of("growth", "step") if name in row.contenders]
        if len(rows) < 2:
            continue
        sizes = [row.parameters["patches"] for row in rows]
        seconds = fit_power(sizes, [row.contenders[name].median for row in rows])[0]
        memory = fit_power(sizes, [row.contenders[name].peak_bytes for row in rows])[0]
        said.append(
            f"* {LABELS[name]}: time grows as L^{seconds:.2f}, memory as L^{memory:.2f}, fitted "
            f"from {sizes[0]} to {sizes[-1]} patches"
        )
    return said


def markdown(record: Record, plots: Sequence[Path]) -> str:
    """The whole report."""
    sections = ["# Speed and memory", machine_lines(record), "## Targets", target_table(record)]
    sections.append("Empty: not measured by this run.")
    if record.tests:
        sections += ["## Tests on this machine", f"`{record.tests['command']}`: "
                  f"{record.tests['summary']}"]  # fmt: skip
    lines = growth_lines(record) + crossing_lines(record)
    if lines:
        sections += ["## Growth and crossings", "\n".join(lines)]
    sections += [f"![{plot.stem}]({plot.name})" for plot in plots]
    head = ["task", "contender", "ms", "times the first", "peak MiB", "back-end", ""]
    for topic in dict.fromkeys(row.topic for row in record.rows):
        cells = [line for row in record.of(topic) for line in row_cells(row, record)]
        rows = [row for row in record.of(topic) if row.parameters]
        sections.append(f"## {TITLES.get(topic, topic)}")
        if rows:
            common = set.intersection(*(set(row.parameters.items()) for row in rows))
            sections.append(", ".join(f"{name} {value}" for name, value in sorted(common)))
        sections.append(table(head, cells))
    return "\n\n".join(section for section in sections if section) + "\n"


def plot(record: Record, figure: Figure, path: Path) -> bool:
    """Draw a plot; False if the record has nothing for it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, ScalarFormatter

    curves = {
        name: curve(record, figure.topic, figure.prefix, figure.size, name)
        for name in figure.contenders
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return False
    canvas, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for name, points in curves.items():
        sizes, seconds = zip(*points, strict=True)
        values = [1 / one for one in seconds] if figure.rate else seconds
        axes.plot(sizes, values, "o-", color=COLOURS[name], label=LABELS[name], linewidth=1.8)
    axes.set(xscale="log", yscale="log", xlabel=figure.xlabel)
    axes.set_ylabel("pictures a second" if figure.rate else "seconds")
    ticks = sorted({size for points in curves.values() for size, _ in points})
    axes.set_xticks(ticks, minor=False)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    if figure.mark and ticks[0] <= PAPER_CROSSING <= ticks[-1]:
        axes.axvline(PAPER_CROSSING, color="0.6", linewidth=1, linestyle=":")
        axes.annotate("1280, the paper's crossing", (PAPER_CROSSING, 0.02), rotation=90,
                      xycoords=("data", "axes fraction"), fontsize=7, color="0.4",
                      ha="right")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    canvas.savefig(path, dpi=130)
    pyplot.close(canvas)
    return True


def write_report(record: Record, path: Path) -> list[Path]:
    """Write `<record>.md` and `<record>-<plot>.png` beside a record's JSON.

    Without matplotlib it writes the first alone.
    """
    try:
        draw: Callable[[Record, Figure, Path], bool] = plot
        import matplotlib  # noqa: F401
    except ImportError:
        print("matplotlib is not installed: no plots (`.[eval]` has it)", file=sys.stderr)

        def draw(*_: object) -> bool:
            return False

    plots = []
    for figure in FIGURES:
        target = path.with_name(f"{path.stem}-{figure.name}.png")
        if draw(record, figure, target):
            plots.append(target)
    tables = path.with_suffix(".md")
    tables.write_text(markdown(record, plots), encoding="utf-8")
    return [tables, *plots]


@dataclass
class ReportArguments:
    """Which records to report."""

    records: list[str] = field(metadata={"help": "JSON files that `benchmarks.run` wrote"})


def main(arguments: ReportArguments) -> list[Path]:
    """Write the report of every record."""
    written = []
    for name in arguments.records:
        written += write_report(Record.load(Path(name)), Path(name))
    return written


def cli(argv: Sequence[str] | None = None) -> None:
    """Read the command line: a list of files."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--records", *arguments]
    (parsed,) = HfArgumentParser(ReportArguments).parse_args_into_dataclasses(args=arguments)
    for path in main(parsed):
        print(f"wrote {path}")


if __name__ == "__main__":
    cli()
