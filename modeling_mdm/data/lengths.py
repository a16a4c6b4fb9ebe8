# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts that are too long, found before the first step and not in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from transformers.utils import logging

from modeling_mdm.data.pictures import PictureDataset
from modeling_mdm.processor.features import encode_texts
from modeling_mdm.processor.request import TextOptions

logger = logging.get_logger(__name__)

AT_ONCE = 1024


def num_tokens(processor: Any, texts: Sequence[str]) -> list[int]:
    """Count the tokens of each text, `<end>` included."""
    longest = max(map(len, texts), default=0) + 2  # in letters, of four bytes at most
    options = TextOptions(truncation=True, max_length=4 * longest)
    encoded = encode_texts(list(texts), processor.tokenizer, options, processor.max_text_length)
    return [len(words) + 1 for words in encoded]


def check_text(processor: Any, text: str) -> None:
    """Raise a ValueError where a text does not fit into the model's text region."""
    (count,) = num_tokens(processor, [text])
    if count > processor.max_text_length:
        raise ValueError(
            f"its text {text!r:.60} has {count} tokens with <end>, more than "
            f"max_text_length={processor.max_text_length}: shorten it, or cut all with "
            "--truncation true"
        )


def check_texts(processor: Any, data: PictureDataset) -> None:
    """Check every text that a set may give, those of its caption table included.

    Raises:
        ValueError: with the number of texts that are too long, and the longest.
    """
    table = data.captions if data.source.labels is not None else None
    drawn = [] if table is None else [("the caption table", text) for text in table.all_captions()]
    refuse_long(
        processor,
        (pair for texts in (data.texts(), drawn) for pair in texts),
        processor.max_text_length,
        "texts",
        "max_text_length={}: shorten them, cut them with --truncation true, or leave them out with "
        "--leave_out_long true",
    )


def leave_out_long(processor: Any, data: PictureDataset) -> None:
    """Have a set never draw a text that is too long; an item of which none is left is damaged."""
    data.left_out = long_texts(processor, data.texts(), processor.max_text_length, "texts")


def long_texts(
    processor: Any, texts: Iterable[tuple[str, str]], limit: int, kind: str
) -> frozenset[str]:
    """Find the texts that have more than so many tokens, `<end>` included, and say how many."""
    texts, found, total = iter(texts), [], 0
    while some := [text for _, text in islice(texts, AT_ONCE)]:
        counts = num_tokens(processor, some)
        total += len(some)
        found += [text for count, text in zip(counts, some, strict=True) if count > limit]
    if found:
        logger.warning(
            f"{len(found)} of {total} {kind} have more than {limit} tokens with <end> and are left "
            f"out, such as {found[0]!r:.60}."
        )
    return frozenset(found)


def check_answers(processor: Any, answers: Iterable[tuple[str, str]], max_new_tokens: int) -> None:
    """Check every answer of some conversations: where it stands, and its words.

    Raises:
        ValueError: with the number of answers that are too long, and the longest.
    """
    fix = "max_new_tokens={}: shorten them, or raise --max_new_tokens"
    refuse_long(processor, answers, max_new_tokens, "answers", fix)


def refuse_long(
    processor: Any, texts: Iterable[tuple[str, str]], limit: int, kind: str, fix: str
) -> None:
    """Count the tokens of all texts.

    Args:
        texts: of each, where it stands and what it says.
        limit: how many tokens it may have, with `<end>`.
        kind: what they are called. fix: what follows "more than", with the limit as `{}`.

    Raises:
        ValueError: if any is longer.
    """
    texts, number, total, longest = iter(texts), 0, 0, (0, "", "")
    while some := list(islice(texts, AT_ONCE)):
        counts = num_tokens(processor, [text for _, text in some])
        total += len(counts)
        number += sum(count > limit for count in counts)
        longest = max([longest, *((n, *pair) for n, pair in zip(counts, some, strict=True))])
    if number:
        count, where, text = longest
        raise ValueError(
            f"{number} of {total} {kind} are too long. The longest, {where}, {text!r:.60}, has "
            f"{count} tokens with <end>, more than {fix.format(limit)}."
        )
