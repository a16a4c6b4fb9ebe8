# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Matrix products on a CPU, by the faster of the two libraries that PyTorch has for them.

PyTorch leaves float32 products to MKL, which uses no AVX-512 on processors that are not Intel's.
There oneDNN takes half the time; as it is called here it has no gradient, and takes one product at
a time. `torch.backends.mkldnn.enabled = False` leaves all to MKL.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

# In multiplications: below, what a call costs is more than what it saves.
LARGE_PRODUCT = 2**21


@lru_cache
def _mkl_lags() -> bool:
    """Whether this processor has AVX-512 that MKL leaves unused, and oneDNN is here instead."""
    libraries = (torch.backends.mkl, torch.backends.mkldnn)
    if not all(library.is_available() for library in libraries):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    processor: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(processor.get("avx512_f")) and "Intel" not in processor.get("cpu_name", "Intel")


def takes_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether large products of these go to oneDNN: plain float32 on a CPU, without gradients."""
    return bool(
        not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and type(a) is Tensor
        and type(b) in (Tensor, nn.Parameter)
        and a.device.type == b.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and a.layout == b.layout == torch.strided
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and _mkl_lags()
    )


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer, without a check: (..., i) by (k, i) -> (..., k)."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result


def is_faster_alone(a: Tensor, b: Tensor) -> bool:
    """Whether a batch's products (..., i, j) by (..., j, k) are faster one after the other.

    With several threads they are not: a batch is shared out among these.
    """
    if torch.get_num_threads() > 1 or not takes_onednn(a, b):
        return False
    return a.shape[-2] * a.shape[-1] * b.shape[-1] >= LARGE_PRODUCT


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply two matrices, or two batches of them: (..., i, j) by (..., j, k) -> (..., i, k)."""
    if not is_faster_alone(a, b):
        return torch.matmul(a, b, out=out)
    if a.dim() == 2:
        alone = _by_onednn(a, b.mT)
        return alone if out is None else out.copy_(alone)
    out = a.new_empty(*a.shape[:-1], b.shape[-1]) if out is None else out
    lefts, rights, outs = (one.flatten(0, -3).unbind() for one in (a, b.mT, out))
    for left, right, one in zip(lefts, rights, outs, strict=True):
        one.copy_(_by_onednn(left, right))
    return out


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return total + a b of matrices or of batches (m, i, k); `total` may be overwritten."""
    if total.dtype != a.dtype:
        return total.add_(a @ b)
    if a.dim() == 2 and is_faster_alone(a, b):
        added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(a, total, b.mT, None, "add")
        return added
    return total.addmm_(a, b) if a.dim() == 2 else total.baddbmm_(a, b)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a linear layer on (..., in_features), by oneDNN where that is faster.

    A layer that is anything but a plain `nn.Linear`, with an adapter, weights of few bits, hooks or
    a forward of its own, is just called.
    """
    if (
        type(layer) is nn.Linear
        and takes_onednn(x, layer.weight)
        and x.numel() * layer.out_features >= LARGE_PRODUCT
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
        and not nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    ):
        return _by_onednn(x, layer.weight, layer.bias)
    projected: Tensor = layer(x)
    return projected
