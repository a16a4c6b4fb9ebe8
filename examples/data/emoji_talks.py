# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Make the conversations of an emoji world anew, from its pictures: its one file has none.

The file that `examples/data/emoji_world.py` packs leaves them out, because they show its pictures
once more. Where it was carried to::

    python examples/data/emoji_talks.py --dataset emoji-world-64.tar --output_dir runs/emoji-talks
    python examples/train.py examples/configs/emoji.yaml --dataset emoji-world-64.tar \\
        --talks runs/emoji-talks

They are those of the folder, byte for byte, if seed and numbers are the same.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train,emoji")

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from emoji_world import NUM_EDIT_TALKS, NUM_TALKS
from emojis.build import EditPair
from emojis.questions import Question
from emojis.splits import SPLITS, dice
from emojis.talks import Definition, all_talks
from emojis.writing import DEFINITIONS, EDITS, SPLIT_FILE, require_free, write_talks, written_aside
from mdm_cli.places import require_file, require_place, require_writable
from modeling_mdm.data.archives import folder_of
from modeling_mdm.training.command_line import read_command_line


@dataclass
class TalkArguments:
    """Of which set, and how many."""

    dataset: str = field(metadata={"help": "The set: its folder, or its tar file."})
    output_dir: str = field(metadata={"help": "A folder that is not there yet, or is empty."})
    num_talks: int = field(
        default=NUM_TALKS, metadata={"help": "Conversations about a picture, over all splits."}
    )
    num_edit_talks: int = field(
        default=NUM_EDIT_TALKS,
        metadata={"help": "Conversations that ask for an edit, over all splits."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of all that is drawn by lot."})

    def __post_init__(self) -> None:
        for name in ("num_talks", "num_edit_talks", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 0.")


@dataclass(frozen=True)
class Pictured:
    """A picture of the set, and what is said of it."""

    id: str
    image: bytes
    captions: Sequence[str]
    questions: Sequence[Question]


def _rows(folder: Path, split: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    path = folder / SPLIT_FILE.format(split)
    require_file("dataset", str(path))
    rows: list[dict[str, Any]] = pq.read_table(path, columns=[*columns]).to_pylist()
    return rows


def pictures_of(folder: Path, split: str) -> list[Pictured]:
    """Read the pictures of a split, as they are stored."""
    return [
        Pictured(
            row["id"],
            row["image"]["bytes"],
            row["captions"],
            [Question(**question) for question in row["questions"]],
        )
        for row in _rows(folder, split, ("id", "image", "captions", "questions"))
    ]


def edits_of(folder: Path, split: str) -> list[EditPair]:
    """Read the edits of a split."""
    columns = ("kind", "request", "given", "edited")
    return [EditPair(split=split, **row) for row in _rows(folder / EDITS, split, columns)]


def definitions_in(folder: Path) -> list[Definition]:
    """Read words and glosses; without WordNet a set has none."""
    lines = (folder / DEFINITIONS).read_text(encoding="utf-8").splitlines()
    return [Definition(**json.loads(line)) for line in lines]


def run(chosen: TalkArguments) -> dict[str, int]:
    """Write the conversations, and return how many each split has."""
    require_free(Path(chosen.output_dir))
    require_writable("output_dir", chosen.output_dir)
    place = folder_of(chosen.dataset)
    require_place("dataset", place)
    folder = Path(place)
    require_file("dataset", str(folder / DEFINITIONS))
    talks = all_talks(
        partial(dice, chosen.seed),
        {split: pictures_of(folder, split) for split in SPLITS},
        [edit for split in SPLITS for edit in edits_of(folder, split)],
        definitions_in(folder),
        chosen.num_talks,
        chosen.num_edit_talks,
    )
    with written_aside(Path(chosen.output_dir)) as aside:
        for split, own in talks.items():
            write_talks(aside / SPLIT_FILE.format(split), own)
    counts = {split: len(own) for split, own in talks.items()}
    print(f"conversations: {counts}, in {chosen.output_dir}")
    return counts


def parse(argv: Sequence[str]) -> tuple[TalkArguments]:
    """Read the command line."""
    return read_command_line(
        [TalkArguments], argv, __doc__, prog="python examples/data/emoji_talks.py"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Do what the command line says."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
