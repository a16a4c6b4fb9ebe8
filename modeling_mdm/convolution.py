# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The causal depthwise convolution in front of every scan, as shifted multiply-adds.

Axes: b batch, k scans, l positions in scan order, c channels, w taps. On a CPU this is faster than `conv1d`.
"""

from typing import Any

import torch
from torch import Tensor


class _CausalConvolution(torch.autograd.Function):
    """Sum of shifted products; written out so that no shifted copy of the input is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        taps, length = weight.shape[-1], x.shape[2]
        y = torch.empty_like(x)
        for k in range(x.shape[1]):  # scan by scan, so that what is read again is still in the cache
            out, source = y[:, k], x[:, k]
            torch.addcmul(bias[k], source, weight[k, :, -1], out=out)
            for shift in range(1, min(taps, length)):
                out[:, shift:].addcmul_(source[:, :-shift], weight[k, :, -1 - shift])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        taps, length = weight.shape[-1], x.shape[2]
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        for k in range(x.shape[1]):
            later, source, grad = gradient[:, k], x[:, k], grad_x[:, k]
            torch.mul(later, weight[k, :, -1], out=grad)
            grad_weight[k, :, -1] = (later * source).sum((0, 1))
            for shift in range(1, min(taps, length)):
                grad[:, :-shift].addcmul_(later[:, shift:], weight[k, :, -1 - shift])
                grad_weight[k, :, -1 - shift] = (later[:, shift:] * source[:, :-shift]).sum((0, 1))
        return grad_x, grad_weight, gradient.sum((0, 2))


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve every channel of every scan causally with its own taps; positions before the first are zero.

    Args:
        x: (b, k, l, c) in scan order. weight: (k, c, w), the last tap is the present. bias: (k, c).

    Returns:
        (b, k, l, c).
    """
    result: Tensor = _CausalConvolution.apply(x, weight.to(x.dtype), bias.to(x.dtype))
    return result
