# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The joint sequence: special tokens, words and patches of an item, what is given, scan orders.

Storage order: [class, null ..., start of text, time of text, words ... |
start of image, time of image, patches ...].
Axes: b batch, l positions of the joint sequence, k scans.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .content import ModalityContent
from .context_parallel import UNDIVIDED, SequenceShare
from .scan_orders import given_first_order, joint_rank
from .selection import kept_count

# Fields of a joint sequence that all items share.
LAYOUT = ("scan_active", "all_active", "num_null", "grid", "text_segment", "text_tokens")
LAYOUT += ("image_tokens", "has_given", "has_noisy", "share", "longest_by_keep", "kept")

T = TypeVar("T")
TIME_GIVEN, TIME_TEXT, TIME_IMAGE = 0, 1, 2


@dataclass
class JointSequence:
    """What the decoder must know of the joint sequence beside the features themselves.

    valid, given, special: (b, l) bool. turn: (b, l), 0 at special tokens.
    time_index: (b, l), which of the three times (given, text, image) applies.
    orders, inverses: (b, k, l). scan_active: (k, l), False where a modality's order is not in use.
    num_null: null tokens in the layout.
    grid: (pictures, rows, columns) of the whole.
    text_segment: where words end. text_tokens, image_tokens: special tokens in front of words
        (class and null tokens among them) and of patches.
    has_given, has_noisy: whether the layout has the class, null and start tokens, and the time
        tokens; a part of a sequence has one kind.
    share: what this process has of the features in the blocks; all else here is of the whole.
    longest_by_keep, kept: what all blocks ask for, found once.
    """

    valid: Tensor
    given: Tensor
    special: Tensor
    turn: Tensor
    time_index: Tensor
    orders: Tensor
    inverses: Tensor
    scan_active: Tensor
    all_active: bool
    num_null: int
    text_segment: int
    text_tokens: int
    image_tokens: int
    grid: tuple[int, int, int] = (0, 0, 0)
    has_given: bool = True
    has_noisy: bool = True
    share: SequenceShare = UNDIVIDED
    longest_by_keep: dict[float, int] = field(default_factory=dict, init=False, repr=False)
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def words(self) -> slice:
        """Where the words stand."""
        return slice(self.text_tokens, self.text_segment)

    @property
    def patches(self) -> slice:
        """Where the patches stand."""
        return slice(self.text_segment + self.image_tokens, self.valid.shape[1])

    def orders_of(self, scans: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Orders and inverses (b, len(scans), l) of some scans."""
        if scans == tuple(range(self.orders.shape[1])):
            return self.orders, self.inverses

        def stack() -> tuple[Tensor, Tensor]:
            # Slices: an index from Python would be copied to the device at every call.
            orders = torch.stack([self.orders[:, k] for k in scans], dim=1)
            return orders, torch.stack([self.inverses[:, k] for k in scans], dim=1)

        return self._once(("orders", scans), stack)

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """Make what all blocks ask for once; what is compiled makes it in its own graph."""
        if torch.compiler.is_compiling():
            return make()
        if key not in self.kept:
            self.kept[key] = make()
        made: T = self.kept[key]
        return made

    def longest_selection(self, keep: float) -> int:
        """Count what the longest scan reads if each keeps this share, as `select_items` does.

        It is read from the device once for a sequence and share, not in every block.
        """
        if keep not in self.longest_by_keep:
            counted = self.valid & ~self.special
            total = (self.valid & self.special).sum(-1)
            for kind in (counted & self.given, counted & ~self.given):
                total = total + kept_count(kind.sum(-1), keep)
            self.longest_by_keep[keep] = int(total.max()) if len(total) else 0
        return self.longest_by_keep[keep]

    def at_positions(self, values: Tensor, share: SequenceShare = UNDIVIDED) -> tuple[Tensor, ...]:
        """Spread values of the three times, (r, 3, parts, hidden): parts x (b, l, hidden).

        r divides b: a row serves b / r items that follow each other and share their times. With a
        `share` it is done for the positions of that.
        """
        rows, times, parts, width = values.shape
        batch = len(self.time_index)

        def number() -> Tensor:
            row = torch.arange(batch, device=values.device)[:, None] // (batch // max(rows, 1) or 1)
            return (share.own(self.time_index) + row * times).flatten()

        index = self._once(("times", rows, times, share), number)
        spread = values.reshape(rows * times, parts * width).index_select(0, index)
        return spread.view(batch, -1, parts, width).unbind(2)

    def rows(self, index: Tensor) -> "JointSequence":
        """Some items (m,), which may repeat."""
        chosen = {
            f.name: getattr(self, f.name).index_select(0, index)
            for f in fields(self)
            if f.name not in LAYOUT
        }
        return replace(self, **chosen)

    def part(self, positions: Tensor, valid: Tensor, **layout: Any) -> "JointSequence":
        """Take some positions of every item, in the order in which each scan reads them.

        Args:
            positions: (b, m), in storage order. valid: (b, m) bool, False at fillers.
            layout: the fields that say where the part's tokens, words and patches stand.
        """
        inverses = self.inverses.gather(-1, _for_scans(positions, self.inverses))
        # Fillers last, each at a place of its own.
        inverses = inverses + (~valid)[:, None] * self.valid.shape[1]
        order = inverses.argsort(dim=-1, stable=True)
        return JointSequence(
            valid=valid,
            given=self.given.gather(1, positions),
            special=self.special.gather(1, positions),
            turn=self.turn.gather(1, positions),
            time_index=self.time_index.gather(1, positions),
            orders=order,
            inverses=order.argsort(dim=-1),
            # Which segment a place of a part belongs to is the same in every item.
            scan_active=self.scan_active[:, positions[0]],
            all_active=self.all_active,
            num_null=self.num_null,
            grid=self.grid,
            **layout,
        )


def drop_prompt(
    content: dict[str, ModalityContent], has_class: Tensor, dropped: Tensor
) -> tuple[dict[str, ModalityContent], Tensor]:
    """Take the prompt (words, picture, class) away from some items, for classifier-free guidance.

    Args:
        content: by modality. has_class, dropped: (b,) bool.
    """
    kept = {
        modality: positions.without(positions.prompt() & dropped[:, None])
        for modality, positions in content.items()
    }
    return kept, has_class & ~dropped


def _special_tokens(content: ModalityContent) -> tuple[Tensor, Tensor]:
    """Validity of a modality's start token (any position) and time token (any noisy): (b, 1)."""
    return content.valid.any(-1, keepdim=True), content.noisy.any(-1, keepdim=True)


def build_sequence(
    content: dict[str, ModalityContent],
    has_class: Tensor,
    has_null: Tensor,
    num_null: int,
    grid: tuple[int, int, int],
    pairs: tuple[tuple[int, int], ...],
    used: dict[str, tuple[int, ...]],
) -> JointSequence:
    """Lay out the joint sequence of a batch and order it for every scan.

    Args:
        content: by modality, `"text"` and / or `"image"`.
        has_class, has_null: (b,) bool, whether the class token and the null tokens stand in an
            item. num_null: null tokens in the layout.
        grid: (pictures, rows, columns). pairs: joint scans. used: the orders in use, by modality.
    """
    batch, device = has_class.shape[0], has_class.device
    valid = [has_class[:, None], has_null[:, None].expand(batch, num_null)]
    time = [torch.full((batch, 1 + num_null), TIME_GIVEN, device=device)]
    special = [torch.ones(1 + num_null, dtype=torch.bool, device=device)]
    turn = [torch.zeros(batch, 1 + num_null, dtype=torch.long, device=device)]
    tokens = {"text": 1 + num_null, "image": 0}
    for modality, time_of in (("text", TIME_TEXT), ("image", TIME_IMAGE)):
        if modality not in content:
            continue
        own = content[modality]
        start, clock = _special_tokens(own)
        tokens[modality] += 2
        valid += [start, clock, own.valid]
        time += [
            torch.full((batch, 1), TIME_GIVEN, device=device),
            torch.full((batch, 1), time_of, device=device),
            torch.where(own.given, TIME_GIVEN, time_of),
        ]
        special += [
            torch.ones(2, dtype=torch.bool, device=device),
            torch.zeros(own.given.shape[1], dtype=torch.bool, device=device),
        ]
        turn += [torch.zeros(batch, 2, dtype=torch.long, device=device), own.turn]

    valid_all, time_all, turn_all = torch.cat(valid, 1), torch.cat(time, 1), torch.cat(turn, 1)
    special_all = torch.cat(special).expand(batch, -1)
    given_all = time_all == TIME_GIVEN
    num_words = content["text"].given.shape[1] if "text" in content else 0
    segment = tokens["text"] + num_words
    ranks, active = [], []
    for pair in pairs:
        words, patches = joint_rank(num_words, grid, pair, device)
        ranks.append(
            torch.cat(
                [words.new_zeros(tokens["text"]), words, words.new_zeros(tokens["image"]), patches]
            )
        )
        reads = torch.ones(valid_all.shape[1], dtype=torch.bool, device=device)
        reads[tokens["text"] : segment] = pair[1] in used["text"]
        reads[segment + tokens["image"] :] = pair[0] in used["image"]
        active.append(reads)
    orders, inverses = given_first_order(
        torch.stack(ranks), valid_all, given_all, special_all, turn_all
    )
    return JointSequence(
        valid_all,
        given_all,
        special_all,
        turn_all,
        time_all,
        orders,
        inverses,
        torch.stack(active),
        all_active=all(pair[0] in used["image"] and pair[1] in used["text"] for pair in pairs),
        num_null=num_null,
        grid=grid,
        text_segment=segment,
        text_tokens=tokens["text"],
        image_tokens=tokens["image"],
    )


@dataclass
class SequencePart:
    """The given or the noisy part of a batch, without the places of the other.

    sequence: its layout. content: by modality, of its own positions alone.
    index, real: (b, m) by modality, the position that each place of the part holds; and a mask,
        False where `put` writes nothing.
    """

    sequence: JointSequence
    content: dict[str, ModalityContent]
    index: dict[str, Tensor]
    real: dict[str, Tensor]

    def take(self, modality: str, values: Tensor) -> Tensor:
        """Read values of all positions (b, n, c) at those of the part: (b, m, c)."""
        index = self.index[modality][..., None]
        return values.gather(1, index.expand(-1, -1, values.shape[-1]))

    def put(self, modality: str, values: Tensor, others: Tensor) -> Tensor:
        """Write values of the part (b, m, c) over those of all positions (b, n, c)."""
        real = self.real[modality][..., None]
        index = self.index[modality][..., None].expand_as(values)
        # A filler keeps what stands there: every place of an item's index is another position.
        return others.scatter(1, index, torch.where(real, values, others.gather(1, index)))

    def rows(self, index: Tensor) -> "SequencePart":
        """Some items (m,), which may repeat."""
        return SequencePart(
            self.sequence.rows(index),
            {modality: own.rows(index) for modality, own in self.content.items()},
            {
                modality: positions.index_select(0, index)
                for modality, positions in self.index.items()
            },
            {modality: real.index_select(0, index) for modality, real in self.real.items()},
        )


def whole(sequence: JointSequence, content: dict[str, ModalityContent]) -> SequencePart:
    """Make a part of all positions, of which `put` writes the noisy ones."""
    return SequencePart(
        sequence,
        content,
        {
            modality: torch.arange(own.given.shape[1], device=own.given.device).expand_as(own.given)
            for modality, own in content.items()
        },
        {modality: own.noisy for modality, own in content.items()},
    )


def take_part(
    sequence: JointSequence,
    content: dict[str, ModalityContent],
    given: bool,
    turns: tuple[int | Tensor, int | Tensor] | None = None,
) -> SequencePart:
    """Take the given or the noisy part of a sequence that `build_sequence` made.

    The noisy part holds the time tokens and the modalities that have anything to write; the given
    part holds all other special tokens, and every modality.

    Args:
        sequence, content: the whole. given: which part.
        turns: of the given part only turns from the first to before the second, of all items or
            (b,) of each; special tokens belong to turn 0. None: all turns.
    """
    batch, device = sequence.valid.shape[0], sequence.valid.device
    offsets = {"text": sequence.text_tokens, "image": sequence.text_segment + sequence.image_tokens}
    leading = torch.arange(1 + sequence.num_null if given else 0, device=device)
    if turns is not None:
        turns = tuple(torch.as_tensor(turn, device=device).view(-1, 1) for turn in turns)
    with_tokens = turns is None or (turns[0] == 0) & (turns[1] > 0)  # or (b, 1)
    positions = [leading.expand(batch, -1)]
    reals = [sequence.valid[:, : len(leading)] & with_tokens]
    part = SequencePart(sequence, {}, {}, {})
    tokens, segment = {"text": len(leading), "image": 0}, len(leading)
    for modality, first in offsets.items():
        if modality not in content:
            continue
        mask = content[modality].valid & (content[modality].given == given)  # (b, n)
        if turns is not None:
            mask = mask & (content[modality].turn >= turns[0]) & (content[modality].turn < turns[1])
        longest = int(mask.sum(-1).max()) if batch else 0
        if not (longest or given):
            continue
        index = (~mask).long().argsort(dim=-1, stable=True)[:, :longest]
        part.index[modality], part.real[modality] = index, mask.gather(1, index)
        part.content[modality] = content[modality].take(index, part.real[modality])
        token = first - 2 if given else first - 1
        tokens[modality] += 1
        positions += [torch.full((batch, 1), token, device=device), index + first]
        reals += [sequence.valid[:, token, None] & with_tokens, part.real[modality]]
        if modality == "text":
            segment = tokens[modality] + longest
    part.sequence = sequence.part(
        torch.cat(positions, 1),
        torch.cat(reals, 1),
        text_segment=segment,
        text_tokens=tokens["text"],
        image_tokens=tokens["image"],
        has_given=given,
        has_noisy=not given,
    )
    return part


def _for_scans(index: Tensor, like: Tensor) -> Tensor:
    """(b, m) for each scan of a tensor (b, k, ...): (b, k, m)."""
    return index[:, None].expand(-1, like.shape[1], -1)
