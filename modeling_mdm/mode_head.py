# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Decides what a reply holds: words, a picture or both, by what is given.

Paper: a scan switch "assesses whether the description contains conditions that necessitate image
generation" (Fig. 3). Here: a small head over the features of the last given turn, trained on what
answers hold, for `generate(generation_mode="auto")`.

Axes: b batch, n positions of one modality.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .content import ModalityContent
from .generation_regions import GENERATION_MODES, Inputs
from .inputs import EncodedInputs
from .loss import Tallies, asking
from .past_turns import PastTurns, last_given, read_given, weights_fingerprint
from .sequence import take_part

if TYPE_CHECKING:
    from .modeling_mdm import MDMForJointGeneration

LOWEST = -1.0  # below every value of SiLU


class ModeHead(nn.Module):
    """Logits of `GENERATION_MODES` from the features of one turn: two layers about their maximum.

    The maximum over positions, because one word may say it all. They train on features without a
    gradient, so the head can be added to any model and changes nothing else.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, len(GENERATION_MODES))

    def forward(
        self, features: dict[str, Tensor], content: dict[str, ModalityContent], turn: Tensor
    ) -> Tensor:
        """Read one turn (b,) of every item.

        Args:
            features: (b, n, hidden) by modality. content: of the same positions.

        Returns:
            (b, modes), float32 at least.
        """
        found = [self.in_proj.bias.new_full((len(turn), 1, self.in_proj.out_features), LOWEST)]
        for g, part in content.items():
            read = part.valid & part.given & (part.turn == turn[:, None])
            hidden_states = F.silu(self.in_proj(features[g].to(found[0].dtype)))
            found.append(hidden_states.masked_fill(~read[..., None], LOWEST))
        logits: Tensor = self.out_proj(torch.cat(found, dim=1).amax(1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def mode_loss(
    model: "MDMForJointGeneration",
    encoded: EncodedInputs,
    count: Tensor,
    tallies: Tallies | None = None,
) -> Tensor:
    """Cross-entropy of what the masks leave to be written, given the last turn before it; 0-dim.

    The given part is evaluated once more, without what is to be written: its start tokens would
    tell. A sum over the asking items, by a count of such, which goes into `tallies`.
    """
    content, labels = encoded.content, encoded.class_labels
    absent = torch.zeros_like(encoded.has_class)
    noisy = {g: part.noisy.any(-1) for g, part in content.items()}
    has_text, has_image = noisy.get("text", absent), noisy.get("image", absent)
    mode = torch.where(has_image, 1 + has_text.long(), 0)  # as in GENERATION_MODES
    given = {g: part.without(part.noisy) for g, part in content.items()}
    with torch.no_grad():
        sequence = model.decoder.lay_out(given, encoded.has_class, absent, encoded.grid)
        part = take_part(sequence, given, given=True)
        latents = {g: own.latents for g, own in part.content.items()}
        times = {g: values.new_zeros(1) for g, values in latents.items()}
        features = model.decoder(part.sequence, part.content, latents, times, labels)
    turn = torch.stack([last_given(own) for own in given.values()]).amax(0)
    logits = model.mode_head(features, part.content, turn)
    taught = asking(content)
    error = F.cross_entropy(logits, mode, reduction="none")
    if tallies is not None:
        tallies.add("loss_mode", error, taught)
    return torch.where(taught, error, 0).sum() / count


def choose_modes(
    model: "MDMForJointGeneration", inputs: Inputs, past: PastTurns | None = None
) -> PastTurns:
    """Read what is given, which leaves a mode for every item: see `PastTurns.modes`.

    Args:
        inputs: of `generate`, with nothing to be written. past: turns that they begin with.

    Raises:
        ValueError: an item gives nothing to decide by.
    """
    passed = {name: value for name, value in inputs.items() if value is not None}
    if not passed.keys() & {"input_ids", "pixel_values"}:
        raise ValueError(_NOTHING_GIVEN)
    encoded = model.encode_inputs(**passed)
    if past is not None:
        past.check(model, len(encoded.class_labels))
    last = torch.stack([last_given(part) for part in encoded.content.values()]).amax(0)
    if bool((last < 0).any()):
        raise ValueError(_NOTHING_GIVEN)
    absent = torch.zeros_like(encoded.has_class)
    sequence = model.decoder.lay_out(encoded.content, encoded.has_class, absent, encoded.grid)
    return read_given(model, encoded, sequence, weights_fingerprint(model), past)[0]


_NOTHING_GIVEN = (
    "`generation_mode` is 'auto', but an item gives neither words nor a picture to decide by: "
    f"name one of {', '.join(GENERATION_MODES)}."
)
