# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Matrix products in float32 on a CPU, by the faster of PyTorch's two libraries.

PyTorch leaves these products to MKL, which uses no AVX-512 on other processors than Intel's. There
oneDNN, which PyTorch has too, takes half the time.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

# A product of a batch with fewer multiplications is better left to one call for all.
LARGE_PRODUCT = 2**20


@lru_cache
def _onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 that MKL does not use."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    processor = torch.cpu.get_capabilities()
    return bool(processor.get("avx512_f")) and "Intel" not in processor.get("cpu_name", "Intel")


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN multiplies these: float32 on a CPU, with no gradient to be kept."""
    return (
        a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and _onednn_is_faster()
    )


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b.mT, None, "none", [], "")


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply a batch of matrices as `torch.bmm` does: (m, i, j) by (m, j, k) -> (m, i, k)."""
    if a[0].numel() * b.shape[-1] < LARGE_PRODUCT or not uses_onednn(a, b):
        return torch.bmm(a, b, out=out)
    if out is None:
        out = a.new_empty(*a.shape[:2], b.shape[-1])
    for left, right, product in zip(a.unbind(), b.unbind(), out.unbind(), strict=True):
        product.copy_(_multiply(left, right))
    return out


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add the product of a batch of matrices to `total` (m, i, k), in place."""
    if a[0].numel() * b.shape[-1] < LARGE_PRODUCT or not uses_onednn(a, b):
        return total.baddbmm_(a, b)
    add = torch.ops.mkldnn._linear_pointwise.binary
    for left, right, one in zip(a.unbind(), b.unbind(), total.unbind(), strict=True):
        one.copy_(add(left, one, right.mT, None, "add"))
    return total


class Projection(nn.Linear):
    """`nn.Linear`, by oneDNN where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply (..., in_features) into (..., out_features)."""
        if uses_onednn(input, self.weight) and input.numel():
            return torch.ops.mkldnn._linear_pointwise.default(
                input, self.weight, self.bias, "none", [], ""
            )
        return super().forward(input)
