# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How often picture and words agree, by route and by how often the network is evaluated.

::

    python -m modeling_mdm.evaluation.agreement --checkpoint FOLDER --label shipped

Every point goes to the JSON file as soon as it is measured, and a point that is there is not
measured again, so that the command may be cut off and repeated. It ends by drawing the figure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdm_cli.endings import perform
from mdm_cli.places import require_writable_file
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.evaluation.figures import joint_figures
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.sampling import Sampling
from modeling_mdm.evaluation.writing import write_json
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import autocast, describe_processor, load_dtype, use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import bf16_argument, read_command_line
from modeling_mdm.training.loading import load_pretrained

# The same guidance for all: of a picture by its words while both are noisy, or once they are given.
GUIDANCE: dict[str, Any] = {
    "joint_guidance_scale": {"image": 3.0, "text": 1.0},
    "guidance_scale": {"image": 3.0, "text": 1.0},
}
# A checkpoint's own sampler must not creep into what a route does not name.
PLAIN: dict[str, Any] = {"solver": "dpm_solver_2m", "num_restarts": 0}
RESTART: dict[str, Any] = {
    "num_restarts": 1,
    "restart_log_snr": {"image": -4.0, "text": -2.0},
}
ROUTES: dict[str, dict[str, Any]] = {
    "words first": {"joint_overlap": 0.0},
    "words ahead by windows": {"joint_overlap": 0.25},
    "lockstep": {"joint_overlap": 1.0},
    "clock, lead 2": {"joint_lead": 2.0},
    "clock, lead 2, a restart": {"joint_lead": 2.0, **RESTART},
    "clock, lead 2, by ddpm": {"joint_lead": 2.0, "solver": "ddpm"},
    "clock, lead 2, by ddpm, a restart": {"joint_lead": 2.0, "solver": "ddpm", **RESTART},
}
LEADS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
LEAD_STEPS = 30


@dataclass
class AgreementArguments:
    """What is measured, and where it goes."""

    checkpoint: str = field(metadata={"help": "Folder or Hub id of the model and its processor."})
    label: str = field(metadata={"help": "What the figure calls it."})
    judge: str = field(
        default="examples/checkpoints/fashion-judge", metadata={"help": "Folder of the judge."}
    )
    captions: str = field(
        default="examples/captions/fashion_mnist.json", metadata={"help": "The caption table."}
    )
    routes: list[str] = field(
        default_factory=lambda: [*ROUTES, "leads"],
        metadata={"help": f"Some of: {', '.join(ROUTES)}, leads."},
    )
    steps: list[int] = field(
        default_factory=lambda: [10, 20, 30, 40, 60], metadata={"help": "Sampler steps."}
    )
    num_samples: int = field(default=200, metadata={"help": "Samples of each point."})
    seed: int = field(default=3, metadata={"help": "Seed of the noise."})
    bf16: str = bf16_argument()
    output: str = field(
        default="benchmarks/results/fashion_agreement.json", metadata={"help": "The JSON file."}
    )
    plot: str = field(default="docs/agreement.png", metadata={"help": "The figure."})

    def __post_init__(self) -> None:
        self.bf16 = use_bfloat16(self.bf16)
        if unknown := sorted(set(self.routes) - {*ROUTES, "leads"}):
            raise ValueError(f"routes={unknown} are unknown: use some of {[*ROUTES, 'leads']}.")


def points(chosen: AgreementArguments) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Give (route, steps, options) of all that is asked for, few steps first."""
    if "leads" in chosen.routes:
        for lead in LEADS:
            yield f"lead {lead:g}", LEAD_STEPS, {"joint_lead": lead}
    for steps in sorted(chosen.steps):
        for route in ROUTES:
            if route in chosen.routes:
                yield route, steps, ROUTES[route]


def measure(chosen: AgreementArguments) -> list[dict[str, Any]]:
    """Measure the points that the file does not hold yet; return all that it holds then."""
    path = Path(chosen.output)
    found = json.loads(path.read_text())["points"] if path.is_file() else []
    keys = ("label", "route", "steps", "num_samples", "seed")
    known = {tuple(point[key] for key in keys) for point in found}
    processor = load_pretrained(MDMProcessor, "checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "checkpoint", chosen.checkpoint, dtype=dtype)
    judge = JudgeNetwork.from_pretrained(chosen.judge)
    captions = CaptionTable.from_json(chosen.captions)
    for route, steps, options in points(chosen):
        key = (chosen.label, route, steps, chosen.num_samples, chosen.seed)
        if key in known:
            continue
        sampling = Sampling(steps, 100, chosen.seed, {**PLAIN, **GUIDANCE, **options})
        with autocast(chosen.bf16, "cpu"):
            figures = joint_figures(model, processor, judge, captions, chosen.num_samples, sampling)
        found.append(
            {
                **dict(zip(keys, key, strict=True)),
                "options": sampling.options,
                "agreeing": figures.share_agreeing,
                "well_formed": figures.share_well_formed,
                "classes": [min(figures.histogram), max(figures.histogram)],
                "evaluations": figures.mean_evaluations,
                "seconds": figures.seconds,
                "processor": describe_processor(),
                "dtype": "bfloat16" if chosen.bf16 else "float32",
            }
        )
        print({name: found[-1][name] for name in ("route", "steps", "agreeing", "well_formed")})
        write_json(chosen.output, {"points": found})
    return found


def plot(found: Sequence[dict[str, Any]], path: str) -> None:
    """Draw agreement against evaluations, and against the lead, with standard errors."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    labels = dict.fromkeys(point["label"] for point in found)
    for style, label in zip(("-", "--", ":"), labels, strict=False):
        own = [point for point in found if point["label"] == label]
        for colour, route in enumerate(ROUTES):
            line = sorted(
                (point["evaluations"], point["agreeing"], point["num_samples"])
                for point in own
                if point["route"] == route
            )
            _line(left, line, f"{route} ({label})", f"C{colour}", style)
        leads = sorted(
            (float(point["route"].removeprefix("lead ")), point["agreeing"], point["num_samples"])
            for point in own
            if point["route"].startswith("lead ")
        )
        _line(right, leads, f"{LEAD_STEPS} steps ({label})", "C3", style)
    left.set(xlabel="evaluations of the network", ylabel="picture and words agree")
    right.set(xlabel="lead of the words, nats of log-SNR")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(
    axes: Any, line: Sequence[tuple[float, float, int]], label: str, colour: str, style: str
) -> None:
    if line:
        x, share, count = (list(values) for values in zip(*line, strict=True))
        errors = [(p * (1 - p) / n) ** 0.5 for p, n in zip(share, count, strict=True)]
        axes.errorbar(x, share, errors, label=label, color=colour, linestyle=style, capsize=2)


def parse(argv: Sequence[str]) -> tuple[AgreementArguments]:
    """Read the command line."""
    return read_command_line((AgreementArguments,), argv, __doc__)


def run(chosen: AgreementArguments) -> None:
    """Measure and draw."""
    require_writable_file("output", chosen.output)
    require_writable_file("plot", chosen.plot)
    plot(measure(chosen), chosen.plot)


if __name__ == "__main__":
    sys.exit(perform("agreement", lambda: (parse, run), sys.argv[1:]))
