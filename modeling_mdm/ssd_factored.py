# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recurrence of Eq. 10-11 with factored decays: one matrix product for all heads.

The decay from j to i is split at a reference r into a factor of i and a factor of j,
exp(cs_i - cs_j) = exp(cs_i - cs_r) exp(cs_r - cs_j), cs the cumulative decay, so that
tril(C B^T) is one matrix for all heads. With r in the middle of a block, the factors overflow where
decays are strong. Such blocks are halved: from the first half to the second, r at the border makes
both factors <= 1; each half is then a smaller block. Where decays are weak, r stands before
the chunk: what comes from the state there then decays alike, and one sum holds both.

Axes: g sequences, l positions, c chunks of q positions, h heads, p head width, n state width.
Inside, chunks come first, (c, g, q, ...), and a state is (g, n, h * p).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .matmul import add_product, is_faster_alone, multiply

# Half of the range of a block's decay is exponentiated: exp(60) in float32 leaves room for products
# of 1e12 (exp(88) overflows).
MAX_FACTORED_DECAY = 120.0

# States that are in memory at once, in numbers: what a core's caches hold.
SEGMENT_NUMBERS = 2**20

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, input_scale, log_decay, B, C


def ssd_factored(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence that `ssd_reference` defines, with one product for all heads.

    Arithmetic and state are float32 at least; only the products of a bfloat16 sequence are bfloat16
    where no gradient is asked for, since that of the decays is a difference of large terms. Between
    forward and backward only the inputs, the output and the states at the borders of a few segments
    are kept.
    """
    if not x.shape[1]:
        shape = (x.shape[0], x.shape[2], B.shape[-1], x.shape[3])
        state = x.new_zeros(shape) if initial_state is None else initial_state
        return torch.empty_like(x), state.to(state_dtype(x, log_decay))
    is_half = x.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    products = x.dtype if is_half else state_dtype(x, log_decay)
    inputs = (x, input_scale, log_decay, B, C)
    y, state = _Factored.apply(*inputs, initial_state, chunk_size, products)
    return y, state


def state_dtype(x: Tensor, log_decay: Tensor) -> torch.dtype:
    """Return the dtype of states and decays: float32 at least."""
    return torch.promote_types(torch.promote_types(x.dtype, log_decay.dtype), torch.float32)


class _Plan(NamedTuple):
    """How a sequence is cut."""

    chunk: int  # positions of a chunk
    levels: int  # how often a chunk is halved
    from_start: bool  # whether decays, weak enough, are taken from before a chunk
    segments: list[slice]  # chunks that are worked on at once

    @property
    def length(self) -> int:
        """Positions with the padding of the last chunk."""
        return int(self.segments[-1].stop) * self.chunk


def _plan(x: Tensor, log_decay: Tensor, state_size: int, chunk_size: int) -> _Plan:
    groups, length, heads, width = x.shape
    size = -(-length // -(-length // max(1, chunk_size)))  # equal chunks need the least padding
    # A GPU, or many threads, share out all chunks of a sequence rather than one product.
    is_shared = x.device.type != "cpu" or torch.get_num_threads() > 2 * groups
    from_start = not is_shared and decay_range(log_decay, size, 0) <= MAX_FACTORED_DECAY / 2
    # At the latest blocks of one position hold their decays, for there is none between positions.
    enough = (
        levels
        for levels in range(size)
        if not decay_range(log_decay, -(-size // 2**levels)) > MAX_FACTORED_DECAY
    )
    levels = 0 if from_start else next(enough)
    chunk = -(-size // 2**levels) * 2**levels
    chunks = -(-length // chunk)
    step = max(1, SEGMENT_NUMBERS // (groups * max(state_size, chunk) * heads * width))
    segments = [slice(start, min(start + step, chunks)) for start in range(0, chunks, step)]
    return _Plan(chunk, levels, from_start, segments)


def decay_range(log_decay: Tensor, size: int, first: int = 1) -> float:
    """Return the largest range of the cumulative decay over all blocks of `size` positions.

    The decay into the first position of a block is not between its positions; with first=0 it
    counts too.
    """
    between = into_chunks(log_decay.detach(), size)[:, :, first:]
    return -float(between.sum(2, dtype=torch.float32).amin())


def into_chunks(tensor: Tensor, size: int) -> Tensor:
    """Cut (g, l, ...) into (g, c, q, ...); padding by 0 has decay 1 and input 0."""
    padding = -tensor.shape[1] % size
    if padding:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, padding))
    return torch.unflatten(tensor, 1, (-1, size))


class _Chunks(NamedTuple):
    """Chunks of the sequence; padding has decay 1 and input 0, so it changes no state."""

    x: Tensor  # (c, g, q, h, p)
    scale: Tensor  # input scale, (c, g, q, h)
    cumulative: Tensor  # cumulative log decay, (c, g, q, h)
    B: Tensor  # (c, g, q, n), of the dtype of products
    C: Tensor

    @property
    def to_end(self) -> Tensor:
        """Decay from each position to the end of its chunk, (c, g, q, h)."""
        return torch.exp(self.cumulative[:, :, -1:] - self.cumulative)

    @property
    def total(self) -> Tensor:
        """Decay over each chunk, (c, g, 1, h, 1)."""
        return torch.exp(self.cumulative[:, :, -1:, :, None])


def _view(tensor: Tensor, segment: slice, chunk: int) -> Tensor:
    """(g, l, ...) to chunks first, (c, g, q, ...), with padding where l ends early."""
    part = tensor[:, segment.start * chunk : segment.stop * chunk]
    return into_chunks(part, chunk).transpose(0, 1)


def _cut(inputs: Inputs, segment: slice, chunk: int, products: torch.dtype) -> _Chunks:
    x, input_scale, log_decay, B, C = (_view(tensor, segment, chunk) for tensor in inputs)
    dtype = state_dtype(x, log_decay)
    return _Chunks(
        x,
        input_scale.to(dtype),
        log_decay.to(dtype).cumsum(2).contiguous(),
        B.to(products).contiguous(),
        C.to(products).contiguous(),
    )


def _weighted(tensor: Tensor, factor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Multiply (..., h, p) by (..., h) into rows of new memory, (..., h * p)."""
    out = factor.new_empty(tensor.shape, dtype=dtype)
    return torch.mul(tensor, factor[..., None], out=out).flatten(-2)


def _states(chunks: _Chunks, state: Tensor | None, count: int) -> Tensor:
    """Return `state`, if any, and the states after each of the first chunks, (1 + count, ...)."""
    first = 0 if state is None else 1
    _, g, _, h, p = chunks.x.shape
    states = chunks.scale.new_empty(first + count, g, chunks.B.shape[-1], h * p)
    if state is not None:
        states[0] = state
    if count:
        weights = (chunks.to_end * chunks.scale)[:count]
        added = _weighted(chunks.x[:count], weights, chunks.B.dtype)
        if added.dtype == states.dtype:
            multiply(chunks.B[:count].mT, added, out=states[first:])
        else:
            states[first:] = multiply(chunks.B[:count].mT, added)
    by_head, total = torch.unflatten(states, -1, (h, p)), chunks.total
    for i in range(1, first + count):
        by_head[i].addcmul_(by_head[i - 1], total[i - first])
    return states


class _Blocks(NamedTuple):
    """Equal blocks of every chunk: the positions that read, those that are read, their decays."""

    number: int
    readers: slice
    sources: slice

    @property
    def on_diagonal(self) -> bool:
        return self.readers == self.sources

    def of(self, tensor: Tensor, side: slice) -> Tensor:
        """(c, g, q, ...) to (c, g, blocks, size, ...)."""
        return torch.unflatten(tensor, 2, (self.number, -1))[:, :, side]

    def of_scores(self, scores: Tensor) -> Tensor:
        """(c, g, q, q) to (c, g, blocks, size, size): sources to readers."""
        grid = torch.unflatten(scores, 3, (self.number, -1))
        grid = torch.unflatten(grid, 2, (self.number, -1))
        return grid[:, :, self.readers, :, self.sources].diagonal(0, 2, 4).movedim(-1, 2)

    def factors(self, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        """Decay factors of the readers and of the sources, (c, g, blocks, size, h)."""
        readers, sources = self.of(cumulative, self.readers), self.of(cumulative, self.sources)
        reference = sources[:, :, :, -1:]
        if self.on_diagonal:
            reference = (sources[:, :, :, :1] + reference) / 2
        return torch.exp(readers - reference), torch.exp(reference - sources)


def _blocks(levels: int) -> Iterator[_Blocks]:
    """Yield the blocks on the diagonal, then those from first to second halves."""
    yield _Blocks(2**levels, slice(None), slice(None))
    for level in range(1, levels + 1):
        yield _Blocks(2**level, slice(1, None, 2), slice(0, None, 2))


def _within(chunks: _Chunks, levels: int, y: Tensor) -> None:
    """Write what each chunk's positions read from their own chunk into y (c, g, q, h, p)."""
    scores = multiply(chunks.C, chunks.B.mT)  # (c, g, q, q), for all heads
    for blocks in _blocks(levels):
        reading, read = blocks.factors(chunks.cumulative)
        read = read * blocks.of(chunks.scale, blocks.sources)
        matrix, out = blocks.of_scores(scores), blocks.of(y, blocks.readers)
        matrix = matrix.tril() if blocks.on_diagonal else matrix
        source = _weighted(blocks.of(chunks.x, blocks.sources), read, matrix.dtype)
        part = multiply(matrix, source).view(out.shape)
        if blocks.on_diagonal:
            torch.mul(part, reading[..., None], out=out)
        else:
            out.addcmul_(part, reading[..., None])


def _read_by_blocks(chunks: _Chunks, state: Tensor | None, levels: int, y: Tensor) -> Tensor:
    """Write what positions read into y (c, g, q, h, p), however strong decays are.

    Returns:
        the state after the last chunk, (g, n, h * p).
    """
    states = _states(chunks, state, len(chunks.x))
    first = len(chunks.x) + 1 - len(states)  # chunks from here on read a state
    _within(chunks, levels, y)
    if first < len(chunks.x):
        from_state = multiply(chunks.C[first:], states[:-1].to(chunks.C.dtype))
        falling = torch.exp(chunks.cumulative[first:, ..., None])
        y[first:].addcmul_(from_state.view(y[first:].shape), falling)
    return states[-1].clone()


def _read_from_start(chunks: _Chunks, state: Tensor | None, y: Tensor) -> Tensor:
    """As `_read_by_blocks`, for weak decays, which are taken from before every chunk.

    There, what a position reads of its chunk and of the state before decays alike, and so does what
    of both is left after the chunk. They are rows of one matrix, which one product reads.
    """
    groups = y.shape[1]
    # Asked of a product (q, n) by (n, h * p), which each chunk has; y stands for the state.
    if groups == 1 or is_faster_alone(chunks.C, y[0].flatten(-2)):
        states = [None] * groups if state is None else state.unbind()
        alone = [_Chunks(*(tensor[:, group] for tensor in chunks)) for group in range(groups)]
        left = map(_read_chunk_by_chunk, alone, states, y.unbind(1))
        return torch.stack(list(left))
    return _read_chunk_by_chunk(chunks, state, y)


def _read_chunk_by_chunk(chunks: _Chunks, state: Tensor | None, y: Tensor) -> Tensor:
    """Read chunk after chunk; the axis of sequences may be missing."""
    *groups, size, h, p = y.shape[1:]
    cumulative = chunks.cumulative[..., None]
    falling, rising = torch.exp(cumulative), torch.exp(-cumulative) * chunks.scale[..., None]
    scores = multiply(chunks.C, chunks.B.mT).tril()
    readers = torch.cat([scores, chunks.C], -1)  # (c, g, q, q + n)
    # The chunk's inputs, (g, q, h * p), and the state, (g, n, h * p).
    readable = scores.new_empty(*groups, readers.shape[-1], h * p)
    inputs, entering = readable[..., :size, :], readable[..., size:, :]
    inputs_by_head = torch.unflatten(inputs, -1, (h, p))
    state = None if state is None else state.clone()
    everything = (chunks.x, rising, falling, chunks.B.mT, readers, scores, y)
    for x, rise, fall, B, reader, score, out in zip(*(t.unbind() for t in everything), strict=True):
        torch.mul(x, rise, out=inputs_by_head)
        if state is None:
            part, state = multiply(score, inputs), multiply(B, inputs).to(falling.dtype)
        else:
            entering.copy_(state)
            part, state = multiply(reader, readable), add_product(state, B, inputs)
        torch.mul(part.view(out.shape), fall, out=out)
        torch.unflatten(state, -1, (h, p)).mul_(fall[..., -1:, :, :])
    assert state is not None
    return state


def _within_backward(chunks: _Chunks, levels: int, d_y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by input_scale x (c, g, q, h, p) and by C B^T (c, g, q, q)."""
    scores = multiply(chunks.C, chunks.B.mT)
    d_x, d_scores = chunks.B.new_empty(chunks.x.shape), torch.zeros_like(scores)
    for blocks in _blocks(levels):
        reading, read = blocks.factors(chunks.cumulative)
        scale = blocks.of(chunks.scale, blocks.sources)
        matrix, out = blocks.of_scores(scores), blocks.of(d_x, blocks.sources)
        matrix = matrix.tril() if blocks.on_diagonal else matrix
        source = _weighted(blocks.of(chunks.x, blocks.sources), read * scale)
        outer = _weighted(blocks.of(d_y, blocks.readers), reading)
        part, d_matrix = multiply(matrix.mT, outer).view(out.shape), multiply(outer, source.mT)
        if blocks.on_diagonal:
            torch.mul(part, read[..., None], out=out)
            d_matrix = d_matrix.tril_()
        else:
            out.addcmul_(part, read[..., None])
        blocks.of_scores(d_scores).copy_(d_matrix)
    return d_x, d_scores


def _forward(
    inputs: Inputs, state: Tensor | None, plan: _Plan, products: torch.dtype, y: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Write the output into y (g, l, h, p); return states: before the segments, and the last."""
    starts = []  # without the first where that is nothing
    for segment in plan.segments:
        chunks = _cut(inputs, segment, plan.chunk, products)
        if state is not None:
            starts.append(state)
        out = _view(y, segment, plan.chunk)
        if plan.from_start:
            state = _read_from_start(chunks, state, out)
        else:
            state = _read_by_blocks(chunks, state, plan.levels, out)
    assert state is not None
    return starts, state


def _backward(
    inputs: Inputs,
    starts: tuple[Tensor | None, ...],
    plan: _Plan,
    y: Tensor,
    d_y: Tensor,
    d_state: Tensor | None,
) -> tuple[list[Tensor], Tensor | None]:
    """Gradients of the inputs (with padding) and of the initial state, from the last segment on."""
    shapes = [(tensor.shape[0], plan.length, *tensor.shape[2:]) for tensor in inputs]
    gradients = [tensor.new_empty(shape) for tensor, shape in zip(inputs, shapes, strict=True)]
    for segment, state in reversed(list(zip(plan.segments, starts, strict=True))):
        chunks = _cut(inputs, segment, plan.chunk, y.dtype)
        outs = [_view(gradient, segment, plan.chunk) for gradient in gradients]
        of_y, of_d_y = _view(y, segment, plan.chunk), _view(d_y, segment, plan.chunk)
        d_state = _segment_backward(chunks, state, plan.levels, of_y, of_d_y, d_state, outs)
    return gradients, d_state


def _segment_backward(
    chunks: _Chunks,
    state: Tensor | None,
    levels: int,
    y: Tensor,
    d_y: Tensor,
    d_state: Tensor | None,
    outs: list[Tensor],
) -> Tensor | None:
    """Write the gradients of x, input_scale, log_decay, B and C; return that of `state`.

    y_i holds exp(cs_i - cs_j) x^_j with x^ = input_scale x: the gradient of cs_i is
    y_i . dy_i - x^_i . dx^_i. The last cs of a chunk also has the state after the chunk times its
    gradient, for it is in every term of that state.
    """
    count, heads = len(chunks.x), chunks.x.shape[3:]
    first = 1 if state is None else 0  # chunks from here on read a state
    last = count - 1 if d_state is None else count  # chunks before this one are read by others
    d_x, d_scores = _within_backward(chunks, levels, d_y)
    d_B, d_C = multiply(d_scores.mT, chunks.C), multiply(d_scores, chunks.B)
    states = _states(chunks, state, last)
    from_state = _weighted(d_y[first:], torch.exp(chunks.cumulative[first:]))
    d_states = _states_backward(chunks, from_state, first, d_state)
    if first < count:
        d_C[first:] += multiply(from_state, states[: count - first].mT)
    if last:
        after, d_after = states[1 - first :], d_states[1 - first :]
        to_end = chunks.to_end[:last]
        part = torch.unflatten(multiply(chunks.B[:last], d_after), -1, heads)
        d_x[:last].addcmul_(part, to_end[..., None])
        d_B[:last] += multiply(_weighted(chunks.x[:last], to_end * chunks.scale[:last]), d_after.mT)
    d_scale = (chunks.x * d_x).sum(-1)
    d_cumulative = (y * d_y).sum(-1) - chunks.scale * d_scale
    if last:
        d_cumulative[:last, :, -1] += torch.unflatten(after * d_after, -1, heads).sum((2, 4))
    torch.mul(d_x, chunks.scale[..., None], out=outs[0])
    d_log_decay = d_cumulative.flip(2).cumsum(2).flip(2)
    for out, gradient in zip(outs[1:], (d_scale, d_log_decay, d_B, d_C), strict=True):
        out.copy_(gradient)
    return None if state is None else d_states[0].clone()


def _states_backward(
    chunks: _Chunks, from_state: Tensor, first: int, d_state: Tensor | None
) -> Tensor:
    """Gradients of the states before the chunks from `first` on and, if any, `d_state`."""
    count, end = len(from_state), 0 if d_state is None else 1
    _, g, _, h, p = chunks.x.shape
    d_states = chunks.B.new_empty(count + end, g, chunks.B.shape[-1], h * p)
    if d_state is not None:
        d_states[-1] = d_state
    if count:
        multiply(chunks.C[first:].mT, from_state, out=d_states[:count])
    by_head, total = torch.unflatten(d_states, -1, (h, p)), chunks.total[first:]
    for i in reversed(range(count + end - 1)):
        by_head[i].addcmul_(by_head[i + 1], total[i])
    return d_states


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, input_scale, log_decay, B, C, initial_state, chunk_size, products):  # type: ignore
        inputs, dtype = (x, input_scale, log_decay, B, C), state_dtype(x, log_decay)
        plan, state = _plan(x, log_decay, B.shape[-1], chunk_size), None
        if initial_state is not None:
            state = initial_state.to(dtype).transpose(1, 2).flatten(2)  # (g, n, h * p)
        y = x.new_empty(x.shape[0], plan.length, *x.shape[2:], dtype=dtype)
        with torch.autocast(x.device.type, enabled=False):
            starts, final = _forward(inputs, state, plan, products, y)
        ctx.plan = plan
        ctx.save_for_backward(*inputs, y, *starts)
        ctx.set_materialize_grads(False)
        final = torch.unflatten(final, -1, x.shape[2:]).transpose(1, 2)
        return y[:, : x.shape[1]].to(x.dtype), final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y, d_state):  # type: ignore
        saved = ctx.saved_tensors  # under activation checkpointing they are given once
        inputs, y, starts = saved[:5], saved[5], saved[6:]
        if len(starts) < len(ctx.plan.segments):
            starts = (None, *starts)
        d_y = torch.zeros_like(inputs[0]) if d_y is None else d_y
        if d_state is not None:
            d_state = d_state.to(y.dtype).transpose(1, 2).flatten(2)
        with torch.autocast(y.device.type, enabled=False):
            gradients, d_state = _backward(inputs, starts, ctx.plan, y, d_y, d_state)
        if d_state is not None:
            d_state = torch.unflatten(d_state, -1, y.shape[2:]).transpose(1, 2)
        return *(gradient[:, : d_y.shape[1]] for gradient in gradients), d_state, None, None
