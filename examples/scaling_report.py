# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the runs of `scaling_law.py` say: the laws, what lies ahead of them, tables, plots, page.

`gather` takes results together into what is written as JSON; all else reads that alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scaling_fit import Law, Number, fit_law, why_not

from modeling_mdm.cli.plan import PlanArguments, make_request
from modeling_mdm.evaluation.writing import markdown
from modeling_mdm.planning.plan import PAPER_DATA, make_plan

ROOT = Path(__file__).resolve().parents[1]
QUANTITIES = {
    "image": "score entropy of patches",
    "words": "score entropy of words",
    "text_to_image": "text to image, share wrong",
    "captions": "captions, share wrong",
}
AHEAD = {"300 M": 3e8, "1 B": 1e9, "7 B": 7e9}
PLANNED = {"mdm-1b": 8, "mdm-7b": 64}  # GPUs of each plan
GPU = "h100"
Content = Mapping[str, Any]


def value_of(run: Content, quantity: str) -> float | None:
    """What a run has of a quantity. Of n samples without a wrong one, half a sample is wrong."""
    if quantity in ("image", "words"):
        name = {"image": "loss_se_image", "words": "loss_se_text"}[quantity]
        return float(run["losses"][name])
    if run["judged"] is None:
        return None
    judged = run["judged"][quantity]
    return max(1 - judged["share_right"], 0.5 / judged["num_samples"])


def _own(runs: Sequence[Content]) -> list[Content]:
    return [run for run in runs if run["mixer"] == "mamba2"]


def plan_of(name: str, gpus: int) -> dict[str, Any]:
    """What `mdm plan` says of one pass of the paper's data."""
    parallel = ["fsdp2"] if gpus > 1 else []
    arguments = PlanArguments(
        config=str(ROOT / "configuration" / name),
        gpus=gpus,
        gpu=GPU,
        parallel=parallel,
        checkpointing=True,
    )
    plan = make_plan(make_request(arguments))
    return {
        "weights": plan.parameters["learning"],
        "gpus": gpus,
        "gpu": GPU,
        "utilisation": plan.request.utilisation,
        "fits": plan.memory.fits,
        **asdict(plan.hours[-1]),
    }


def _number(one: Number) -> dict[str, Any] | None:
    """As JSON has it, which knows no infinity."""
    return asdict(one) if np.all(np.isfinite([one.value, *one.interval])) else None


def _ahead(law: Law, weights: float, items: float) -> dict[str, Any]:
    told = law.share.untold is None
    return {
        "of_the_papers_items": _number(law.at(weights, items)),
        "best_items": _number(law.best_items(weights)) if told else None,
        "of_the_best_items": _number(law.at_best(weights)) if told else None,
    }


def gather(
    runs: Sequence[Content], settings: Content, command: str, draws: int, seed: int = 0
) -> dict[str, Any]:
    """Fit what can be told and look ahead; where a law was fitted, plan the paper's models too.

    Args:
        runs: results. settings, command: they were made with. draws, seed: of the intervals.
    """
    own = _own(runs)
    weights, items = [run["weights"] for run in own], [run["items"] for run in own]
    paper_items = float(sum(data.items for data in PAPER_DATA))
    each = median(run["flops"] / (run["weights"] * run["items"]) for run in own) if own else None
    reason, laws, ahead = why_not(weights, items), {}, {}
    for quantity in QUANTITIES if reason is None else ():
        values = [value_of(run, quantity) for run in own]
        if None in values:
            continue
        law = fit_law(weights, items, values, draws, seed)
        laws[quantity] = law.to_dict()
        ahead[quantity] = {name: _ahead(law, n, paper_items) for name, n in AHEAD.items()}
    return {
        "command": command,
        "settings": dict(settings),
        "runs": list(runs),
        "flops_of_a_weight_and_item": each,
        "why_no_law": reason,
        "laws": laws,
        "draws": draws,
        "papers_items": paper_items,
        "ahead": ahead,
        "plans": {name: plan_of(name, gpus) for name, gpus in PLANNED.items()} if laws else {},
    }


def _said(one: Content | None) -> str:
    return "-" if one is None else f"{one['value']:.3g} ({_interval(one)})"


def _interval(one: Content) -> str:
    return "{:.3g} to {:.3g}".format(*one["interval"])


def _runs_table(runs: Sequence[Content]) -> list[str]:
    rows = [("mixer", "width x blocks", "weights", "items", "Tflop", *QUANTITIES.values())]
    for run in runs:
        values = (value_of(run, quantity) for quantity in QUANTITIES)
        cells = ("-" if value is None else f"{value:.4g}" for value in values)
        counts = (f"{run['weights']:,}", f"{run['items']:,}", f"{run['flops'] / 1e12:.4g}")
        rows.append((run["mixer"], run["size"], *counts, *cells))
    return markdown(rows)


def _laws_table(content: Content) -> list[str]:
    rows = [("quantity", "E", "A", "a", "B", "b", "share of weights, b / (a + b)", "error")]
    for quantity, law in content["laws"].items():
        numbers = [*law["numbers"].values(), law["share_of_weights"]]
        cells = (_said(one) + (" *not told*" if one["untold"] else "") for one in numbers)
        rows.append((QUANTITIES[quantity], *cells, f"{law['median_error']:.1%}"))
    return markdown(rows)


def untold(content: Content) -> list[str]:
    """A line for each number of the laws that the runs cannot tell."""
    return [
        f"- {QUANTITIES[quantity]}, {name}: {one['untold']} ({_interval(one)})."
        for quantity, law in content["laws"].items()
        for name, one in law["numbers"].items()
        if one["untold"]
    ]


def _ahead_table(content: Content) -> list[str]:
    items = f"{content['papers_items']:,.0f}"
    head = ("EXTRAPOLATED", "weights", "best items", "Tflop of these", "after these")
    rows = [(*head, f"after {items} items")]
    for quantity, sizes in content["ahead"].items():
        for name, one in sizes.items():
            best, flops = one["best_items"], "-"
            if best is not None:
                each = content["flops_of_a_weight_and_item"]
                flops = f"{each * AHEAD[name] * best['value'] / 1e12:.3g}"
            after = (_said(one[key]) for key in ("of_the_best_items", "of_the_papers_items"))
            rows.append((QUANTITIES[quantity], name, _said(best), flops, *after))
    return markdown(rows)


def _plans_table(content: Content) -> list[str]:
    rows = [("PLANNED", "weights", "GPUs", "items", "days", "GPU-hours", "fits")]
    for name, one in content["plans"].items():
        gpus, fits = f"{one['gpus']} x {one['gpu']}", "yes" if one["fits"] else "no"
        counts = (f"{one['items']:,.0f}", f"{one['days']:,.1f}", f"{one['gpu_hours']:,.0f}")
        rows.append((name, f"{one['weights']:,}", gpus, *counts, fits))
    return markdown(rows)


def tables(content: Content) -> list[str]:
    """All tables, and what is not told, as lines of Markdown."""
    lines = _runs_table(content["runs"])
    if content["why_no_law"]:
        return [*lines, "", f"No law: {content['why_no_law']}"]
    missing = untold(content) or ["The runs tell all numbers of all laws."]
    parts = (_laws_table(content), missing, _ahead_table(content), _plans_table(content))
    return [*lines, *(line for part in parts for line in ("", *part))]


def page(content: Content, plot: str) -> str:
    """The page, whose numbers are all of the JSON.

    Args:
        content: of `gather`. plot: of `draw`, as the page links it.
    """
    recipe = content["settings"]["recipe"]
    lines = [
        "# A scaling law, measured small",
        "",
        f"Models of {_span(content, 'weights')} weights, trained on {_span(content, 'items')} "
        f"items of `{recipe['dataset']}` by one recipe, seed {content['settings']['seed']}: what a "
        "weight and an item are worth. Score entropies are those of the first "
        f"{content['settings']['eval_limit']:,} held-out items, with fixed noise and averaged "
        f"weights; a judge network looks at {content['settings']['num_judged']} pictures and as "
        "many captions. All of this is written by:",
        "",
        "```bash",
        content["command"],
        "```",
        "",
        "## Runs",
        "",
        *_runs_table(content["runs"]),
        "",
        f"![Each quantity against items, a colour for each size]({plot})",
        "",
        "Lines are the fitted laws, dots the runs, crosses Transformers of about as many weights "
        "(half as many blocks, of attention), which no law is fitted to.",
        "",
        "## Laws",
        "",
    ]
    if content["why_no_law"]:
        return "\n".join([*lines, f"None is fitted: {content['why_no_law']}", ""])
    missing = untold(content)
    lines += [
        "L(N, D) = E + A N^-a + B D^-b of N weights and D items, fitted to logarithms with Huber's "
        f"loss; in brackets the middle 95 % of fits to runs drawn with replacement "
        f"({content['draws']} times). Flops are best used where N grows as their b / (a + b)-th "
        "power, and D with the rest.",
        "",
        *_laws_table(content),
        "",
        *(["What these runs cannot tell:", "", *missing] if missing else ["All numbers are told."]),
        "",
        "## Extrapolation: not measured",
        "",
        "**Nobody has trained these models.** The laws are followed for "
        f"{AHEAD['300 M'] / max(run['weights'] for run in content['runs']):,.0f} to "
        f"{AHEAD['7 B'] / max(run['weights'] for run in content['runs']):,.0f} times more weights "
        "than the largest that was, on the same data, of which there may be far too few items. "
        "Losses of other data, such as the paper's, are other numbers. `best items` are those "
        "after which a flop more is worth as much in weights as in items.",
        "",
        *_ahead_table(content),
        "",
        "Beside it, one pass of the paper's data as `mdm plan` says it "
        f"({', '.join(content['plans'])}; checkpointing, bfloat16, an assumed utilisation of "
        f"{next(iter(content['plans'].values()))['utilisation']:.0%}, which nobody has measured):",
        "",
        *_plans_table(content),
        "",
    ]
    return "\n".join(lines)


def _span(content: Content, name: str) -> str:
    values = [run[name] for run in content["runs"]]
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))


def draw(content: Content, path: str | Path) -> None:
    """Draw every quantity that was measured against items, with the laws, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = content["runs"]
    shown = [q for q in QUANTITIES if all(value_of(run, q) is not None for run in runs)]
    figure = Figure(figsize=(5 * len(shown), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, quantity in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_quantity(axes, runs, quantity, content["laws"].get(quantity))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=100)


def _draw_quantity(axes: Any, runs: Sequence[Content], quantity: str, law: Content | None) -> None:
    sizes = list(dict.fromkeys(run["size"] for run in runs))
    for n, size in enumerate(sizes):
        for mixer, mark in (("mamba2", "o"), ("attention", "x")):
            some = [run for run in runs if run["size"] == size and run["mixer"] == mixer]
            if not some:
                continue
            items = [run["items"] for run in some]
            weights = f"{some[0]['weights'] / 1e6:.2f} M" if mixer == "mamba2" else None
            values = [value_of(run, quantity) for run in some]
            axes.plot(items, values, mark, color=f"C{n}", label=weights)
            if law is not None and mixer == "mamba2":
                along = np.geomspace(min(items), max(items), 60)
                number = {name: one["value"] for name, one in law["numbers"].items()}
                curve = number["E"] + number["A"] * some[0]["weights"] ** -number["a"]
                curve = curve + number["B"] * along ** -number["b"]
                axes.plot(along, curve, "-", color=f"C{n}", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="items", title=QUANTITIES[quantity])
    axes.legend(title="weights")
