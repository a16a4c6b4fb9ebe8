# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The joint sequence: special tokens, words and patches of an item, what is given, scan orders.

Storage order: [class, null ..., start of text, time of text, words ... |
start of image, time of image, patches ...].
Axes: b batch, l positions of the joint sequence, k scans.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .scans import given_first_order, joint_rank

TIME_GIVEN, TIME_TEXT, TIME_IMAGE = 0, 1, 2


@dataclass
class ModalityContent:
    """One modality of a batch, position by position.

    latents (b, n, latent_dim): standardised posterior means (of use where given).
    given, valid: (b, n) bool. turn: (b, n) long.
    place: (b, n) word index or (b, n, 2) row and column, long.
    """

    latents: Tensor
    given: Tensor
    valid: Tensor
    turn: Tensor
    place: Tensor

    @property
    def noisy(self) -> Tensor:
        """Positions to be written: (b, n) bool."""
        return self.valid & ~self.given

    def without(self, dropped: Tensor) -> "ModalityContent":
        """The same content with some positions turned into padding."""
        return ModalityContent(
            self.latents, self.given, self.valid & ~dropped, self.turn, self.place
        )

    def repeat(self, times: int) -> "ModalityContent":
        """The batch stacked `times` times."""
        return ModalityContent(
            *(
                getattr(self, f.name).repeat(times, *[1] * (getattr(self, f.name).dim() - 1))
                for f in fields(self)
            )
        )

    def prompt(self) -> Tensor:
        """Given positions that only condition: (b, n) bool.

        Known parts of a region being written are not among them: a given position belongs to the
        region if its turn is that of the modality's noisy positions.
        """
        noisy = self.noisy
        written_turn = torch.where(noisy, self.turn, torch.iinfo(torch.long).max).amin(
            -1, keepdim=True
        )
        return self.valid & self.given & (~noisy.any(-1, keepdim=True) | (self.turn < written_turn))


@dataclass
class JointSequence:
    """What the decoder must know of the joint sequence beside the features themselves.

    valid, given, special: (b, l) bool.
    time_index: (b, l), which of the three times (given, text, image) applies.
    orders, inverses: (b, k, l). scan_active: (k, l), False where a modality's order is not in use.
    """

    valid: Tensor
    given: Tensor
    special: Tensor
    time_index: Tensor
    orders: Tensor
    inverses: Tensor
    scan_active: Tensor
    all_active: bool
    text_segment: int
    text_tokens: int
    image_tokens: int

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
        return self.orders[:, list(scans)], self.inverses[:, list(scans)]

    def at_positions(self, values: Tensor) -> tuple[Tensor, ...]:
        """Spread values of the three times, (b, 3, parts, hidden): parts x (b, l, hidden)."""
        batch, times, parts, width = values.shape
        rows = self.time_index + torch.arange(batch, device=values.device)[:, None] * times
        spread = values.reshape(batch * times, parts * width).index_select(0, rows.flatten())
        return spread.view(batch, -1, parts, width).unbind(2)


def drop_prompt(
    content: dict[str, ModalityContent], has_class: Tensor, dropped: Tensor
) -> tuple[dict[str, ModalityContent], Tensor]:
    """Take the prompt (words, picture, class) away from some items, for classifier-free guidance.

    Args:
        content: by modality. has_class, dropped: (b,) bool.
    """
    kept = {g: part.without(part.prompt() & dropped[:, None]) for g, part in content.items()}
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
        part = content[modality]
        start, clock = _special_tokens(part)
        tokens[modality] += 2
        valid += [start, clock, part.valid]
        time += [
            torch.full((batch, 1), TIME_GIVEN, device=device),
            torch.full((batch, 1), time_of, device=device),
            torch.where(part.given, TIME_GIVEN, time_of),
        ]
        special += [
            torch.ones(2, dtype=torch.bool, device=device),
            torch.zeros(part.given.shape[1], dtype=torch.bool, device=device),
        ]
        turn += [torch.zeros(batch, 2, dtype=torch.long, device=device), part.turn]

    valid_all, time_all = torch.cat(valid, 1), torch.cat(time, 1)
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
        torch.stack(ranks), valid_all, given_all, special_all, torch.cat(turn, 1)
    )
    return JointSequence(
        valid_all,
        given_all,
        special_all,
        time_all,
        orders,
        inverses,
        torch.stack(active),
        all_active=all(pair[0] in used["image"] and pair[1] in used["text"] for pair in pairs),
        text_segment=segment,
        text_tokens=tokens["text"],
        image_tokens=tokens["image"],
    )
