# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The passes over a stream, one after another without an end, and the place in them.

A Trainer knows its place by the number of its steps. Of a stream nobody knows how many steps make a
pass, so that number does not say which item is due. The number of items since the first one does,
with a state of the stream not far before it to begin reading from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

# What a place is kept in: the number of items before it, in all and in this pass; the pass; and the
# state of the stream there, None where that has to be read from the beginning of the pass.
Mark = dict[str, Any]
START: Mark = {"items": 0, "pass": 0, "place": 0, "stream": None}
# Items between two marks; so many at most are read once more by a run that goes on.
MARK_EVERY = 16


class EndlessStream(torch.utils.data.IterableDataset[Any]):
    """A stream that begins anew, with the next epoch, where it is at its end.

    Batches are therefore all of one size. Items that carry no `seed` get one that is made of
    (seed, pass, place in the pass).

    A stream with `state_dict` and `load_state_dict` is gone on with where it was; any other is read
    again from the beginning of its pass. So are streams of `datasets`, whose states forget what
    their shuffling holds.

    Args:
        stream: iterable as often as one likes; it may have `set_epoch`.
        seed: seed of items, >= 0.

    Raises:
        ValueError: when iterated, if a pass has no item.
    """

    def __init__(self, stream: Any, seed: int = 0) -> None:
        self.stream, self.seed = stream, seed
        is_of_datasets = type(stream).__module__.startswith("datasets.")
        self._has_state = hasattr(stream, "state_dict") and not is_of_datasets
        self._start, self._due = START, 0
        self._marks: deque[Mark] = deque([START])
        self._from_worker: Any = None

    @property
    def skipped(self) -> Any:
        """What the stream says that it has skipped."""
        return getattr(self.stream, "skipped", None)

    @property
    def lacking(self) -> Any:
        """What the stream says of samples that lack a role."""
        return getattr(self.stream, "lacking", None)

    def begin_at(self, mark: Mark, items: int) -> None:
        """Let the next iteration begin at item number `items`, which lies at a mark or after it."""
        self._start, self._due = mark, items
        self._marks = deque([mark])

    def share_marks(self, context: Any = None) -> None:
        """Receive the marks of a worker process that is to be started."""
        self._from_worker = torch.multiprocessing.get_context(context).Queue()

    def mark_before(self, items: int) -> Mark:
        """Return the last mark at item number `items` or before it, and forget those before."""
        while self._from_worker is not None and not self._from_worker.empty():
            self._marks.append(self._from_worker.get())
        while len(self._marks) > 1 and self._marks[1]["items"] <= items:
            self._marks.popleft()
        return self._marks[0]

    def __iter__(self) -> Iterator[Any]:
        items, number, place = (self._start[name] for name in ("items", "pass", "place"))
        state = self._start["stream"]
        while True:
            if hasattr(self.stream, "set_epoch"):
                self.stream.set_epoch(number)
            if state is not None:
                self.stream.load_state_dict(state)
                state = None
            for item in self.stream:
                seeded = self._with_seed(item, number, place)
                items, place = items + 1, place + 1
                if self._has_state and items % MARK_EVERY == 0:
                    self._mark(items, number, place, self.stream.state_dict())
                if items > self._due:
                    yield seeded
            if place == 0:
                worker = torch.utils.data.get_worker_info()
                if worker is not None and worker.num_workers > 1:
                    return  # the others read all
                raise ValueError(f"the stream {self.stream!r:.200} holds no item that can be read.")
            if self._has_state:  # with what it has counted
                self._mark(items, number, place, self.stream.state_dict())
            number, place = number + 1, 0
            if not self._has_state:
                self._mark(items, number, place, None)

    def _mark(self, items: int, number: int, place: int, state: Any) -> None:
        mark = {"items": items, "pass": number, "place": place, "stream": state}
        if torch.utils.data.get_worker_info() is None:
            self._marks.append(mark)
        elif self._from_worker is not None:
            self._from_worker.cancel_join_thread()  # nobody may be left who reads
            self._from_worker.put(mark)

    def _with_seed(self, item: Any, number: int, place: int) -> Any:
        if not isinstance(item, Mapping) or item.get("seed") is not None:
            return item
        entropy = np.random.SeedSequence((self.seed, number, place))
        seed = int(entropy.generate_state(1, np.uint64)[0]) >> 1  # fits into a tensor
        return {**item, "seed": seed}


def without_end(dataset: Any, args: TrainingArguments) -> Any:
    """Let a stream of unknown length begin anew at its end; other data sets stay as they are.

    Raises:
        ValueError: if something is to be done after each epoch of such a stream.
    """
    if not isinstance(dataset, torch.utils.data.IterableDataset) or has_length(dataset):
        return dataset
    for name in ("save_strategy", "eval_strategy", "logging_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(
                f"{name}='epoch', but nobody knows how many steps an epoch of a stream has: use "
                f"{name}='steps'."
            )
    if args.accelerator_config.dispatch_batches is None:
        # Batches of different tasks differ in shape: no process can cut another's out of its own.
        args.accelerator_config.dispatch_batches = False
    return dataset if isinstance(dataset, EndlessStream) else EndlessStream(dataset, args.data_seed)
