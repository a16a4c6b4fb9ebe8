# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Decides what a reply holds: words, a picture or both, by what is given.

Paper: a scan switch "assesses whether the description contains conditions that necessitate image
generation" (Fig. 3). Here: a small head over the features of the last given turn, trained on what
answers hold, for `generate(generation_mode="auto")`.
"""

import torch

from .content import GENERATION_MODES
from .generation_regions import Inputs
from .network import MDMNetwork
from .past_turns import PastTurns, last_given, read_given, weights_fingerprint


def choose_modes(model: MDMNetwork, inputs: Inputs, past: PastTurns | None = None) -> PastTurns:
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
