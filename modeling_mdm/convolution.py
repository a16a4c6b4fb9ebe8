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
        taps = weight.shape[-1]
        length = x.shape[2]
        y = torch.addcmul(bias[:, None], x, weight[:, None, :, taps - 1])  # (b, k, l, c)
        for shift in range(1, min(taps, length)):
            y[:, :, shift:].addcmul_(x[:, :, :-shift], weight[:, None, :, taps - 1 - shift])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        taps = weight.shape[-1]
        length = x.shape[2]
        grad_x = gradient * weight[:, None, :, taps - 1]
        grad_weight = torch.zeros_like(weight)
        grad_weight[..., taps - 1] = torch.einsum("bklc,bklc->kc", gradient, x)
        for shift in range(1, min(taps, length)):
            later = gradient[:, :, shift:]
            grad_x[:, :, :-shift].addcmul_(later, weight[:, None, :, taps - 1 - shift])
            grad_weight[..., taps - 1 - shift] = torch.einsum("bklc,bklc->kc", later, x[:, :, :-shift])
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
