# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the recurrence of Eq. 10-11: states and outputs, and their gradients.

Axes: g sequences (batch x scans), l positions, h heads, p head width, n state width, c chunks,
q positions of a chunk. Strides called `_group` and `_row` are those of g and l, in elements; all
other tensors are contiguous. Q, N and P are powers of two. How the kernels fit together is said in
`ssd_triton.py`.
"""

from __future__ import annotations

from .triton_support import kernel, tl


@kernel
def _tile(pointer, stride, remaining, Q: tl.constexpr, WIDTH: tl.constexpr):
    """Load (q, WIDTH) rows, zeros from row `remaining` on."""
    rows, columns = tl.arange(0, Q)[:, None], tl.arange(0, WIDTH)[None, :]
    return tl.load(pointer + rows * stride + columns, mask=rows < remaining, other=0.0)


@kernel
def _column(pointer, stride, remaining, Q: tl.constexpr):
    """Load one float32 number for each of q positions, zeros from position `remaining` on."""
    rows = tl.arange(0, Q)
    return tl.load(pointer + rows * stride, mask=rows < remaining, other=0.0).to(tl.float32)


@kernel
def _square(N: tl.constexpr, P: tl.constexpr):
    """Return the offsets of a contiguous (n, p) state."""
    return tl.arange(0, N)[:, None] * P + tl.arange(0, P)[None, :]


@kernel
def scan_kernel(
    x,
    input_scale,
    log_decay,
    B,
    C,
    initial_state,
    segment_ends,
    segment_decays,
    y,
    final_state,
    length,
    heads,
    segment_length,
    x_group,
    x_row,
    B_group,
    B_row,
    C_group,
    C_row,
    HAS_INITIAL: tl.constexpr,
    Q: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write y (g, l, h, p) of one sequence, head and segment, and the final state (g, h, n, p).

    segment_ends (g, h, segments, n, p): every segment's end state from a zero state.
    segment_decays (g, h, segments): the log decay over it.
    """
    group = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    segment, segments = tl.program_id(1), tl.num_programs(1)
    place = group * heads + head
    square = _square(N, P)
    if HAS_INITIAL:
        state = tl.load(initial_state + place * N * P + square).to(tl.float32)
    else:
        state = tl.zeros((N, P), tl.float32)
    for before in range(segment):
        ended = place * segments + before
        decay = tl.exp(tl.load(segment_decays + ended))
        state = state * decay + tl.load(segment_ends + ended * N * P + square)

    first = segment * segment_length
    position = group * length + first
    x += group * x_group + first.to(tl.int64) * x_row + head * P
    B += group * B_group + first.to(tl.int64) * B_row
    C += group * C_group + first.to(tl.int64) * C_row
    y += (position * heads + head) * P
    input_scale += position * heads + head
    log_decay += position * heads + head
    q = tl.arange(0, Q)
    causal = q[:, None] >= q[None, :]
    last = tl.minimum(first + segment_length, length)
    for start in tl.range(first, last, Q, disable_licm=True):
        remaining = length - start
        decay = _column(log_decay, heads, remaining, Q)
        scale = _column(input_scale, heads, remaining, Q)
        cumulative = tl.cumsum(decay, 0)
        total = tl.sum(decay, 0)
        inputs = _tile(x, x_row, remaining, Q, P)
        b = _tile(B, B_row, remaining, Q, N)
        c = _tile(C, C_row, remaining, Q, N)
        between = tl.where(causal, cumulative[:, None] - cumulative[None, :], float("-inf"))
        scores = tl.dot(c, tl.trans(b), input_precision=PRECISION)
        scores = (scores * tl.exp(between) * scale[None, :]).to(inputs.dtype)
        output = tl.dot(c, state.to(c.dtype), input_precision=PRECISION)
        output = output * tl.exp(cumulative)[:, None]
        output = tl.dot(scores, inputs, output, input_precision=PRECISION)
        to_end = scale * tl.exp(tl.minimum(total - cumulative, 0.0))
        added = (inputs.to(tl.float32) * to_end[:, None]).to(inputs.dtype)
        state = tl.dot(tl.trans(b), added, state * tl.exp(total), input_precision=PRECISION)
        target = y + q[:, None] * (heads * P) + tl.arange(0, P)[None, :]
        tl.store(target, output.to(y.dtype.element_ty), mask=q[:, None] < remaining)
        x += Q * x_row
        B += Q * B_row
        C += Q * C_row
        y += Q * heads * P
        input_scale += Q * heads
        log_decay += Q * heads
    if segment == segments - 1:
        tl.store(final_state + place * N * P + square, state)


@kernel
def states_kernel(
    keys,
    values,
    input_scale,
    log_decay,
    first_state,
    entering,
    last_state,
    decays,
    length,
    heads,
    segment_chunks,
    keys_group,
    keys_row,
    values_group,
    values_row,
    HAS_FIRST: tl.constexpr,
    STORE_ENTERING: tl.constexpr,
    STORE_LAST: tl.constexpr,
    REVERSE: tl.constexpr,
    Q: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Walk the recurrence of the states (keys B, values x) or, reversed, of their gradients.

    Reversed, keys are C, values the gradient of y, and the walk goes from the last chunk to the
    first. Writes what `STORE_ENTERING` and `STORE_LAST` ask for: the state with which the walk
    enters every chunk, entering (g, h, c, n, p), and for every segment of the sequence
    last_state (g, h, segments, n, p) and its log decay, decays (g, h, segments).
    """
    group = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    segment, segments = tl.program_id(1), tl.num_programs(1)
    place = group * heads + head
    square = _square(N, P)
    if HAS_FIRST:
        state = tl.load(first_state + place * N * P + square).to(tl.float32)
    else:
        state = tl.zeros((N, P), tl.float32)
    chunks = tl.cdiv(length, Q)
    first = segment * segment_chunks
    last = tl.minimum(first + segment_chunks, chunks)
    chunk = first.to(tl.int64)
    forward = 1
    if REVERSE:
        chunk = (last - 1).to(tl.int64)
        forward = -1
    keys += group * keys_group + chunk * Q * keys_row
    values += group * values_group + chunk * Q * values_row + head * P
    input_scale += (group * length + chunk * Q) * heads + head
    log_decay += (group * length + chunk * Q) * heads + head
    entering += (place * chunks + chunk) * N * P
    remaining = length - chunk * Q
    segment_decay = 0.0
    for _ in tl.range(first, last, disable_licm=True):
        if STORE_ENTERING:
            tl.store(entering + square, state.to(entering.dtype.element_ty))
            entering += forward * N * P
        decay = _column(log_decay, heads, remaining, Q)
        cumulative = tl.cumsum(decay, 0)
        total = tl.sum(decay, 0)
        if REVERSE:
            factor = tl.exp(cumulative)
        else:
            factor = tl.exp(tl.minimum(total - cumulative, 0.0))
            factor = factor * _column(input_scale, heads, remaining, Q)
        key = _tile(keys, keys_row, remaining, Q, N)
        value = _tile(values, values_row, remaining, Q, P)
        value = (value.to(tl.float32) * factor[:, None]).to(value.dtype)
        state = tl.dot(tl.trans(key), value, state * tl.exp(total), input_precision=PRECISION)
        segment_decay += total
        keys += forward * Q * keys_row
        values += forward * Q * values_row
        input_scale += forward * Q * heads
        log_decay += forward * Q * heads
        remaining -= forward * Q
    if STORE_LAST:
        ended = place * segments + segment
        tl.store(last_state + ended * N * P + square, state)
        tl.store(decays + ended, segment_decay)


@kernel
def input_gradient_kernel(
    x,
    input_scale,
    log_decay,
    B,
    C,
    grad_y,
    states,
    grad_states,
    grad_x,
    grad_scale,
    grad_decay,
    length,
    heads,
    x_group,
    x_row,
    B_group,
    B_row,
    C_group,
    C_row,
    Q: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradients of x, input_scale and log_decay of one chunk and head.

    states, grad_states (g, h, c, n, p): the state that enters a chunk, the gradient of the one that
    leaves it. Square matrices are (j, i).
    """
    head, chunk, group = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, group = chunk * Q, group.to(tl.int64)
    position, remaining = group * length + start, length - start
    place = position * heads + head
    border = (group * heads + head) * tl.num_programs(1) + chunk
    square = _square(N, P)
    q = tl.arange(0, Q)
    decay = _column(log_decay + place, heads, remaining, Q)
    scale = _column(input_scale + place, heads, remaining, Q)
    cumulative = tl.cumsum(decay, 0)
    total = tl.sum(decay, 0)
    b = _tile(B + group * B_group + start * B_row, B_row, remaining, Q, N)
    c = _tile(C + group * C_group + start * C_row, C_row, remaining, Q, N)
    inputs = _tile(x + group * x_group + start * x_row + head * P, x_row, remaining, Q, P)
    dy = _tile(grad_y + place * P, heads * P, remaining, Q, P)
    state = tl.load(states + border * N * P + square)
    grad_state = tl.load(grad_states + border * N * P + square)
    through = tl.exp(total) * tl.sum(state.to(tl.float32) * grad_state.to(tl.float32))

    # What positions take from the entering state; what they add to the leaving one.
    taken = tl.dot(c, state, input_precision=PRECISION)
    crossing = tl.exp(cumulative) * tl.sum(taken * dy.to(tl.float32), 1)
    grad_scaled = tl.dot(b, grad_state, input_precision=PRECISION)
    grad_scaled = grad_scaled * tl.exp(tl.minimum(total - cumulative, 0.0))[:, None]
    into_state = scale * tl.sum(grad_scaled * inputs.to(tl.float32), 1)

    # What positions give each other.
    causal = q[:, None] <= q[None, :]
    between = tl.where(causal, cumulative[None, :] - cumulative[:, None], float("-inf"))
    weights = tl.dot(b, tl.trans(c), input_precision=PRECISION) * tl.exp(between)
    grad_scaled += tl.dot(weights.to(dy.dtype), dy, input_precision=PRECISION)
    pairs = tl.dot(inputs, tl.trans(dy), input_precision=PRECISION) * weights * scale[:, None]
    crossing += tl.sum(pairs, 0) - tl.sum(pairs, 1)

    # A position's decay lies on every path from before it to it or behind it.
    change = crossing - into_state
    grad = tl.sum(crossing, 0) + through + change - tl.cumsum(change, 0)
    tl.store(grad_decay + place + q * heads, grad, mask=q < remaining)
    grad = tl.sum(grad_scaled * inputs.to(tl.float32), 1)
    tl.store(grad_scale + place + q * heads, grad, mask=q < remaining)
    target = grad_x + place * P + q[:, None] * (heads * P) + tl.arange(0, P)[None, :]
    grad_inputs = (grad_scaled * scale[:, None]).to(grad_x.dtype.element_ty)
    tl.store(target, grad_inputs, mask=q[:, None] < remaining)


@kernel
def shared_gradient_kernel(
    x,
    input_scale,
    log_decay,
    B,
    C,
    grad_y,
    states,
    grad_states,
    grad_B,
    grad_C,
    length,
    heads,
    heads_per_program,
    x_group,
    x_row,
    B_group,
    B_row,
    C_group,
    C_row,
    Q: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradients of B and C of one chunk, summed over some of the heads that share them.

    grad_B, grad_C (head groups, g, l, n); the rest is as in `input_gradient_kernel`.
    """
    chunk, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunks, groups = tl.num_programs(0), tl.num_programs(1)
    start = chunk * Q
    position, remaining = group * length + start, length - start
    square = _square(N, P)
    q = tl.arange(0, Q)
    x += group * x_group + start * x_row
    sum_pairs = tl.zeros((Q, Q), tl.float32)
    sum_B = tl.zeros((Q, N), tl.float32)
    sum_C = tl.zeros((Q, N), tl.float32)
    first = tl.program_id(2) * heads_per_program
    last = tl.minimum(first + heads_per_program, heads)
    for head in tl.range(first, last, disable_licm=True):
        place = position * heads + head
        decay = _column(log_decay + place, heads, remaining, Q)
        scale = _column(input_scale + place, heads, remaining, Q)
        cumulative = tl.cumsum(decay, 0)
        total = tl.sum(decay, 0)
        inputs = _tile(x + head * P, x_row, remaining, Q, P)
        dy = _tile(grad_y + place * P, heads * P, remaining, Q, P)
        causal = q[:, None] <= q[None, :]
        between = tl.where(causal, cumulative[None, :] - cumulative[:, None], float("-inf"))
        pairs = tl.dot(inputs, tl.trans(dy), input_precision=PRECISION)
        sum_pairs += pairs * tl.exp(between) * scale[:, None]
        border = ((group * heads + head) * chunks + chunk) * N * P
        grad_state = tl.load(grad_states + border + square)
        added = scale * tl.exp(tl.minimum(total - cumulative, 0.0))
        added = (inputs.to(tl.float32) * added[:, None]).to(inputs.dtype)
        sum_B = tl.dot(added, tl.trans(grad_state), sum_B, input_precision=PRECISION)
        state = tl.load(states + border + square)
        taken = (dy.to(tl.float32) * tl.exp(cumulative)[:, None]).to(dy.dtype)
        sum_C = tl.dot(taken, tl.trans(state), sum_C, input_precision=PRECISION)

    b = _tile(B + group * B_group + start * B_row, B_row, remaining, Q, N)
    c = _tile(C + group * C_group + start * C_row, C_row, remaining, Q, N)
    sum_pairs = sum_pairs.to(b.dtype)
    sum_B = tl.dot(sum_pairs, c, sum_B, input_precision=PRECISION)
    sum_C = tl.dot(tl.trans(sum_pairs), b, sum_C, input_precision=PRECISION)
    place = ((tl.program_id(2) * groups + group) * length + start) * N
    offsets = q[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(grad_B + place + offsets, sum_B, mask=q[:, None] < remaining)
    tl.store(grad_C + place + offsets, sum_C, mask=q[:, None] < remaining)
