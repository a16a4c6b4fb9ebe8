# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations for instruction tuning: questions, captions, drawings, edits, definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from .build import EditPair, Question
from .splits import SPLITS, TRAIN, split_of_gloss
from .words import with_article, words_of
from .world import World

KINDS = ("questions", "describe", "draw", "edit", "define", "which word")
DESCRIBE = ("what is in the picture?", "describe the picture", "say what you see")
DRAW = ("draw {}", "please draw {}", "show me {}")
DEFINE = ("what is {}?", "define {}")
WHICH_WORD = "which word means {}?"
PICTURE: Mapping[str, Any] = {"type": "image"}


class Shown(Protocol):
    """What conversations tell of a picture; `Item` has it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def image(self) -> bytes: ...  # noqa: D102
    @property
    def captions(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def questions(self) -> Sequence[Question]: ...  # noqa: D102


@dataclass(frozen=True)
class Definition:
    """A word and what it means."""

    split: str
    word: str
    gloss: str


def definitions_of(world: World) -> list[Definition]:
    """Return the words that have a gloss, each in the split that may read it.

    Both the word and its gloss are of held-out words free where the split is the training one.
    """
    found = []
    for code, gloss in world.glosses.items():
        name = world.concepts[code].name
        split = split_of_gloss(code, world.held_out)
        if split == TRAIN and words_of(f"{name} {gloss}") & world.forbidden:
            continue
        found.append(Definition(split, name, gloss))
    return found


def talk_about(item: Shown, rng: Random) -> dict[str, Any]:
    """Make a conversation about a picture: questions with answers, a caption, or a drawing."""
    kind = rng.choice(KINDS[:3])
    if kind == "draw":
        text = rng.choice(DRAW).format(rng.choice(item.captions[:2]))
        return _talk(kind, [(text, False, None)], [item.image])
    if kind == "describe":
        return _talk(kind, [(rng.choice(DESCRIBE), True, item.captions[0])], [item.image])
    # In any order: a model would tell by its place what a question asks for.
    asked = rng.sample(item.questions, len(item.questions))
    turns = [(q.question, n == 0, q.answer) for n, q in enumerate(asked)]
    return _talk(kind, turns, [item.image])


def talk_of_edit(edit: EditPair, images: Mapping[str, bytes]) -> dict[str, Any]:
    """Make the conversation of an edit: a picture and a request, then a picture."""
    return _talk("edit", [(edit.request, True, None)], [images[edit.given], images[edit.edited]])


def talks_of_definition(definition: Definition, rng: Random) -> Iterator[dict[str, Any]]:
    """Make the conversations of a definition: word to gloss, and back."""
    asked = rng.choice(DEFINE).format(with_article(definition.word))
    yield _talk("define", [(asked, False, definition.gloss)], [])
    asked = WHICH_WORD.format(f'"{definition.gloss}"')
    yield _talk("which word", [(asked, False, definition.word)], [])


def _talk(
    kind: str, turns: Sequence[tuple[str, bool, str | None]], images: Sequence[bytes]
) -> dict[str, Any]:
    """Lay out turns of (request, whether a picture comes with it, answer or None for a picture)."""
    messages = []
    for request, shows, answer in turns:
        asked = [*([PICTURE] if shows else []), {"type": "text", "text": request}]
        said = [PICTURE] if answer is None else [{"type": "text", "text": answer}]
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": said})
    return {"kind": kind, "messages": messages, "images": [_image(image) for image in images]}


def _image(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def all_talks(
    rng_of: Callable[..., Random],
    items: Mapping[str, Sequence[Shown]],
    edits: Iterable[EditPair],
    definitions: Iterable[Definition],
    num_pictures: int,
    num_edits: int,
) -> dict[str, list[dict[str, Any]]]:
    """Make the conversations of each split: about some pictures, some edits, and all definitions.

    Args:
        rng_of: dice of a name, as `dice` throws them.
        items: the pictures of each split.
        edits: between them.
        definitions: words and glosses.
        num_pictures: so many about pictures of all splits, spread over them; where there are fewer
            pictures, several about each.
        num_edits: so many edits of all splits.
    """
    edits, definitions = list(edits), list(definitions)
    total = sum(map(len, items.values()))
    talks: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        rng = rng_of("talks", split)
        own, theirs = items[split], [edit for edit in edits if edit.split == split]
        images = {item.id: item.image for item in own}
        about = _some(own, num_pictures / max(total, 1), rng)
        changed = _of_all_kinds(theirs, round(num_edits * len(theirs) / max(len(edits), 1)), rng)
        found = [talk_about(item, rng) for item in about]
        found += [talk_of_edit(edit, images) for edit in changed]
        for definition in definitions:
            if definition.split == split:
                found += talks_of_definition(definition, rng)
        rng.shuffle(found)
        talks[split] = found
    return talks


def _some(things: Sequence[Any], share: float, rng: Random) -> list[Any]:
    """Choose a share of things, spread over them; of a share over 1 some more than once."""
    rounds, count = divmod(round(share * len(things)), max(len(things), 1))
    rest = [things[n] for n in sorted(rng.sample(range(len(things)), count))]
    return [*things] * rounds + rest


def _of_all_kinds(edits: Sequence[EditPair], count: int, rng: Random) -> list[EditPair]:
    """Choose edits, about as many of each kind as there are: most would change a background."""
    by_kind: dict[str, list[EditPair]] = {}
    for edit in rng.sample(edits, len(edits)):
        by_kind.setdefault(edit.kind, []).append(edit)
    ranked = [(n, edit) for own in by_kind.values() for n, edit in enumerate(own)]
    return [edit for _, edit in sorted(ranked, key=lambda pair: pair[0])][:count]
