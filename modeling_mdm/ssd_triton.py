# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""State-space duality on a GPU: own Triton kernels for the recurrence of Eq. 10-11.

Axes: g sequences (batch x scans), l positions, h heads, p head width, n state width, c chunks,
q positions of a chunk. Within a chunk, with cs the cumulative log decay, x~ = input_scale x and S
the entering state,

    y_i = sum_{j <= i} exp(cs_i - cs_j) (C_i . B_j) x~_j + exp(cs_i) C_i S
    S'  = exp(cs_q) S + sum_j exp(cs_q - cs_j) B_j x~_j.

Forward, one launch: a program for each sequence and head walks over the chunks with the state in
registers, so no state is written. Where these are too few programs for a GPU, sequences are cut
into segments, and a launch before gives the state that every segment would end with from zero.
Backward, four launches and a sum: the states and, from the end, their gradients are walked again
and written at the borders of chunks in the type of x; then every chunk and head gives the gradients
of x, input_scale and log_decay, and every chunk those of B and C, with the heads that share them as
its inner loop. Nothing but the inputs is kept for the backward pass, and nothing is added
atomically: results are the same to the bit in every run.

Decays are exponentiated as differences that are <= 0 only; states and sums are float32.

Bytes for a position and head, p = 64, n = 128, chunks of 64, two bytes a number: forward reads x
and writes y, 256; states written at the borders of chunks and read again would add 512. B and C are
256 each for all heads together. So a second direction that read the same x would save at most a
quarter of 512, and here it cannot: each scan's x comes out of a convolution of its own, and its B,
C and Delta are its own. What two directions do share is x before the convolution, which
`convolution_triton.py` reads in place; the kernels are therefore made for single scans.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ssd_triton_kernels import (
    input_gradient_kernel,
    scan_kernel,
    shared_gradient_kernel,
    states_kernel,
)
from .triton_support import blocks, launcher, require_triton

# Programs that keep a large GPU busy: two for each of about 130 multiprocessors, and some to spare.
ENOUGH_PROGRAMS = 384
# A state is kept in the registers of one multiprocessor.
MAX_STATE, MAX_WIDTH = 128, 128


def _precision() -> str:
    """Name how float32 matrix products are computed: as torch computes its own.

    Both of torch's settings arrive in this one: `torch.set_float32_matmul_precision` and
    `torch.backends.fp32_precision`, which Trainer's `--tf32 true` sets and after which the function
    that reads the former raises.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _launch(x: Tensor, state: int) -> dict[str, int]:
    """Choose warps and pipeline stages: no spills in 16 bits, shared memory enough in float32."""
    if x.dtype == torch.float32:
        return {"num_warps": 8, "num_stages": 1}
    return {"num_warps": 4 if state <= 8192 else 8, "num_stages": 2}


def _segments(sequences: int, chunks: int) -> int:
    """Cut sequences into so many segments that all multiprocessors work, of 4 chunks at least."""
    return max(1, min(ENOUGH_PROGRAMS // max(sequences, 1), chunks // 4, 16))


def _row_strides(tensor: Tensor) -> tuple[int, int]:
    """Return the strides of groups and positions, in elements."""
    return tensor.stride(0), tensor.stride(1)


def _readable(tensor: Tensor) -> Tensor:
    """Return a tensor (g, l, ...) with whole rows, as slices of a projection are."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _forward(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Launch the forward pass; all sizes are powers of two, no length is 0."""
    groups, length, heads, width = x.shape
    state_size = B.shape[-1]
    x, B, C = _readable(x), _readable(B), _readable(C)
    input_scale, log_decay = input_scale.contiguous(), log_decay.contiguous()
    y = x.new_empty(x.shape)
    final_state = x.new_empty((groups, heads, state_size, width), dtype=torch.float32)
    sizes = {"Q": chunk, "N": state_size, "P": width, "PRECISION": _precision()}
    launch = _launch(x, state_size * width)

    chunks = blocks(length, chunk)
    per_segment = blocks(chunks, _segments(groups * heads, chunks))
    segments = blocks(chunks, per_segment)
    ends, decays = final_state, final_state  # not read where there is one segment
    if segments > 1:
        ends = final_state.new_empty((groups, heads, segments, state_size, width))
        decays = final_state.new_empty((groups, heads, segments))
        states_kernel[(groups * heads, segments)](
            *(B, x, input_scale, log_decay, ends, ends, ends, decays),
            *(length, heads, per_segment, *_row_strides(B), *_row_strides(x)),
            HAS_FIRST=False,
            STORE_ENTERING=False,
            STORE_LAST=True,
            REVERSE=False,
            **sizes,
            **launch,
        )
    initial = final_state if initial_state is None else initial_state.contiguous()
    scan_kernel[(groups * heads, segments)](
        *(x, input_scale, log_decay, B, C, initial, ends, decays, y, final_state),
        *(length, heads, per_segment * chunk),
        *(*_row_strides(x), *_row_strides(B), *_row_strides(C)),
        HAS_INITIAL=initial_state is not None,
        **sizes,
        **launch,
    )
    return y, final_state


def _backward(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward pass.

    Returns:
        the gradients of x, input_scale, log_decay, of B and C stacked, and of initial_state.
    """
    groups, length, heads, width = x.shape
    state_size, chunks = B.shape[-1], blocks(length, chunk)
    x, B, C = _readable(x), _readable(B), _readable(C)
    input_scale, log_decay = input_scale.contiguous(), log_decay.contiguous()
    grad_y, grad_final = grad_y.contiguous(), grad_final.contiguous()
    sizes = {"Q": chunk, "N": state_size, "P": width, "PRECISION": _precision()}
    launch = _launch(x, state_size * width)
    shape = (groups, heads, state_size, width)
    grad_initial = x.new_empty(shape, dtype=torch.float32)
    unused = grad_initial.new_empty((groups, heads))
    states, grad_states = (x.new_empty((groups, heads, chunks, *shape[2:])) for _ in range(2))
    initial = grad_initial if initial_state is None else initial_state.contiguous()
    for keys, values, first, entering, reverse in (
        (B, x, initial, states, False),
        (C, grad_y, grad_final, grad_states, True),
    ):
        states_kernel[(groups * heads, 1)](
            *(keys, values, input_scale, log_decay, first, entering, grad_initial, unused),
            *(length, heads, chunks, *_row_strides(keys), *_row_strides(values)),
            HAS_FIRST=reverse or initial_state is not None,
            STORE_ENTERING=True,
            STORE_LAST=reverse,
            REVERSE=reverse,
            **sizes,
            **launch,
        )
    grad_x = x.new_empty(x.shape)
    grad_scale, grad_decay = (torch.empty_like(input_scale, dtype=torch.float32) for _ in "sd")
    inputs = (x, input_scale, log_decay, B, C, grad_y, states, grad_states)
    strides = (*_row_strides(x), *_row_strides(B), *_row_strides(C))
    input_gradient_kernel[(heads, chunks, groups)](
        *inputs, grad_x, grad_scale, grad_decay, length, heads, *strides, **sizes, **launch
    )
    # So many groups of heads that all multiprocessors work; their sums are added at the end.
    parts = min(heads, max(1, ENOUGH_PROGRAMS // (groups * chunks)))
    per_program = blocks(heads, parts)
    parts = blocks(heads, per_program)
    sums = grad_initial.new_empty((2, parts, groups, length, state_size))
    shared_gradient_kernel[(chunks, groups, parts)](
        *(*inputs, sums[0], sums[1], length, heads, per_program, *strides),
        **sizes,
        **{**launch, "num_warps": 8},
    )
    return (
        grad_x,
        grad_scale.to(input_scale.dtype),
        grad_decay.to(log_decay.dtype),
        sums.sum(1).to(B.dtype),
        grad_initial,
    )


def _empty_forward(x, input_scale, log_decay, B, C, initial_state, chunk):  # type: ignore[no-untyped-def]
    shape = (x.shape[0], x.shape[2], B.shape[2], x.shape[3])
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)


def _empty_backward(x, input_scale, log_decay, B, C, initial_state, grad_y, grad_final, chunk):  # type: ignore[no-untyped-def]
    own = [tensor.new_empty(tensor.shape) for tensor in (x, input_scale, log_decay)]
    shared = B.new_empty((2, *B.shape))
    return (*own, shared, grad_final.new_empty(grad_final.shape, dtype=torch.float32))


_run_forward = launcher("ssd_forward", _forward, _empty_forward)
_run_backward = launcher("ssd_backward", _backward, _empty_backward)


class _StateSpaceDuality(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs[:-1])
        ctx.chunk = inputs[-1]
        outputs: tuple[Tensor, Tensor] = _run_forward(*inputs)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # under activation checkpointing they are given once
        *own, shared, grad_initial = _run_backward(*saved, *gradients, ctx.chunk)
        initial_state = saved[5]
        first = None if initial_state is None else grad_initial.to(initial_state.dtype)
        return (*own, *shared.unbind(0), first, None)


def ssd_triton(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of Eq. 10-11 with the Triton kernels, differentiable in every input.

    Args:
        x: (g, l, h, p), float32, float16 or bfloat16. input_scale, log_decay: (g, l, h), the
            latter <= 0. B, C: (g, l, n), shared by all heads.
        initial_state: (g, h, n, p), zeros where None.
        chunk_size: positions of a chunk; the kernels use the next power of two in 16 ... 64.

    Returns:
        y (g, l, h, p) in the type of x and the state after the last position (g, h, n, p), float32.

    Raises:
        ValueError: see `require_triton`; for a state larger than a multiprocessor holds.
    """
    require_triton(x)
    (groups, length, heads, width), state_size = x.shape, B.shape[-1]
    if not (state_size <= MAX_STATE and width <= MAX_WIDTH):
        raise ValueError(
            f"back-end 'triton' holds states of up to state_size {MAX_STATE} and head_dim "
            f"{MAX_WIDTH}, got {state_size} and {width}: choose the back-end 'torch'"
        )
    if length == 0:
        zeros = x.new_zeros((groups, heads, state_size, width), dtype=torch.float32)
        return torch.empty_like(x), zeros if initial_state is None else initial_state.float()
    states, columns = _power_of_two(state_size), _power_of_two(width)
    B, C = (_pad(tensor.to(x.dtype), states) for tensor in (B, C))
    if initial_state is not None:
        initial_state = _pad(_pad(initial_state, columns).mT, states).mT
    chunk = min(64, _power_of_two(min(chunk_size, length)))
    y, state = _StateSpaceDuality.apply(
        _pad(x, columns), input_scale, log_decay, B, C, initial_state, chunk
    )
    return y[..., :width], state[:, :, :state_size, :width]


def _power_of_two(size: int) -> int:
    """Round a size up to what Triton's blocks can have: a power of two, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def _pad(tensor: Tensor, size: int) -> Tensor:
    """Widen the last axis with zeros; `F.pad` alone copies where there is nothing to widen."""
    return tensor if tensor.shape[-1] == size else F.pad(tensor, (0, size - tensor.shape[-1]))
