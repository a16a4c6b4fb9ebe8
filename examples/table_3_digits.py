# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Table 3 on the 8 x 8 digits: three decoders, three seeds of training each, means and intervals.

::

    python examples/table_3_digits.py

trains each decoder of `DECODERS` with `examples/configs/digits.yaml` once for every seed, and
measures it by `mdm evaluate --table 3`, in the features of a judge that is trained first. Cut off,
it goes on where it was. Everything but scans and mixer is equal; half as many blocks of attention
have about as many parameters as blocks of Mamba-2.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="eval")

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from project_commands import run_command
from scipy.stats import t as student

from mdm_cli.places import require_writable, require_writable_file
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.evaluation.tables.paper import TABLES
from modeling_mdm.evaluation.writing import markdown, write_json
from modeling_mdm.training.command_line import read_command_line

DECODERS: dict[str, tuple[str, ...]] = {
    "scans-1234-12": (),
    "scans-12-1": ("image_scans=[1,2]", "text_scans=[1]"),
    "transformer": ("mixer=attention", "num_hidden_layers=2"),
}
COLUMNS = TABLES[3].columns
JUDGE_EPOCHS = 60


@dataclass
class DigitsTableArguments:
    """What is trained and measured, and where it goes."""

    decoders: list[str] = field(
        default_factory=lambda: list(DECODERS), metadata={"help": f"some of: {', '.join(DECODERS)}"}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of training"})
    max_steps: int = field(default=3000, metadata={"help": "of training"})
    limit: int = field(default=1000, metadata={"help": "pictures that are compared with as many"})
    num_inference_steps: int = field(default=30, metadata={"help": "sampling steps"})
    judge_epochs: int = field(default=JUDGE_EPOCHS, metadata={"help": "of the judge's training"})
    folder: str = field(
        default="runs/table-3-digits", metadata={"help": "folder of models, samples and the judge"}
    )
    output: str = field(
        default="benchmarks/results/table_3_digits.json", metadata={"help": "the JSON file"}
    )

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.decoders) - set(DECODERS)):
            raise ValueError(f"decoders={unknown} are unknown: use some of {[*DECODERS]}.")
        if len(set(self.seeds)) < 2:
            raise ValueError(f"seeds={self.seeds} tell no interval: name at least 2.")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Give the mean of some seeds, and where 95 % of such means lie: Student's interval."""
    numbers = np.asarray(values, dtype=np.float64)
    error = numbers.std(ddof=1) / len(numbers) ** 0.5
    reach = float(student.ppf(0.975, len(numbers) - 1) * error)
    mean = float(numbers.mean())
    return {"values": list(values), "mean": mean, "interval": [mean - reach, mean + reach]}


def write_pictures(folder: Path) -> None:
    """Write the training digits as an ImageNet folder, `imagenet/train/CLASS/PICTURE`."""
    data = load_training_data("digits", split="train")
    for index in range(len(data)):
        item = data[index]
        file = folder / "imagenet" / "train" / str(item["label"]) / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        item["image"].save(file)


def _measure(chosen: DigitsTableArguments, decoder: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and measure one decoder from one seed, unless that is done."""
    model = folder / f"{decoder}-{seed}"
    result = model / "table" / "table-3.json"
    if not result.is_file():
        overrides = DECODERS[decoder]
        run_command(
            *("examples/train.py", "examples/configs/digits.yaml", "--seed", seed),
            *("--max_steps", chosen.max_steps, "--eval_strategy", "no", "--report_to", "none"),
            *("--output_dir", model, "--resume_from_checkpoint", "last"),
            *(("--config_overrides", *overrides) if overrides else ()),
        )
        run_command(
            *("examples/evaluate.py", "--table", 3, "--checkpoint", model, "--seed", seed),
            *("--data_root", folder / "data", "--extractor_judge", folder / "judge"),
            *("--limit", chosen.limit, "--num_inference_steps", chosen.num_inference_steps),
            *("--output_dir", model / "table"),
        )
    return json.loads(result.read_text(encoding="utf-8"))


def gather(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Take the results of all seeds together, by decoder."""
    return {
        decoder: {
            "num_parameters": results[0]["num_parameters"],
            **{
                column: summary([one["columns"][column]["estimate"]["value"] for one in results])
                for column in COLUMNS
            },
        }
        for decoder, results in found.items()
    }


def table(gathered: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lay the means and intervals out as Markdown."""
    rows: list[tuple[str, ...]] = [("decoder", "parameters", *COLUMNS)]
    for decoder, one in gathered.items():
        cells = ("{:.4g} ({:.4g} to {:.4g})".format(m["mean"], *m["interval"]) for m in _means(one))
        rows.append((decoder, f"{one['num_parameters']:,}", *cells))
    return markdown(rows)


def _means(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one[column] for column in COLUMNS]


def parse(argv: Sequence[str]) -> tuple[DigitsTableArguments]:
    """Read the command line."""
    return read_command_line((DigitsTableArguments,), argv, __doc__)


def run(chosen: DigitsTableArguments) -> None:
    """Train, measure, gather and write."""
    require_writable_file("output", chosen.output)
    require_writable("folder", chosen.folder)
    folder = Path(chosen.folder).resolve()
    if not (folder / "judge" / "judge.json").is_file():
        run_command(
            *("-m", "modeling_mdm.evaluation.judge", "--dataset", "digits", "--mirror", "false"),
            *("--num_epochs", chosen.judge_epochs, "--output_dir", folder / "judge"),
        )
    write_pictures(folder / "data")
    found = {
        decoder: [_measure(chosen, decoder, seed, folder) for seed in chosen.seeds]
        for decoder in chosen.decoders
    }
    gathered = gather(found)
    settings = {**asdict(chosen), "threads": torch.get_num_threads()}
    by = next(iter(found.values()))[0]["columns"]["FID"]["by"]
    write_json(chosen.output, {"settings": settings, "features": by, "decoders": gathered})
    print("\n".join([*table(gathered), "", f"FID: the Frechet distance of {by}'s features"]))
