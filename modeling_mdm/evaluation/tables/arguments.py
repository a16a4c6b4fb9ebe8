# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `mdm evaluate --table` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mdm_cli.places import require_file
from modeling_mdm.evaluation.efficientnet import LITE
from modeling_mdm.evaluation.fidelity import INCEPTION
from modeling_mdm.evaluation.tables.estimates import by_id
from modeling_mdm.evaluation.tables.geneval_eyes import COLOR_MODEL, DETECTOR
from modeling_mdm.evaluation.tables.hub import IMAGENET, hub_ids
from modeling_mdm.evaluation.tables.paper import TABLES
from modeling_mdm.evaluation.tables.text_columns import TEXT_COLUMNS
from modeling_mdm.precision import use_bfloat16
from modeling_mdm.training.command_line import bf16_argument

# What answers do not hang on: a folder of them may go on with others.
FREE = {
    *("table", "columns", "device", "output_dir", "dry_run", "compare", "disable_tqdm", "json"),
    *("extractor", "extractor_weights", "extractor_judge", "detector", "color_model"),
}
LEAST = ("limit", "num_evaluations", "num_draws", "num_inference_steps", "max_new_tokens")


@dataclass
class TableArguments:
    """Which table is filled, from which data, and how samples are made."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of the model and its processor"})
    table: int = field(metadata={"help": "table of the paper: 1, 2 or 3"})
    data_root: str | None = field(
        default=None, metadata={"help": "folder of the data sets, as they are distributed"}
    )
    from_hub: list[str] = field(
        default_factory=list,
        metadata={
            "help": "columns whose sets are read by `datasets` instead: COLUMN, or COLUMN=ID for "
            "another id than the usual one or a copy on disk; FID stands for all of ImageNet's"
        },
    )
    columns: list[str] = field(
        default_factory=list, metadata={"help": "some of the table's columns (none: all)"}
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "items of each column, drawn by seed; of texts the first (None: all)"},
    )
    num_evaluations: int = field(
        default=32, metadata={"help": "of the network for each log-likelihood"}
    )
    num_draws: int = field(
        default=1, metadata={"help": "draws of noise for each text; 2 or more tell their error"}
    )
    guidance_scale: float | None = field(
        default=None, metadata={"help": "of pictures (None: as the model's own configuration)"}
    )
    num_inference_steps: int = field(default=30, metadata={"help": "sampling steps"})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "words of captions and answers (None: the processor's)"}
    )
    candidates: str | None = field(
        default=None,
        metadata={
            "help": "text file of answers, one a line: those of VQAv2, VizWiz and OKVQA are the "
            "likeliest of these by `score` (None: they are written by `generate`)"
        },
    )
    adapter: str | None = field(
        default=None, metadata={"help": "folder of adapters (PEFT) that the checkpoint is given"}
    )
    extractor: str = field(
        default=INCEPTION,
        metadata={
            "help": f"network whose features pictures are compared in: torch-fidelity's, or {LITE}"
        },
    )
    extractor_weights: str | None = field(
        default=None, metadata={"help": "file of its weights (None: they are downloaded)"}
    )
    extractor_judge: str | None = field(
        default=None, metadata={"help": "folder of a judge network, in the place of --extractor"}
    )
    detector: str = field(
        default=DETECTOR, metadata={"help": "folder or Hub id of GenEval's Mask2Former"}
    )
    color_model: str = field(
        default=COLOR_MODEL, metadata={"help": "folder or Hub id of GenEval's CLIP"}
    )
    batch_size: int = field(default=50, metadata={"help": "samples at a time"})
    seed: int = field(default=0, metadata={"help": "of what is drawn: items, examples and noise"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    bf16: str = bf16_argument()
    output_dir: str = field(
        default="outputs/table", metadata={"help": "folder of answers, samples and results"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "say what is missing and how long it would take"}
    )
    compare: str | None = field(
        default=None, metadata={"help": "JSON of an earlier run, for the differences"}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bars"})
    json: bool = field(default=False, metadata={"help": "print JSON instead of a table"})

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"table={self.table} must be one of {', '.join(map(str, TABLES))}.")
        known = TABLES[self.table].columns
        if unknown := [name for name in self.columns if name not in known]:
            raise ValueError(
                f"columns={unknown} are none of table {self.table}: use some of {list(known)}."
            )
        for name in (*LEAST, "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be >= 1.")
        if self.data_root is None and (others := self._of_files()):
            raise ValueError(
                f"data_root is missing: name the folder that has the sets of {others}."
            )
        self.bf16 = use_bfloat16(self.bf16, self.device)

    @property
    def root(self) -> Path:
        """Folder of the data sets."""
        return Path(self.data_root or "")

    def hub_ids(self) -> dict[str, str | None]:
        """Ids of the sets that are read by `datasets`, by column; None is lm-eval's own."""
        return hub_ids(self.from_hub, TABLES[self.table].columns, tuple(TEXT_COLUMNS))

    def is_of_hub(self, columns: Sequence[str]) -> bool:
        """Whether the set of these columns, measured together, is read by `datasets`."""
        return not set(columns).isdisjoint(self.hub_ids())

    def _of_files(self) -> list[str]:
        ids = self.hub_ids()
        together = IMAGENET if "FID" in ids else ()
        chosen = self.columns or TABLES[self.table].columns
        return [column for column in chosen if column not in (*ids, *together)]

    def choices(self) -> list[str] | None:
        """The answers among which the likeliest is chosen; None where they are written.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an answer comes twice, or there are fewer than two.
        """
        if self.candidates is None:
            return None
        require_file("candidates", self.candidates)
        lines = Path(self.candidates).read_text(encoding="utf-8").splitlines()
        found = list(by_id(((one.strip(), None) for one in lines if one.strip()), "candidates"))
        if len(found) < 2:
            raise ValueError(
                f"candidates={self.candidates!r} has {len(found)} answers: write one a line, at "
                "least 2."
            )
        return found

    def settings(self) -> dict[str, Any]:
        """What the answers hang on, which a folder of them is held to."""
        found = {name: value for name, value in asdict(self).items() if name not in FREE}
        return found | {"candidates": self.choices()}
