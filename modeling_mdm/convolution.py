# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The causal depthwise convolution in front of every scan: its forms, the choice between them.

Axes: b batch, k scans, l positions, m positions that are read, c channels, w taps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolution_triton import convolution_triton
from .scan_orders import Reading, gather_rows, reorder, sum_rows

# Where scans read at most one item in so many, these items alone are convolved.
SHORT_SELECTION = 2


def convolve(
    x: Tensor,
    reading: Reading,
    weight: Tensor,
    bias: Tensor,
    tail: Tensor | None = None,
    backend: str = "torch",
) -> Tensor:
    """Read x in every scan's order, convolve it causally channel by channel, SiLU.

    Args:
        x: (b, l, c), shared by all scans, or (b, k, l, c), in storage order.
        reading: the orders, and which steps are wanted. weight: (k, c, w), the last tap is the
            present. bias: (k, c).
        tail: (b, k, w - 1, c), inputs before the first; None where they are 0.
        backend: of `ssd`; Triton's has a kernel of its own.

    Returns:
        (b, k, m, c) in scan order, of what is read.
    """
    order, inverse, steps, _ = reading
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    tail = None if tail is None else tail.to(x.dtype)
    if backend == "triton":
        convolved = convolution_triton(x, order, inverse, weight, bias, tail)
    elif steps is not None and SHORT_SELECTION * steps.shape[-1] <= order.shape[-1]:
        convolved = convolution_at(x, order, steps, weight, bias, tail)
        return F.silu(convolved, inplace=not torch.is_grad_enabled())
    else:
        convolved = ordered_convolution(x, order, inverse, weight, bias, tail)
    return convolved if steps is None else gather_rows(convolved, steps)


def last_inputs(x: Tensor, order: Tensor, count: Tensor, tail: Tensor | None, taps: int) -> Tensor:
    """Inputs that a convolution will still see after the last real position of every scan.

    Args:
        x: (b, l, c) or (b, k, l, c) in storage order. order: (b, k, l). count: (b,), real
            positions, which lead every scan. tail: (b, k, taps, c), inputs before x; None where
            there are none. taps: inputs to keep.

    Returns:
        (b, k, taps, c); 0 before the first input.
    """
    if not order.shape[-1]:
        return x.new_zeros(*order.shape[:2], taps, x.shape[-1]) if tail is None else tail
    steps = count[:, None] + torch.arange(-taps, 0, device=x.device)  # (b, taps)
    steps = steps[:, None].expand(-1, order.shape[1], -1)
    return _with_past(gather_rows(x, order.gather(-1, steps.clamp(min=0))), steps, tail)


def _with_past(values: Tensor, steps: Tensor, tail: Tensor | None) -> Tensor:
    """Put what is before the first input in the place of values (b, k, m, c) at steps below 0.

    tail: (b, k, taps, c), inputs of steps -taps ... -1; None where they are 0.
    """
    past = torch.zeros_like(values)
    if tail is not None and tail.shape[2]:
        index = (steps + tail.shape[2]).clamp(0, tail.shape[2] - 1)
        past = tail.to(values.dtype).gather(2, index[..., None].expand_as(values))
    return torch.where(steps[..., None] < 0, past, values)


class _CausalConvolution(torch.autograd.Function):
    """The gradient of the input is the same convolution, run backwards in time with reversed taps.

    Autograd's own gradient of a depthwise convolution takes several times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias, first=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _convolve_backward(gradients[0], *ctx.saved_tensors)


def _convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    taps, length = weight.shape[-1], x.shape[2]
    grad_weight = torch.zeros_like(weight)
    for shift in range(min(taps, length)):
        product = gradient[:, :, shift:] * x[:, :, : length - shift]
        grad_weight[..., taps - 1 - shift] = _sum_positions(product)
    grad_x = _convolve(gradient, weight.flip(-1), None, first=taps - 1)
    return grad_x, grad_weight, _sum_positions(gradient)


class _OrderedConvolution(torch.autograd.Function):
    """Keeps its input in storage order alone; what scans see of it is made again for gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, order, inverse, weight, bias)
        return _activate(gather_rows(x, order), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
        x, order, inverse, weight, bias = ctx.saved_tensors
        read = gather_rows(x, order)
        gradient = torch.ops.aten.silu_backward(
            gradients[0], _convolve(read, weight, bias, first=0)
        )
        grad_read, grad_weight, grad_bias = _convolve_backward(gradient, read, weight)
        back = sum_rows if x.dim() == 3 else gather_rows
        return back(grad_read, inverse), None, None, grad_weight, grad_bias


def _activate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return SiLU of the convolution of every scan of x (b, k, l, c), which may be overwritten."""
    for k in range(x.shape[1]):
        padded = _convolve_one(x[:, k], weight[k], bias[k])
        activated = F.silu(padded, inplace=True)[:, : x.shape[2]]
        if x.shape[1] == 1:
            return activated[:, None]
        x[:, k] = activated
    return x


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, first: int) -> Tensor:
    """Convolve every scan, padded at both ends, with its taps; position 0 gets output `first`."""
    length = x.shape[2]
    biases = [None] * len(weight) if bias is None else list(bias)
    outputs = [_convolve_one(x[:, k], weight[k], biases[k]) for k in range(x.shape[1])]
    return torch.stack([padded[:, first : first + length] for padded in outputs], 1)


def _convolve_one(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int | None = None, stride: int = 1
) -> Tensor:
    """Convolve (b, l, c) with taps (c, w), padded by w - 1 at both ends unless `padding` is given.

    Returns:
        (b, l + w - 1, c) by default.
    """
    # Channels last in a 2-D convolution one row high: x has that layout, nothing is copied.
    row = x.transpose(1, 2)[:, :, None]  # (b, c, 1, l)
    ends = (0, weight.shape[-1] - 1 if padding is None else padding)
    padded = F.conv2d(row, weight[:, None, None], bias, (1, stride), ends, groups=x.shape[-1])
    return padded[:, :, 0].transpose(1, 2)


def _sum_positions(x: Tensor) -> Tensor:
    """Sum over batch and positions as a matrix product: (b, k, l, c) -> (k, c)."""
    ones = x.new_ones(1, x.shape[2])
    return (ones @ x).squeeze(2).sum(0)


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None = None
) -> Tensor:
    """Convolve every channel of every scan causally with its own taps.

    Args:
        x: (b, k, l, c) in scan order. weight: (k, c, w), the last tap is the present. bias: (k, c).
        tail: (b, k, w - 1, c), inputs before the first; None where they are 0.

    Returns:
        (b, k, l, c).
    """
    before = 0 if tail is None else tail.shape[2]
    if tail is not None:
        x = torch.cat([tail.to(x.dtype), x], dim=2)
    result: Tensor = _CausalConvolution.apply(x, weight.to(x.dtype), bias.to(x.dtype))
    return result[:, :, before:]


def ordered_convolution(
    x: Tensor,
    order: Tensor,
    inverse: Tensor,
    weight: Tensor,
    bias: Tensor,
    tail: Tensor | None = None,
) -> Tensor:
    """Read x in every scan's order, convolve it causally, SiLU; with little new memory.

    Args:
        x: (b, l, c), shared by all scans, or (b, k, l, c), in storage order.
        order, inverse: (b, k, l). weight: (k, c, w). bias: (k, c).
        tail: (b, k, w - 1, c), inputs before the first; None where they are 0.

    Returns:
        (b, k, l, c) in scan order.
    """
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if tail is None:
        result: Tensor = _OrderedConvolution.apply(x, order, inverse, weight, bias)
        return result
    if torch.is_grad_enabled():
        return F.silu(causal_convolution(reorder(x, order, inverse), weight, bias, tail))
    read = torch.cat([tail.to(x.dtype), gather_rows(x, order)], dim=2)
    return _activate(read, weight, bias)[:, :, tail.shape[2] :]


def convolution_at(
    x: Tensor, order: Tensor, steps: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None
) -> Tensor:
    """Convolve as `causal_convolution` does, at some steps of every scan only.

    It reads the inputs of these steps, as many rows as there are taps for each, and convolves these
    rows without overlap.

    Args:
        x: (b, l, c), shared by all scans, or (b, k, l, c), in storage order. order: (b, k, l).
        steps: (b, k, m), rising in every scan but for fillers at its end, unused.
        weight, bias, tail: as for `causal_convolution`.

    Returns:
        (b, k, m, c).
    """
    taps, batch, scans, length = weight.shape[-1], *steps.shape
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if not length:
        return x.new_zeros(batch, scans, length, x.shape[-1])
    earlier = steps[..., None] + torch.arange(1 - taps, 1, device=x.device)  # (b, k, m, w)
    values = gather_rows(x, order.gather(-1, earlier.clamp(min=0).flatten(-2)))
    if taps > 1:  # only the first of rising steps look before the first input
        earlier = earlier[:, :, : taps - 1].flatten(-2)
        leading = values[:, :, : taps * (taps - 1)]
        values[:, :, : taps * (taps - 1)] = _with_past(leading, earlier, tail)
    outputs = [
        _convolve_one(values[:, k], weight[k], bias[k], padding=0, stride=taps)
        for k in range(scans)
    ]
    return torch.stack(outputs, 1) if scans > 1 else outputs[0][:, None]
