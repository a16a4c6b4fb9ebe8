# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one modality of a batch holds, position by position: given, noisy or padding.

Axes: b batch, n positions of one modality, m some of them.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MODALITIES = ("text", "image")
GENERATION_MODES = ("text", "image", "joint")  # what a reply may hold, as a mode head counts them


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

    def take(self, index: Tensor, valid: Tensor) -> "ModalityContent":
        """Some positions (b, m) of every item; `valid` is False at fillers."""

        def read(values: Tensor) -> Tensor:
            rows = index.view(*index.shape, *[1] * (values.dim() - 2))
            return values.gather(1, rows.expand(*index.shape, *values.shape[2:]))

        return ModalityContent(
            read(self.latents), read(self.given), valid, read(self.turn), read(self.place)
        )

    def repeat(self, times: int) -> "ModalityContent":
        """The batch stacked `times` times."""
        return ModalityContent(
            *(
                getattr(self, f.name).repeat(times, *[1] * (getattr(self, f.name).dim() - 1))
                for f in fields(self)
            )
        )

    def rows(self, index: Tensor) -> "ModalityContent":
        """Some items (m,), which may repeat."""
        chosen = (getattr(self, f.name).index_select(0, index) for f in fields(self))
        return ModalityContent(*chosen)

    def prompt(self) -> Tensor:
        """Given positions that only condition: (b, n) bool.

        Known parts of a region being written are not among them: a given position belongs to the
        region if its turn is one that has noisy positions of the modality.
        """
        noisy = self.noisy
        # By search, not pair by pair: n log n, and nothing is read from the device.
        written = torch.where(noisy, self.turn, -1).sort(dim=-1).values  # (b, n)
        places = torch.searchsorted(written, self.turn.contiguous())
        in_region = written.gather(1, places.clamp(max=max(0, noisy.shape[1] - 1))) == self.turn
        return self.valid & self.given & ~in_region


def written(content: dict[str, ModalityContent]) -> dict[str, Tensor]:
    """Positions to be written (b, n), of the modalities that have any."""
    noisy = {modality: positions.noisy for modality, positions in content.items()}
    return {modality: mask for modality, mask in noisy.items() if bool(mask.any())}
