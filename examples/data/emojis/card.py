# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The card of the set: what is in it, how it is split, how it is read, and whose work it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .build import EditPair, Item
from .licences import credits_of
from .sources import Sources
from .splits import SPLITS, TRAIN
from .talks import Definition
from .world import World


def counts_of(
    world: World,
    items: Mapping[str, Sequence[Item]],
    edits: Sequence[EditPair],
    definitions: Sequence[Definition],
    talks: Mapping[str, Sequence[Any]],
    num_near_copies: int,
) -> dict[str, Any]:
    """Count what there is, in all and by split."""
    everything = [item for split in SPLITS for item in items[split]]
    captions = [caption for item in everything for caption in item.captions]
    words = [caption.lower().split() for caption in captions]
    by_split = {
        split: {
            "single": sum(item.scene.layout == "single" for item in items[split]),
            "scenes": sum(item.scene.layout != "single" for item in items[split]),
            "concepts": len({t.concept.code for item in items[split] for t in item.scene.things}),
            "concepts in styles": sum(own == split for own in world.pairs.values()),
            "captions": sum(len(item.captions) for item in items[split]),
            "questions": sum(len(item.questions) for item in items[split]),
            "edits": sum(edit.split == split for edit in edits),
            "definitions": sum(definition.split == split for definition in definitions),
            "conversations": len(talks[split]),
        }
        for split in SPLITS
    }
    return {
        "concepts": len(world.concepts),
        "concepts that stand in scenes": sum(c.is_object for c in world.concepts.values()),
        "held-out concepts": len(world.held_out),
        "styles": len(world.styles),
        "icons that do not draw": len(world.undrawn),
        "test pictures left out as near copies": num_near_copies,
        "captions": len(captions),
        "words a caption": round(sum(map(len, words)) / max(len(words), 1), 1),
        "distinct words": len({word.strip(',.?"') for own in words for word in own}),
        **by_split,
    }


def _table(counts: Mapping[str, Any]) -> str:
    lines = [f"| | {' | '.join(SPLITS)} |", "|---|" + "---:|" * len(SPLITS)]
    for name in counts[TRAIN]:
        lines.append(f"| {name} | {' | '.join(f'{counts[split][name]:,}' for split in SPLITS)} |")
    return "\n".join(lines)


HEAD = """\
---
license: other
license_name: several, see LICENSES.md
task_categories: [text-to-image, image-to-text, visual-question-answering]
language: [en]
pretty_name: Emoji world
---
# Emoji world, {size} x {size}

Pictures of {concepts:,} things in {styles} drawing styles on plain backgrounds, alone and in scenes
of two objects or several of one, each with captions in free words, its whole truth, questions and
answers, and edits. Made by `{command}`.
"""

BODY = """\
## Splits

{table}

- **train**.
- **test**: alone, a concept in a style in which the training split does not have it; in scenes,
  combinations of objects (two concepts, or a concept and its number) that it does not have. Styles
  whose drawings of a concept are alike are in one split, and no picture lies within 0.02 (mean
  squared error in [-1, 1]) of a training picture of its concept; {near} that did were left out.
- **held_out**: {held} concepts that are never seen: no training caption, keyword or gloss holds
  their words. `TEST` glosses stand in no training caption either.

## Columns

`image` (WebP without loss), `text` (the full caption), `captions` (from full to short, then
keywords and gloss), `layout` (single, count, beside, stacked, alone), `style`, `background`,
`objects` (`concept`, `name`, `code` points, `count`, `place`, `colour` of most of it or null, main
`colours`, `boxes` of left, top, right, bottom in pixels), `questions` (`kind`, `question`,
`answer`). `edits/` leads from one picture's id to another's, `definitions.jsonl` from words to
glosses; `talks/` holds all of it as conversations.

    python examples/train.py --dataset THIS_FOLDER --columns text=captions \\
        --talks THIS_FOLDER/talks ...
    python examples/finetune.py --dataset THIS_FOLDER/talks ...

`{archive}` is all but the conversations in one file.

## Credits

{credits}

Names and keywords: Unicode CLDR by way of emojibase.{wordnet} Licences: `LICENSES.md`.
"""


def card_of(
    counts: Mapping[str, Any],
    sources: Sources,
    size: int,
    command: str,
    archive: str,
    glossed: bool,
) -> str:
    """Write what `README.md` says."""
    head = HEAD.format(
        size=size, concepts=counts["concepts"], styles=counts["styles"], command=command
    )
    body = BODY.format(
        table=_table(counts),
        near=counts["test pictures left out as near copies"],
        held=counts["held-out concepts"],
        archive=archive,
        credits=credits_of(sources),
        wordnet=" Glosses: WordNet 3.0, Princeton University." if glossed else "",
    )
    return f"{head}\n{body}"
