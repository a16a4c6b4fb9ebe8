# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reordering, causal depthwise convolution and SiLU in one Triton kernel, and its gradients.

Axes: b batch, k scans, l storage positions, m steps of a scan, c channels, w taps.

The kernels read storage order through `order`, so no permuted copy of x exists. Numbers moved for a
position and channel, k scans of one shared x: reordering, convolution and SiLU apart read 3 k
and write 3 k; together they read 1 and write k, because the scans of a tile run next to each other
and find x in the cache, all orders of a pair among them. The gradient of x is gathered by `inverse`
and summed over the scans in registers: no atomics, the same to the bit in every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .triton_support import blocks, kernel, launcher, require_triton, tl

# Steps and channels of one program; steps and how many times these where weights' gradients are
# summed: fewer at once, or registers spill.
STEPS, CHANNELS = 32, 128
SUMMED_STEPS, SPAN = 16, 16


@kernel
def _taps(
    x,
    order,
    tail,
    weight,
    bias,
    steps,
    length,
    x_row,
    channels,
    channel,
    HAS_TAIL: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Convolve at some steps (s,) and channels (c,): what SiLU is applied to, (s, c) float32."""
    inside = channel < channels
    total = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(TAPS):
        weights = tl.load(weight + channel * TAPS + tap, mask=inside, other=0.0).to(tl.float32)
        values = _earlier(
            x,
            order,
            tail,
            steps - (TAPS - 1 - tap),
            length,
            x_row,
            channels,
            channel,
            HAS_TAIL,
            TAPS,
        )
        total += weights[None, :] * values
    return total


@kernel
def _earlier(
    x,
    order,
    tail,
    steps,
    length,
    x_row,
    channels,
    channel,
    HAS_TAIL: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Read what a scan reads at steps (s,), before its first step the tail or zero: (s, c)."""
    inside = channel[None, :] < channels
    known = (steps >= 0) & (steps < length)
    rows = tl.load(order + steps, mask=known, other=0).to(tl.int64)
    values = tl.load(
        x + rows[:, None] * x_row + channel[None, :], mask=known[:, None] & inside, other=0.0
    ).to(tl.float32)
    if HAS_TAIL:
        offsets = (steps + TAPS - 1)[:, None] * channels + channel[None, :]
        before = (steps[:, None] < 0) & inside
        values += tl.load(tail + offsets, mask=before, other=0.0).to(tl.float32)
    return values


@kernel
def convolution_kernel(
    x,
    order,
    tail,
    weight,
    bias,
    y,
    scans,
    length,
    channels,
    x_batch,
    x_scan,
    x_row,
    HAS_TAIL: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write y (b, k, m, c) in scan order."""
    batch, scan = (tl.program_id(2)).to(tl.int64), tl.program_id(0) % scans
    steps = (tl.program_id(0) // scans) * STEPS + tl.arange(0, STEPS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = batch * scans + scan
    total = _taps(
        x + batch * x_batch + scan * x_scan,
        order + row * length,
        tail + row * (TAPS - 1) * channels,
        weight + scan * channels * TAPS,
        bias + scan * channels,
        steps,
        length,
        x_row,
        channels,
        channel,
        HAS_TAIL,
        TAPS,
    )
    target = y + row * length * channels + steps[:, None] * channels + channel[None, :]
    mask = (steps[:, None] < length) & (channel[None, :] < channels)
    tl.store(target, (total * tl.sigmoid(total)).to(y.dtype.element_ty), mask=mask)


@kernel
def sum_gradient_kernel(
    x,
    order,
    tail,
    weight,
    bias,
    grad_y,
    grad_sum,
    grad_weights,
    scans,
    length,
    channels,
    x_batch,
    x_scan,
    x_row,
    HAS_TAIL: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Write the gradient of what SiLU is applied to, and those of weights and bias in parts.

    grad_sum (b, k, m, c); grad_weights (b, spans, k, w + 1, c), the last row the bias.
    """
    batch, scan = tl.program_id(2).to(tl.int64), tl.program_id(0) % scans
    span, spans = tl.program_id(0) // scans, tl.num_programs(0) // scans
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    row = batch * scans + scan
    x += batch * x_batch + scan * x_scan
    order += row * length
    tail += row * (TAPS - 1) * channels
    grad_y += row * length * channels
    grad_sum += row * length * channels
    weight += scan * channels * TAPS
    bias += scan * channels
    sums = grad_weights + ((batch * spans + span) * scans + scan) * (TAPS + 1) * channels + channel
    row_of_sum = tl.arange(0, 8)[:, None]
    total_weights = tl.zeros((8, CHANNELS), tl.float32)
    blocks = tl.minimum(SPAN, tl.cdiv(length - span * SPAN * STEPS, STEPS))
    for block in tl.range(0, blocks, disable_licm=True):
        steps = (span * SPAN + block) * STEPS + tl.arange(0, STEPS)
        total = _taps(
            x,
            order,
            tail,
            weight,
            bias,
            steps,
            length,
            x_row,
            channels,
            channel,
            HAS_TAIL,
            TAPS,
        )
        offsets = steps[:, None] * channels + channel[None, :]
        mask = (steps[:, None] < length) & inside[None, :]
        gate = tl.sigmoid(total)
        grad = tl.load(grad_y + offsets, mask=mask, other=0.0).to(tl.float32)
        grad = grad * gate * (1.0 + total * (1.0 - gate))
        tl.store(grad_sum + offsets, grad.to(grad_sum.dtype.element_ty), mask=mask)
        for tap in tl.static_range(TAPS):
            values = _earlier(
                x,
                order,
                tail,
                steps - (TAPS - 1 - tap),
                length,
                x_row,
                channels,
                channel,
                HAS_TAIL,
                TAPS,
            )
            part = tl.sum(grad * values, 0)[None, :]
            total_weights += tl.where(row_of_sum == tap, part, 0.0)
        total_weights += tl.where(row_of_sum == TAPS, tl.sum(grad, 0)[None, :], 0.0)
    mask = (row_of_sum <= TAPS) & inside[None, :]
    tl.store(sums[None, :] + row_of_sum * channels, total_weights, mask=mask)


@kernel
def input_gradient_kernel(
    grad_sum,
    inverse,
    weight,
    grad_x,
    scans,
    length,
    positions,
    channels,
    SHARED: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the gradient of x in storage order, of a shared x (b, l, c) summed over the scans."""
    place = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * STEPS + tl.arange(0, STEPS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside, real = channel < channels, position < positions
    if SHARED:
        first, last = place * scans, place * scans + scans
    else:
        first, last = place, place + 1
    total = tl.zeros((STEPS, CHANNELS), tl.float32)
    for row in range(first, last):
        read = tl.load(inverse + row * positions + position, mask=real, other=-TAPS)
        weights = weight + (row % scans) * channels * TAPS
        grads = grad_sum + row * length * channels
        for tap in tl.static_range(TAPS):
            factor = tl.load(weights + channel * TAPS + tap, mask=inside, other=0.0)
            steps = read + (TAPS - 1 - tap)
            used = (read >= 0) & (steps < length)
            grad = tl.load(
                grads + steps[:, None] * channels + channel[None, :],
                mask=used[:, None] & inside[None, :],
                other=0.0,
            )
            total += factor.to(tl.float32)[None, :] * grad.to(tl.float32)
    target = grad_x + (place * positions + position[:, None]) * channels + channel[None, :]
    tl.store(target, total.to(grad_x.dtype.element_ty), mask=real[:, None] & inside[None, :])


def _layout(x: Tensor, order: Tensor) -> tuple[int, ...]:
    """Return scans, steps, channels and the strides of x; a shared x has scan stride 0."""
    scan = 0 if x.dim() == 3 else x.stride(1)
    return (*order.shape[1:], x.shape[-1], x.stride(0), scan, x.stride(-2))


def _forward(x: Tensor, order: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None) -> Tensor:
    """Launch the forward pass."""
    batch, scans, length = order.shape
    channels, taps = weight.shape[1:]
    y = x.new_empty((batch, scans, length, channels))
    grid = (scans * blocks(length, STEPS), blocks(channels, CHANNELS), batch)
    convolution_kernel[grid](
        *(x, order, y if tail is None else tail, weight, bias, y, *_layout(x, order)),
        HAS_TAIL=tail is not None,
        TAPS=taps,
        STEPS=STEPS,
        CHANNELS=CHANNELS,
        num_warps=4,
    )
    return y


def _backward(
    x: Tensor,
    order: Tensor,
    inverse: Tensor,
    weight: Tensor,
    bias: Tensor,
    tail: Tensor | None,
    grad_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward pass.

    Returns:
        the gradients of x, of weights and bias together (k, w + 1, c), and of what SiLU is applied
        to (b, k, m, c).
    """
    batch, scans, length = order.shape
    channels, taps = weight.shape[1:]
    spans, tiles = blocks(length, SUMMED_STEPS * SPAN), blocks(channels, CHANNELS)
    grad_sum = torch.empty_like(grad_y)
    sums = x.new_empty((batch, spans, scans, taps + 1, channels), dtype=torch.float32)
    sizes = {"TAPS": taps, "STEPS": STEPS, "CHANNELS": CHANNELS}
    sum_gradient_kernel[(scans * spans, tiles, batch)](
        *(x, order, grad_y if tail is None else tail, weight, bias, grad_y, grad_sum, sums),
        *_layout(x, order),
        HAS_TAIL=tail is not None,
        SPAN=SPAN,
        **{**sizes, "STEPS": SUMMED_STEPS},
        num_warps=4,
    )
    grad_x, positions = x.new_empty(x.shape), x.shape[-2]
    rows = x.numel() // (positions * channels)
    input_gradient_kernel[(blocks(positions, STEPS), tiles, rows)](
        *(grad_sum, inverse, weight, grad_x, scans, length, positions, channels),
        SHARED=x.dim() == 3,
        **sizes,
        num_warps=4,
    )
    return grad_x, sums.sum((0, 1)), grad_sum


def _empty_forward(x, order, weight, bias, tail):  # type: ignore[no-untyped-def]
    return x.new_empty((*order.shape, x.shape[-1]))


def _empty_backward(x, order, inverse, weight, bias, tail, grad_y):  # type: ignore[no-untyped-def]
    scans, channels, taps = weight.shape
    sums = x.new_empty((scans, taps + 1, channels), dtype=torch.float32)
    return x.new_empty(x.shape), sums, torch.empty_like(grad_y)


_run_forward = launcher("convolution_forward", _forward, _empty_forward)
_run_backward = launcher("convolution_backward", _backward, _empty_backward)


class _OrderedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, order, _, weight, bias, tail = inputs
        ctx.save_for_backward(*inputs)
        result: Tensor = _run_forward(x, order, weight, bias, tail)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # under activation checkpointing they are given once
        *_, weight, bias, tail = saved
        grad_x, sums, grad_sum = _run_backward(*saved, gradients[0].contiguous())
        grad_weight = sums[:, :-1].transpose(1, 2).to(weight.dtype)
        grad_tail = None if tail is None else _tail_gradient(grad_sum, weight).to(tail.dtype)
        return grad_x, None, None, grad_weight, sums[:, -1].to(bias.dtype), grad_tail


def _tail_gradient(grad_sum: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the positions before the first: (b, k, w - 1, c), float32."""
    taps = weight.shape[-1]
    gradient = grad_sum.new_zeros((*grad_sum.shape[:2], taps - 1, grad_sum.shape[-1]))
    gradient = gradient.float()
    for tap in range(taps - 1):  # tail position i meets this tap at step i - tap
        steps = grad_sum[:, :, : taps - 1 - tap].float()
        gradient[:, :, tap : tap + steps.shape[2]] += steps * weight[:, None, :, tap]
    return gradient


def convolution_triton(
    x: Tensor,
    order: Tensor,
    inverse: Tensor,
    weight: Tensor,
    bias: Tensor,
    tail: Tensor | None = None,
) -> Tensor:
    """Read x in every scan's order, convolve it causally channel by channel, apply SiLU.

    Args:
        x: in storage order, (b, l, c), shared by all scans, or (b, k, l, c).
        order: the position read at every step, (b, k, m); m < l where a scan reads only a part.
        inverse: the step at which a position is read, (b, k, l); negative or >= m where it is not.
        weight: (k, c, w), the last tap is the present, at most 7 taps. bias: (k, c).
        tail: what each scan read before its first step, (b, k, w - 1, c), before the convolution;
            zeros where None.

    Returns:
        (b, k, m, c) in scan order; differentiable in x, weight, bias and tail.

    Raises:
        ValueError: see `require_triton`; for more than 7 taps.
    """
    require_triton(x)
    if weight.shape[-1] > 7:
        raise ValueError(
            f"back-end 'triton' convolves with up to 7 taps, got conv_kernel={weight.shape[-1]}: "
            "choose the back-end 'torch'"
        )
    if x.stride(-1) != 1:
        x = x.contiguous()
    if order.numel() == 0:
        return x.new_empty((*order.shape, x.shape[-1]))
    parameters = (weight.contiguous(), bias.contiguous())
    tail = None if tail is None else tail.contiguous()
    result: Tensor = _OrderedConvolution.apply(
        x, order.contiguous(), inverse.contiguous(), *parameters, tail
    )
    return result
