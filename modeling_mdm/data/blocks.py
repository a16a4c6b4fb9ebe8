# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several sets in one run, each batch from one of them: pictures here, conversations there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch


class MixedItems(torch.utils.data.Dataset[dict[str, Any]]):
    """Data sets one after another, with the share of batches that each is to have.

    An epoch is one pass over the first set; of the others as many items as their shares ask for,
    each set from its beginning again where it has fewer.

    Args:
        parts: data sets with a length.
        shares: of the batches, one > 0 for each part; they need not sum to 1.

    Raises:
        ValueError: if shares are not one number > 0 a part, or a part has no items.
    """

    def __init__(self, parts: Sequence[Any], shares: Sequence[float]) -> None:
        shares = [float(share) for share in shares]
        are_positive = all(0 < share < float("inf") for share in shares)
        if len(shares) != len(parts) or not parts or not are_positive:
            raise ValueError(f"shares={shares} must be {len(parts)} numbers > 0, one a part.")
        if 0 in (lengths := [len(part) for part in parts]):
            raise ValueError(f"parts have {lengths} items: leave out the one that has none.")
        self.parts, self.shares = list(parts), [share / sum(shares) for share in shares]
        self._ends = np.cumsum(lengths)
        # In shared memory: a set_epoch in the main process reaches persistent workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose items are given."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of all parts."""
        self._epoch.fill_(epoch)
        for part in self.parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @property
    def skipped(self) -> dict[str, int]:
        """How many items each part has skipped, by its number, where there were any."""
        counts = {str(n): getattr(part, "skipped", None) for n, part in enumerate(self.parts)}
        return {name: count for name, count in counts.items() if isinstance(count, int) and count}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        return dict(self.parts[part][index - start])


class BlockSampler(torch.utils.data.Sampler[int]):
    """Orders the items of `MixedItems` so that each batch is of one part.

    The parts take turns evenly, in an order that depends on (seed, epoch) alone. Where several
    processes or accumulated batches share a step, its items are a batch here: the order then does
    not hang on how they share it.

    Args:
        items: what is drawn from, in the epoch that it says.
        batch_size: items of a batch, or of a step.
        seed: of the order, >= 0.
    """

    def __init__(self, items: MixedItems, batch_size: int, seed: int = 0) -> None:
        self.items, self.batch_size, self.seed = items, batch_size, seed
        first = -(-len(items.parts[0]) // batch_size)
        self.blocks = [
            max(1, round(first * share / items.shares[0])) for share in items.shares
        ]  # of each part

    def __len__(self) -> int:
        return sum(self.blocks) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.items.epoch))
        places, blocks, start = [], [], 0
        for part, count in zip(self.items.parts, self.blocks, strict=True):
            # Whole blocks: a few items come twice where the number of items is no multiple.
            passes = -(-count * self.batch_size // len(part))
            order = np.concatenate([rng.permutation(len(part)) for _ in range(passes)])
            blocks += list(start + order[: count * self.batch_size].reshape(count, -1))
            places.append((np.arange(count) + rng.random(count)) / count)
            start += len(part)
        for block in np.argsort(np.concatenate(places), kind="stable"):
            yield from map(int, blocks[block])


class MixedCollator:
    """Makes batches of conversations, whose items hold `messages`, or of other items.

    Args:
        items: collator of items that hold no messages. talks: collator of conversations.

    Raises:
        ValueError: when called, if a batch holds items of both kinds.
    """

    def __init__(self, items: Callable[[Any], Any], talks: Callable[[Any], Any]) -> None:
        self.items, self.talks = items, talks

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> Any:
        """Make a batch of items of one kind."""
        are_talks = {"messages" in item for item in batch}
        if len(are_talks) > 1:
            raise ValueError(
                "a batch holds conversations and other items: draw them by a BlockSampler whose "
                "batch size is a multiple of it."
            )
        return (self.talks if are_talks == {True} else self.items)(batch)
