# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams of items from several sources: read as they come, never whole, and gone on with exactly.

Axis legend: height, width.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from modeling_mdm.data.damage import check_max_skipped, check_skipped
from modeling_mdm.data.shards import (
    CodedPicture,
    alternatives,
    asked_and_answered,
    read_captions,
    read_image,
    read_label,
    read_messages,
)
from modeling_mdm.data.stream_sources import ROLES, StreamSource
from modeling_mdm.processor.image_processing_pil_mdm import upright

logger = logging.get_logger(__name__)


class Decoded(NamedTuple):
    """What a row holds, before one of its texts is drawn.

    prompts: None; one, for all texts; or of each text its own.
    """

    image: Image.Image | CodedPicture | None
    texts: list[str] | None
    prompts: list[str] | None
    label: int | None

    def pair(self, rng: np.random.Generator) -> tuple[str | None, str | None]:
        """Draw a prompt and its text."""
        texts = self.texts or [None]
        number = int(rng.integers(len(texts)))
        prompts = self.prompts or [None]
        return prompts[number if len(prompts) > 1 else 0], texts[number]


def decode_row(row: Mapping[str, Any]) -> Decoded:
    """Decode a row that `StreamSource.open` gives.

    Raises:
        Exception: whatever a decoder raises; ValueError if it holds nothing, or as many prompts as
            no texts.
    """
    if row["fault"] is not None:
        raise ValueError(row["fault"])
    text, prompt = row["text"], row["prompt"]
    if messages := read_messages(row["messages"]):
        prompt, text = asked_and_answered(messages)
    texts, prompts = read_captions(text), read_captions(prompt, "prompt")
    if prompts is not None and len(prompts) not in (1, len(texts or ())):
        raise ValueError(f"it has {len(prompts)} prompts for {len(texts or ())} texts")
    image = read_image(row["image"], row["folder"])
    if image is None and not texts:
        raise ValueError("it holds neither a picture nor a text")
    return Decoded(image, texts, prompts, read_label(row["label"]))


BEGINNING: dict[str, Any] = {"stream": None, "place": 0, "given": 0}
SAID = ("text", "prompt", "messages")  # the roles of words
# Samples from which on a share of them says something.
JUDGED_FROM = 200


class MixedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Items of several sources, drawn by weight, until the first source is at its end.

    Of an item whose text is a list of strings one is drawn, and where its prompts are a list, too,
    the one that belongs to it.
    A sample that cannot be read is skipped, counted in `skipped` and warned of by its name; one
    that lacks what a role of its source names is given without it, counted in `lacking` and warned
    of once. `state_dict` and `load_state_dict` go on in the middle, with no item twice and none
    lost; so does a trainer that is resumed. What is drawn for an item depends on its `seed`, which
    depends on (seed, epoch, place in the stream).

    Args:
        sources: at least one.
        size: (height, width) that pictures are for: they are cut, at the middle, to this ratio of
            sides, so that resizing does not stretch them. None leaves them as they are.
        seed: seed of the mixture and of items, >= 0.
        batch_size: items of like length come in groups of this size.
        buckets: groups that are sorted by length together; 0 keeps the order of the stream.
        max_skipped: share of the samples that may be skipped, of all that were read at the end of a
            pass, and before it of those or of `JUDGED_FROM`, whichever are more.
        check_text: raises a ValueError for a text or a prompt that is to be skipped.

    Raises:
        ValueError: if sources is empty, or batch_size, buckets or max_skipped is out of range.
        TooManySkippedError: when iterated, if more is skipped.
    """

    def __init__(
        self,
        sources: list[StreamSource],
        size: tuple[int, int] | None = None,
        seed: int = 0,
        batch_size: int = 1,
        buckets: int = 0,
        max_skipped: float = 1.0,
        check_text: Callable[[str], None] | None = None,
    ) -> None:
        check_max_skipped(max_skipped)
        if not sources:
            raise ValueError("sources is empty: name at least one.")
        if batch_size < 1 or buckets < 0:
            raise ValueError(f"batch_size={batch_size} must be >= 1 and buckets={buckets} >= 0.")
        self.sources, self.size, self.seed = sources, size, seed
        self.batch_size, self.block = batch_size, max(1, batch_size * buckets)
        # In shared memory: workers read the one and write the other.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.max_skipped, self.check_text = max_skipped, check_text
        self._skipped = torch.zeros(len(sources), dtype=torch.int64).share_memory_()
        self._lacking = torch.zeros(len(sources), len(ROLES), dtype=torch.int64).share_memory_()
        self._num_read = 0
        self._names: list[str] = []
        self._state: dict[str, Any] | None = None
        self._start: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the seeds of items."""
        self._epoch.fill_(epoch)

    @property
    def skipped(self) -> dict[str, int]:
        """How many samples of each source could not be read."""
        counts: dict[str, int] = {}
        for source, count in zip(self.sources, self._skipped.tolist(), strict=True):
            counts[source.path] = counts.get(source.path, 0) + count
        return counts

    @property
    def lacking(self) -> dict[str, int]:
        """How many samples were given without a picture, a text and so on that a role names."""
        counts = zip(ROLES, self._lacking.sum(0).tolist(), strict=True)
        return {role: count for role, count in counts if count}

    def state_dict(self) -> dict[str, Any]:
        """Say where in the stream the last item was given out; of use to `load_state_dict`."""
        return dict(self._state or BEGINNING)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass where `state_dict` was called."""
        self._start = dict(state)

    def open(self) -> Any:
        """Open the mixture of raw items, see `StreamSource.open`."""
        import datasets

        streams = [source.open(number) for number, source in enumerate(self.sources)]
        if len(streams) == 1:
            return streams[0]
        weights = np.array([source.weight for source in self.sources])
        seed = int(np.random.SeedSequence((self.seed, int(self._epoch))).generate_state(1)[0])
        shares = (weights / weights.sum()).tolist()
        return datasets.interleave_datasets(streams, probabilities=shares, seed=seed)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"dataloader_num_workers={worker.num_workers}: a stream has one order, use 0 or 1."
            )
        stream = self.open()
        start, self._start = self._start, None
        if start is not None and "skipped" in start:
            self._skipped.copy_(torch.tensor(start["skipped"]))
            self._lacking.copy_(torch.tensor(start["lacking"]))
            self._num_read = start["read"]
        start = start or BEGINNING
        if start["stream"] is not None:
            stream.load_state_dict(start["stream"])
        place, given = start["place"], start["given"]
        rows = iter(stream)
        while True:
            here = {
                "stream": stream.state_dict() if place else start["stream"],
                "place": place,
                "read": self._num_read,
                "skipped": self._skipped.tolist(),
                "lacking": self._lacking.tolist(),
            }
            block, place, is_over = self._read_block(rows, place)
            for number, item in enumerate(self._in_buckets(block, here["place"])):
                if number >= given:
                    self._state = {**here, "given": number + 1}
                    yield item
            given = 0
            if is_over:
                return

    def _read_block(
        self, rows: Iterator[dict[str, Any]], place: int
    ) -> tuple[list[dict[str, Any]], int, bool]:
        """Read so many good items, and say the next place and whether the stream is over."""
        block: list[dict[str, Any]] = []
        while len(block) < self.block:
            try:
                row = pickle.loads(next(rows)["row"])
            except StopIteration:
                self._check_skipped(self._num_read)
                return block, place, True
            except Exception as error:
                paths = ", ".join(repr(source.path) for source in self.sources)
                raise ValueError(
                    f"{paths} cannot be read on after sample {place} ({error}): mend or remove the "
                    "file that is damaged."
                ) from error
            self._num_read += 1
            if (item := self._read(row, place)) is not None:
                block.append(item)
            place += 1
        return block, place, False

    def _read(self, row: dict[str, Any], place: int) -> dict[str, Any] | None:
        """Decode one row; None, with a warning, where it is damaged."""
        called = f"sample {place}, of {self.sources[row['source']].path!r}"
        called += f", {row['name']}," if row["name"] else ","
        try:
            item = self._decode(row, np.random.default_rng((self.seed, int(self._epoch), place)))
        except Exception as error:  # whatever a decoder raises, a run of weeks goes on
            self._skip(row, called, error)
            return None
        self._count_lacking(row, called)
        entropy = np.random.SeedSequence((self.seed, int(self._epoch), place))
        return {**item, "seed": int(entropy.generate_state(1, np.uint64)[0])}

    def _decode(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        decoded = decode_row(row)
        prompt, text = decoded.pair(rng)
        item: dict[str, Any] = {"text": text, "prompt": prompt}
        for text in item.values():
            if text is not None and self.check_text is not None:
                self.check_text(text)
        image = decoded.image
        if image is not None and self.size is not None and not isinstance(image, CodedPicture):
            image = crop_to_ratio(image, self.size)
        return {**item, "label": decoded.label, "image": image}

    def _skip(self, row: dict[str, Any], called: str, error: Exception) -> None:
        self._skipped[row["source"]] += 1
        self._names.append(f"{called[:-1]}: {error}")
        logger.warning(f"{called} is skipped: {error}.")
        self._check_skipped(max(self._num_read, JUDGED_FROM))

    def _check_skipped(self, total: int) -> None:
        check_skipped(int(self._skipped.sum()), total, self.max_skipped, self._names)

    def _count_lacking(self, row: dict[str, Any], called: str) -> None:
        """Count the roles that a sample has nothing for, and warn of the first sample of each."""
        for role, columns in self.sources[row["source"]].columns.items():
            if row[role] is not None:
                continue
            self._lacking[row["source"], ROLES.index(role)] += 1
            if self._lacking[row["source"], ROLES.index(role)] == 1:
                names = alternatives(columns)
                logger.warning(
                    f"{called} has no {role} ({' or '.join(names)}) and is used without; it holds "
                    f"{row['holds']}. A role may name several columns, as in {role}: 'jpg;png'. "
                    "Further samples like this are counted alone."
                )

    def _in_buckets(self, block: list[dict[str, Any]], place: int) -> list[dict[str, Any]]:
        """Sort by length, cut into groups, and shuffle the groups."""
        if self.block == 1:
            return block
        block = sorted(block, key=lambda item: len(item["prompt"] or "") + len(item["text"] or ""))
        starts = list(range(0, len(block), self.batch_size))
        np.random.default_rng((self.seed, int(self._epoch), place)).shuffle(starts)
        return [item for start in starts for item in block[start : start + self.batch_size]]


def said_in(sources: Sequence[StreamSource], seed: int = 0) -> Iterator[str]:
    """Give all that is said in some streams, drawn by weight as `MixedStream` draws: every text.

    Of conversations that is every message. Pictures are not decoded, what cannot be read is passed
    over, and sources without words are left out.

    Raises:
        ValueError: if no source has words.
    """
    told = []
    for source in sources:
        columns = {role: name for role, name in source.columns.items() if role in SAID}
        if columns:
            told.append(replace(source, columns=columns, pictures=None))
    if not told:
        paths = ", ".join(repr(source.path) for source in sources)
        raise ValueError(
            f"{paths} have no column of texts: name one whose columns has the role text."
        )
    for raw in MixedStream(told, seed=seed).open():
        yield from _said(pickle.loads(raw["row"]))


def _said(row: Mapping[str, Any]) -> list[str]:
    try:
        messages = read_messages(row["messages"]) or []
        if messages and not any("user" in message for message in messages):
            return [message["content"] for message in messages if message["content"]]
        found = decode_row({**row, "image": None})
    except Exception:  # skipped and counted where it is trained on
        return []
    return [text for text in (*(found.prompts or ()), *(found.texts or ())) if text]


def crop_to_ratio(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut the middle out of a picture, as large as possible in the ratio of (height, width)."""
    image = upright(image)
    height, width = size
    scale = min(image.height / height, image.width / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (image.width - wide) // 2, (image.height - tall) // 2
    return image.crop((left, top, left + wide, top + tall))
