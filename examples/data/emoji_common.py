# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Take the part of an emoji world that shows its commonest things, for a model of few weights.

Most concepts have a dozen pictures, the commonest a hundred and more; a small model that sees all
alike learns none. Kept are the pictures of training and test split whose things are all among the
commonest of the training split, with their words and truths, and all that are held out::

    python examples/data/emoji_common.py --dataset runs/emoji-64 --output_dir runs/emoji-common
    python examples/data/emoji_talks.py --dataset runs/emoji-common \\
        --output_dir runs/emoji-common-talks
    python examples/train.py examples/configs/emoji.yaml --dataset runs/emoji-common \\
        --talks runs/emoji-common-talks
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train,emoji")

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emojis.splits import SPLITS
from emojis.writing import (
    CARD,
    DEFINITIONS,
    EDITS,
    LICENCES,
    ROWS,
    SPLIT_FILE,
    require_free,
    written_aside,
)
from mdm_cli.places import require_file, require_place, require_writable
from modeling_mdm.data.archives import folder_of
from modeling_mdm.training.command_line import read_command_line

HELD_OUT = SPLITS[-1]


@dataclass
class CommonArguments:
    """Of which set, and how many concepts."""

    dataset: str = field(metadata={"help": "The set: its folder, or its tar file."})
    output_dir: str = field(metadata={"help": "A folder that is not there yet, or is empty."})
    num_concepts: int = field(
        default=300, metadata={"help": "The commonest of the training split; the judge counts 300."}
    )

    def __post_init__(self) -> None:
        if self.num_concepts < 1:
            raise ValueError(f"num_concepts={self.num_concepts} must be >= 1.")


def _concepts(table: Any) -> list[set[str]]:
    """The concepts of every picture."""
    return [{thing["concept"] for thing in row} for row in table.column("objects").to_pylist()]


def commonest(table: Any, count: int) -> set[str]:
    """So many concepts, by how many pictures show them; of equal ones the first by name.

    Raises:
        ValueError: if there are fewer.
    """
    shown = Counter(concept for own in _concepts(table) for concept in own)
    if count > len(shown):
        raise ValueError(f"num_concepts={count}, but the training split has {len(shown)}.")
    return set(sorted(shown, key=lambda concept: (-shown[concept], concept))[:count])


def with_notice(card: str, concepts: int, counts: Mapping[str, int]) -> str:
    """Let a card say, below its title, that it is of a part, and how much of each split is in it.

    Raises:
        ValueError: the card has no title.
    """
    title = next((line for line in card.splitlines() if line.startswith("# ")), None)
    if title is None:
        raise ValueError(f"{CARD} of the set has no title, a line that begins with '# '.")
    sizes = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    notice = (
        f"**This is a part of it**: the pictures of training and test split whose things are all\n"
        f"among the {concepts} commonest, and all that are held out ({sizes}), without\n"
        f"conversations. What follows is said of the whole."
    )
    return card.replace(title, f"{title}\n\n{notice}", 1)


def run(chosen: CommonArguments) -> dict[str, int]:
    """Write the part, and return how many pictures each split has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_free(Path(chosen.output_dir))
    require_writable("output_dir", chosen.output_dir)
    place = folder_of(chosen.dataset)
    require_place("dataset", place)
    source, counts, kept = Path(place), {}, set()
    for split in SPLITS:
        require_file("dataset", str(source / SPLIT_FILE.format(split)))
    with written_aside(Path(chosen.output_dir)) as aside:
        for split in SPLITS:
            name = SPLIT_FILE.format(split)
            pictures, edits = pq.read_table(source / name), pq.read_table(source / EDITS / name)
            kept = kept or commonest(pictures, chosen.num_concepts)  # of the training split
            if split != HELD_OUT:
                pictures = pictures.filter(pa.array([own <= kept for own in _concepts(pictures)]))
            ids = set(pictures.column("id").to_pylist())
            ends = zip(*(edits.column(end).to_pylist() for end in ("given", "edited")), strict=True)
            edits = edits.filter(pa.array([ids.issuperset(pair) for pair in ends]))
            for folder, table in ((aside, pictures), (aside / EDITS, edits)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, folder / name, row_group_size=ROWS, compression="zstd")
            counts[split] = len(pictures)
        for name in (LICENCES, DEFINITIONS):
            shutil.copyfile(source / name, aside / name)
        card = (source / CARD).read_text(encoding="utf-8")
        (aside / CARD).write_text(with_notice(card, len(kept), counts), encoding="utf-8")
    print(f"pictures: {counts}, in {chosen.output_dir}")
    return counts


def parse(argv: Sequence[str]) -> tuple[CommonArguments]:
    """Read the command line."""
    return read_command_line(
        [CommonArguments], argv, __doc__, prog="python examples/data/emoji_common.py"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Do what the command line says."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
