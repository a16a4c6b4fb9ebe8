# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables 1 and 2, as far as they have a meaning for the shipped Fashion-MNIST checkpoint.

::

    python examples/shipped_tables.py --data_dir FOLDER

writes test pictures and their captions as ImageNet and COCO are distributed, and has
`mdm evaluate --table` measure the checkpoint on them; beside it an untrained model of the same
configuration, and real ones: training pictures, and a caption of each picture's own. Cut off, it
goes on where it was. Pictures are compared in the features of a judge, so no figure of them is FID.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="eval-text")

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from project_commands import ROOT, run_command

from mdm_cli.places import require_place, require_writable, require_writable_file
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.evaluation.fidelity import JudgeExtractor, fidelity_figures
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.tables.caption_measures import caption_figures
from modeling_mdm.evaluation.writing import circumstances, markdown, write_json
from modeling_mdm.generation_settings import MDMGenerationConfig
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import read_command_line

CHECKPOINTS = ROOT / "examples" / "checkpoints"
CAPTIONS = ROOT / "examples" / "captions" / "fashion_mnist.json"
# By table, the columns that have a meaning, and what each is here.
COLUMNS = {
    1: {
        "FID": "Frechet distance, by class",
        "IS": "inception score",
        "Precision": "precision",
        "Recall": "recall",
        "COCO FID": "Frechet distance, by caption",
    },
    2: {"COCO": "CIDEr-D of captions"},
}
GUIDANCE = 3.0  # that of pictures, as elsewhere in the results


@dataclass
class ShippedTableArguments:
    """What is measured, and where it goes."""

    data_dir: str | None = field(
        default=None, metadata={"help": "folder of Fashion-MNIST's IDX files; None: from the Hub"}
    )
    checkpoint: str = field(
        default=str(CHECKPOINTS / "mdm-fashion"), metadata={"help": "the model's folder"}
    )
    judge: str = field(
        default=str(CHECKPOINTS / "fashion-judge"), metadata={"help": "whose features are compared"}
    )
    limit: int = field(default=1000, metadata={"help": "pictures, compared with as many real ones"})
    num_inference_steps: int = field(default=30, metadata={"help": "sampling steps"})
    seed: int = field(default=0, metadata={"help": "of the untrained weights and all samples"})
    folder: str = field(
        default="runs/shipped-tables", metadata={"help": "folder of data sets and samples"}
    )
    output: str = field(
        default="benchmarks/results/fashion_tables.json", metadata={"help": "the JSON file"}
    )

    def __post_init__(self) -> None:
        if self.limit < 4:
            raise ValueError(f"limit={self.limit} must be >= 4: recall looks at neighbours.")


def write_sets(data: PictureDataset, count: int, root: Path) -> dict[str, list[str]]:
    """Write pictures as ImageNet's folders and COCO's files hold them; their captions by name."""
    pictures, captions, table = [], {}, CaptionTable.from_json(CAPTIONS)
    (root / "coco" / "val2014").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        item, name = data[index], f"COCO_val2014_{index + 1:012d}.png"
        folder = root / "imagenet" / "train" / f"n{item['label']:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        item["image"].save(folder / f"{index:05d}.png")
        item["image"].save(root / "coco" / "val2014" / name)
        captions[name] = table.captions_of(item["label"])
        pictures.append({"id": index + 1, "file_name": name})
    sentences = {
        "images": pictures,
        "annotations": [
            {"id": 100 * one["id"] + n, "image_id": one["id"], "caption": caption}
            for one in pictures
            for n, caption in enumerate(captions[one["file_name"]])
        ],
    }
    karpathy = [
        {
            "filepath": "val2014",
            "filename": one["file_name"],
            "cocoid": one["id"],
            "split": "test",
            "sentences": [{"raw": caption} for caption in captions[one["file_name"]]],
        }
        for one in pictures
    ]
    (root / "coco" / "annotations").mkdir(exist_ok=True)
    write_json(root / "coco" / "annotations" / "captions_val2014.json", sentences)
    write_json(root / "coco" / "dataset_coco.json", {"images": karpathy, "dataset": "coco"})
    return captions


def write_untrained(checkpoint: str, folder: Path, seed: int) -> None:
    """Write a new model of the checkpoint's configuration, and its processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MDMForJointGeneration(MDMConfig.from_pretrained(checkpoint))
    model.generation_config = MDMGenerationConfig.from_pretrained(checkpoint)
    model.save_pretrained(folder)
    MDMProcessor.from_pretrained(checkpoint).save_pretrained(folder)


def measure(chosen: ShippedTableArguments, checkpoint: str | Path, name: str, folder: Path) -> Any:
    """Measure a model; the estimates by column."""
    found = {}
    for table, columns in COLUMNS.items():
        result = folder / name / f"table-{table}" / f"table-{table}.json"
        if not result.is_file():
            run_command(
                *("examples/evaluate.py", "--table", table, "--checkpoint", checkpoint),
                *("--data_root", folder / "data", "--columns", *columns),
                *("--extractor_judge", Path(chosen.judge).resolve(), "--limit", chosen.limit),
                *("--num_inference_steps", chosen.num_inference_steps, "--seed", chosen.seed),
                *(("--guidance_scale", GUIDANCE) if table == 1 else ()),
                *("--output_dir", result.parent),
            )
        measured = json.loads(result.read_text(encoding="utf-8"))["columns"]
        found |= {column: measured[column]["estimate"] for column in columns}
    return found


def measure_real(
    chosen: ShippedTableArguments, data: Mapping[str, PictureDataset], captions: Any
) -> dict[str, dict[str, Any]]:
    """Measure training pictures in the place of samples, and a caption of each picture's own."""
    train, test = (
        [data[split][index]["image"] for index in range(chosen.limit)]
        for split in ("train", "test")
    )
    extractor = JudgeExtractor(JudgeNetwork.from_pretrained(chosen.judge))
    seen = fidelity_figures(train, test, extractor, seed=chosen.seed)
    said = {name: own[n % len(own)] for n, (name, own) in enumerate(captions.items())}
    distance = {"value": seen.frechet_distance, "interval": seen.frechet_interval}
    return {
        "FID": distance,
        "IS": {"value": seen.inception_score},
        "Precision": {"value": seen.precision},
        "Recall": {"value": seen.recall},
        "COCO FID": distance,
        "COCO": asdict(caption_figures(said, captions).cider),
    }


def lay_out(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Write the figures as a table, one row for each of what was measured."""
    names = {column: what for columns in COLUMNS.values() for column, what in columns.items()}
    cells = [("", *names.values())]
    for row, figures in rows.items():
        cells.append((row, *(f"{figures[column]['value']:.4g}" for column in names)))
    return markdown(cells)


def run(chosen: ShippedTableArguments) -> dict[str, Any]:
    """Measure, write and print."""
    require_writable_file("output", chosen.output)
    require_writable("folder", chosen.folder)
    require_place("checkpoint", chosen.checkpoint)
    folder = Path(chosen.folder).resolve()
    data = {
        split: load_training_data(
            "fashion_mnist", split=split, data_dir=chosen.data_dir, limit=chosen.limit
        )
        for split in ("train", "test")
    }
    captions = write_sets(data["test"], chosen.limit, folder / "data")
    write_untrained(chosen.checkpoint, folder / "untrained", chosen.seed)
    rows = {
        "untrained": measure(chosen, folder / "untrained", "of-untrained", folder),
        "shipped": measure(chosen, Path(chosen.checkpoint).resolve(), "of-shipped", folder),
        "real": measure_real(chosen, data, captions),
    }
    settings = {"limit": chosen.limit, "num_inference_steps": chosen.num_inference_steps}
    settings |= {"guidance_scale": GUIDANCE, "seed": chosen.seed}
    result = {"settings": settings, "rows": rows}
    result |= circumstances("cpu", use_bfloat16("auto"))
    write_json(chosen.output, result)
    print("\n".join(lay_out(rows)))
    return result


def parse(argv: Sequence[str]) -> tuple[ShippedTableArguments]:
    """Read the command line."""
    return read_command_line((ShippedTableArguments,), argv, __doc__)
