# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables 1 and 2, as far as they have a meaning for the shipped checkpoints.

::

    python examples/shipped_tables.py --data_dir FOLDER
    python examples/shipped_tables.py --dataset runs/emoji-40

The first is about the grey checkpoint, the second about the colour one, on a set that
examples/data/emoji_common.py made. Test pictures and their captions are written as ImageNet and
COCO are distributed, and `mdm evaluate --table` measures the checkpoint on them; beside it an
untrained model of the same configuration, and real ones: training pictures, and a caption of each
picture's own. Cut off, it goes on where it was. Pictures are compared in the features of a judge,
in colour of EfficientNet-Lite0 (extra `eval-lite`), so no figure of them is FID.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="eval-text")

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from project_commands import ROOT, run_command

from mdm_cli.places import require_place, require_writable, require_writable_file
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.evaluation.efficientnet import LITE, LiteExtractor
from modeling_mdm.evaluation.fidelity import Extractor, JudgeExtractor, fidelity_figures
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.tables.caption_measures import caption_figures
from modeling_mdm.evaluation.writing import circumstances, markdown, write_json
from modeling_mdm.generation_settings import MDMGenerationConfig
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.precision import use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import read_command_line

CHECKPOINTS, RESULTS = ROOT / "examples" / "checkpoints", ROOT / "benchmarks" / "results"
CAPTIONS = ROOT / "examples" / "captions" / "fashion_mnist.json"
FASHION = "fashion_mnist"
BY_CAPTION = "Frechet distance, by caption"
# By table, the columns that have a meaning for a set, and what each is there.
COLUMNS = {
    FASHION: {
        1: {
            "FID": "Frechet distance, by class",
            "IS": "inception score",
            "Precision": "precision",
            "Recall": "recall",
            "COCO FID": BY_CAPTION,
        },
        2: {"COCO": "CIDEr-D of captions"},
    },
    "emoji": {1: {"COCO FID": BY_CAPTION}, 2: {"COCO": "CIDEr-D of captions"}},
}
GUIDANCE = 3.0  # that of pictures, as elsewhere in the results


@dataclass
class ShippedTableArguments:
    """What is measured, and where it goes."""

    dataset: str = field(
        default=FASHION, metadata={"help": f"{FASHION}, or a folder of the emoji world"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of Fashion-MNIST's IDX files; None: from the Hub"}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "the model's folder; None: the shipped one"}
    )
    judge: str = field(
        default=str(CHECKPOINTS / "fashion-judge"),
        metadata={"help": "whose features Fashion-MNIST's pictures are compared in"},
    )
    limit: int = field(
        default=1000, metadata={"help": "pictures at most, compared with as many real ones"}
    )
    num_inference_steps: int = field(default=30, metadata={"help": "sampling steps"})
    seed: int = field(default=0, metadata={"help": "of the untrained weights and all samples"})
    folder: str | None = field(
        default=None,
        metadata={"help": "folder of data sets and samples; None: runs/shipped-tables-SET"},
    )
    output: str | None = field(
        default=None, metadata={"help": "the JSON file; None: the one of benchmarks/results"}
    )

    def __post_init__(self) -> None:
        if self.limit < 4:
            raise ValueError(f"limit={self.limit} must be >= 4: recall looks at neighbours.")
        name = "fashion" if self.kind == FASHION else "emoji"
        self.checkpoint = self.checkpoint or str(CHECKPOINTS / f"mdm-{name}")
        self.folder = self.folder or f"runs/shipped-tables-{name}"
        self.output = self.output or str(RESULTS / f"{name}_tables.json")

    @property
    def kind(self) -> str:
        """Which of `COLUMNS` is filled."""
        return FASHION if self.dataset == FASHION else "emoji"

    @property
    def columns(self) -> Mapping[int, Mapping[str, str]]:
        """By table, the columns that are filled, and what each is."""
        return COLUMNS[self.kind]

    @property
    def extractor_options(self) -> tuple[str, str | Path]:
        """The option of `mdm evaluate` that says in whose features pictures are compared."""
        if self.kind == FASHION:
            return "--extractor_judge", Path(self.judge).resolve()
        return "--extractor", LITE


@dataclass(frozen=True)
class Shown:
    """The pictures of a set.

    test: what samples are compared with. train: as many others. captions: of each test picture.
    labels: its class, where there are classes.
    """

    test: Sequence[Image.Image]
    train: Sequence[Image.Image]
    captions: Sequence[Sequence[str]]
    labels: Sequence[int] | None = None


def read_pictures(chosen: ShippedTableArguments) -> Shown:
    """Read the pictures of the set that is asked for, `limit` at most of each split."""
    if chosen.kind == FASHION:
        return _read_fashion(chosen)
    require_place("dataset", chosen.dataset)
    splits = {}
    for split in ("test", "train"):
        data = datasets.load_dataset(chosen.dataset, split=split)
        count = min(chosen.limit, len(data), len(splits.get("test", data)))
        splits[split] = data.select([n * len(data) // count for n in range(count)])
    return Shown(
        [row["image"].convert("RGB") for row in splits["test"]],
        [row["image"].convert("RGB") for row in splits["train"]],
        list(splits["test"]["captions"]),
    )


def _read_fashion(chosen: ShippedTableArguments) -> Shown:
    table = CaptionTable.from_json(CAPTIONS)
    test, train = (
        load_training_data(FASHION, split=split, data_dir=chosen.data_dir, limit=chosen.limit)
        for split in ("test", "train")
    )
    items = [test[index] for index in range(len(test))]
    return Shown(
        [item["image"] for item in items],
        [train[index]["image"] for index in range(len(train))],
        [table.captions_of(item["label"]) for item in items],
        [item["label"] for item in items],
    )


def write_sets(shown: Shown, root: Path) -> dict[str, Sequence[str]]:
    """Write pictures as COCO's files hold them, and ImageNet's folders where they have classes.

    Returns:
        their captions by name.
    """
    pictures, captions = [], {}
    (root / "coco" / "val2014").mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(shown.test):
        name = f"COCO_val2014_{index + 1:012d}.png"
        if shown.labels is not None:
            folder = root / "imagenet" / "train" / f"n{shown.labels[index]:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{index:05d}.png")
        picture.save(root / "coco" / "val2014" / name)
        captions[name] = shown.captions[index]
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
    for table, columns in chosen.columns.items():
        result = folder / name / f"table-{table}" / f"table-{table}.json"
        if not result.is_file():
            run_command(
                *("examples/evaluate.py", "--table", table, "--checkpoint", checkpoint),
                *("--data_root", folder / "data", "--columns", *columns),
                *(*chosen.extractor_options, "--limit", chosen.limit),
                *("--num_inference_steps", chosen.num_inference_steps, "--seed", chosen.seed),
                *(("--guidance_scale", GUIDANCE) if table == 1 else ()),
                *("--output_dir", result.parent),
            )
        measured = json.loads(result.read_text(encoding="utf-8"))["columns"]
        found |= {column: measured[column]["estimate"] for column in columns}
    return found


def measure_real(chosen: ShippedTableArguments, shown: Shown, captions: Any) -> dict[str, Any]:
    """Measure training pictures in the place of samples, and a caption of each picture's own."""
    extractor: Extractor = LiteExtractor()
    if chosen.kind == FASHION:
        extractor = JudgeExtractor(JudgeNetwork.from_pretrained(chosen.judge))
    seen = fidelity_figures(shown.train, shown.test, extractor, seed=chosen.seed)
    said = {name: own[n % len(own)] for n, (name, own) in enumerate(captions.items())}
    distance = {"value": seen.frechet_distance, "interval": seen.frechet_interval}
    found = {
        "FID": distance,
        "IS": {"value": seen.inception_score},
        "Precision": {"value": seen.precision},
        "Recall": {"value": seen.recall},
        "COCO FID": distance,
        "COCO": asdict(caption_figures(said, captions).cider),
    }
    return {column: found[column] for columns in chosen.columns.values() for column in columns}


def lay_out(
    columns: Mapping[int, Mapping[str, str]], rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[str]:
    """Write the figures as a table, one row for each of what was measured."""
    names = {column: what for table in columns.values() for column, what in table.items()}
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
    shown = read_pictures(chosen)
    chosen = replace(chosen, limit=len(shown.test))
    captions = write_sets(shown, folder / "data")
    write_untrained(chosen.checkpoint, folder / "untrained", chosen.seed)
    rows = {
        "untrained": measure(chosen, folder / "untrained", "of-untrained", folder),
        "shipped": measure(chosen, Path(chosen.checkpoint).resolve(), "of-shipped", folder),
        "real": measure_real(chosen, shown, captions),
    }
    settings = {"limit": chosen.limit, "num_inference_steps": chosen.num_inference_steps}
    settings |= {"guidance_scale": GUIDANCE, "seed": chosen.seed}
    result = {"settings": settings, "rows": rows}
    result |= circumstances("cpu", use_bfloat16("auto"))
    write_json(chosen.output, result)
    print("\n".join(lay_out(chosen.columns, rows)))
    return result


def parse(argv: Sequence[str]) -> tuple[ShippedTableArguments]:
    """Read the command line."""
    return read_command_line((ShippedTableArguments,), argv, __doc__)
