# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Make the emoji world: emojis in eight drawing styles, alone and in scenes, with words.

Install with `pip install -e ".[train,emoji]"`; npm has to be there, which comes with Node.js.
Glosses are taken from WordNet where it is (Debian: `apt-get install wordnet-base`). Then::

    python examples/data/emoji_world.py --output_dir runs/emoji-64
    python examples/data/emoji_world.py --output_dir runs/emoji-32 --size 32

Minutes on a CPU. The same command makes the same bytes. Artwork and names come from npm's registry,
in fixed versions whose content is checked; nothing of them is run. Whose work it is stands in the
folder's `LICENSES.md`. `examples/configs/emoji.yaml` trains on its pictures, with one of their
captions drawn each time, and on conversations about them; `examples/judge_emoji.py` trains a judge.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train,emoji")

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from emojis.build import SHARES, Builder
from emojis.card import card_of, counts_of
from emojis.licences import licences_of
from emojis.sources import Sources, read_sources
from emojis.splits import SPLITS
from emojis.talks import all_talks, definitions_of
from emojis.wordnet import read_wordnet
from emojis.world import read_world
from emojis.writing import (
    CARD,
    COUNTS,
    DEFINITIONS,
    EDITS,
    LICENCES,
    SPLIT_FILE,
    TALKS,
    require_free,
    write_archive,
    write_definitions,
    write_edits,
    write_pictures,
    write_talks,
    written_aside,
)
from mdm_cli.places import require_folder, require_writable
from modeling_mdm.training.command_line import read_command_line

SIZES = (32, 64)
WORDNET_DIR = "/usr/share/wordnet"
NUM_TALKS, NUM_EDIT_TALKS = 16000, 8000


@dataclass
class EmojiArguments:
    """What to make, and of what."""

    output_dir: str = field(metadata={"help": "A folder that is not there yet, or is empty."})
    size: int = field(
        default=64, metadata={"help": "Pixels of a picture each way.", "choices": list(SIZES)}
    )
    num_scenes: int = field(
        default=19000, metadata={"help": "Pictures of several objects, over all splits."}
    )
    num_backgrounds: int = field(
        default=2, metadata={"help": "Pictures of a drawing that is alone, on as many backgrounds."}
    )
    num_talks: int = field(
        default=NUM_TALKS, metadata={"help": "Conversations about a picture, over all splits."}
    )
    num_edit_talks: int = field(
        default=NUM_EDIT_TALKS,
        metadata={"help": "Conversations that ask for an edit, over all splits."},
    )
    sources_dir: str | None = field(
        default=None,
        metadata={"help": "A folder for npm's archives, which are kept; those there are taken."},
    )
    wordnet_dir: str = field(
        default=WORDNET_DIR,
        metadata={"help": "WordNet's database files; where there are none, no glosses are used."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use this many concepts only."})
    seed: int = field(default=0, metadata={"help": "Seed of all that is drawn by lot."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})

    def __post_init__(self) -> None:
        lowest = {"num_scenes": 0, "num_backgrounds": 1, "num_talks": 0, "num_edit_talks": 0}
        for name, least in {**lowest, "limit": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be >= {least}.")
        if self.size not in SIZES:
            raise ValueError(f"size={self.size} must be one of {SIZES}.")


def parse(argv: Sequence[str]) -> tuple[EmojiArguments]:
    """Read the command line."""
    return read_command_line(
        [EmojiArguments], argv, __doc__, prog="python examples/data/emoji_world.py"
    )


def run(arguments: EmojiArguments) -> dict[str, Any]:
    """Make the set, and return its counts."""
    output = Path(arguments.output_dir)
    require_free(output)
    require_writable("output_dir", arguments.output_dir)
    with ExitStack() as stack:
        if arguments.sources_dir is None:
            kept = stack.enter_context(tempfile.TemporaryDirectory())
        else:
            kept = arguments.sources_dir
            require_folder("sources_dir", kept)
        sources = read_sources(Path(kept))
    return build(sources, arguments)


def build(sources: Sources, arguments: EmojiArguments) -> dict[str, Any]:
    """Make the set from what was read, and return its counts."""

    def progress(things: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(things, desc=what, disable=arguments.disable_tqdm)

    wordnet = read_wordnet(Path(arguments.wordnet_dir))
    if wordnet is None:
        print(
            f"wordnet_dir={arguments.wordnet_dir!r} holds no WordNet: there will be no glosses and "
            "no definitions (Debian: apt-get install wordnet-base).",
            file=sys.stderr,
        )
    world = read_world(sources, wordnet, arguments.seed, progress, arguments.limit)
    for line in world.undrawn:
        print(f"left out, since {line}", file=sys.stderr)
    builder = Builder(world, arguments.size, arguments.num_backgrounds)
    items = {
        split: list(
            progress(builder.items(split, round(arguments.num_scenes * SHARES[split])), split)
        )
        for split in SPLITS
    }
    definitions = definitions_of(world)
    numbers = (arguments.num_talks, arguments.num_edit_talks)
    talks = all_talks(world.rng, items, builder.edits, definitions, *numbers)
    counts = counts_of(world, items, builder.edits, definitions, talks, builder.num_near_copies)
    archive = f"emoji-world-{arguments.size}.tar"
    command = f"python examples/data/emoji_world.py --size {arguments.size}"
    with written_aside(Path(arguments.output_dir)) as folder:
        for split in SPLITS:
            name = SPLIT_FILE.format(split)
            write_pictures(folder / name, items[split])
            write_talks(folder / TALKS / name, talks[split])
            own = [edit for edit in builder.edits if edit.split == split]
            write_edits(folder / EDITS / name, own)
        write_definitions(folder / DEFINITIONS, definitions)
        (folder / COUNTS).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
        (folder / LICENCES).write_text(licences_of(sources, wordnet is not None), encoding="utf-8")
        card = card_of(counts, sources, arguments.size, command, archive, wordnet is not None)
        (folder / CARD).write_text(card, encoding="utf-8")
        write_archive(folder, archive)
    print(json.dumps(counts, indent=1))
    return counts


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Make what the command line names."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
