# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The norm between layers."""

from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """torch's RMS norm, in the type of its input: under autocast that is not its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., size); the mean square is taken in float32."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
