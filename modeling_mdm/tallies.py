# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the means of the loss are over, item by item, so that means of many batches can be taken.

Axes: b batch, n positions of one modality.
"""

import torch
from torch import Tensor

# The means that the loss is made of; `Tallies` keeps what each is over.
MEANS = (
    *("loss_se_text", "loss_se_image", "loss_se_prediction_text", "loss_se_prediction_image"),
    *("loss_rec_text", "loss_rec_image", "loss_kl_text", "loss_kl_image", "loss_mode"),
)


class Tallies:
    """Sum and count of every item for each of `MEANS`, from which any mean of items follows.

    A mean over many batches is not the mean of theirs: some have fewer positions than others.
    """

    def __init__(self, items: Tensor) -> None:
        self.values = torch.zeros(len(items), len(MEANS), 2, device=items.device)  # items: (b,)

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Take in values (b, n) or (b,) where the mask is true, and how many these are."""
        if mask.dim() == 1:
            values, mask = values[:, None], mask[:, None]
        own = torch.stack([torch.where(mask, values.detach(), 0), mask], dim=-1)  # (b, n, 2)
        self.values[:, MEANS.index(name)] += own.float().sum(1)
