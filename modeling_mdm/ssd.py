# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""State-space duality: the recurrence of Eq. 10-11 over a sequence, in a slow and in a chunked form.

Axes: g sequences (batch x scans), l positions, h heads, p head width, n state width, c chunks, q positions of a chunk.
Both forms take what is already discretised: `log_decay` = Delta A (Eq. 12) and `x` scaled so that x B^T = B-bar z (Eq. 13).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def discretize(delta: Tensor, A: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    """Turn the continuous system into a discrete one: Eq. 12 and 13.

    Args:
        delta: (..., h), non-negative.
        A: negative, broadcastable to delta.
        discretization: `"zoh"`, Eq. 13: B-bar = (exp(Delta A) - 1) / A B, or `"euler"`: B-bar = Delta B (stock Mamba-2).

    Returns:
        log_decay = Delta A and input_scale, both shaped like delta. At Delta = 0 the decay is 1 and the input scale 0.
    """
    log_decay = delta * A
    if discretization == "euler":
        return log_decay, delta
    # A is bounded away from zero (it is -exp(A_log)), so expm1(Delta A) / A needs no limit at Delta = 0.
    return log_decay, torch.expm1(log_decay) / A


def ssd_reference(
    x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence position by position: Eq. 10-11 without the skip term.

    Args:
        x: (g, l, h, p). log_decay: (g, l, h). B, C: (g, l, n), shared by all heads.
        initial_state: (g, h, n, p), zeros where None.

    Returns:
        y (g, l, h, p) and the state after the last position (g, h, n, p).
    """
    groups, length, heads, width = x.shape
    state = x.new_zeros(groups, heads, B.shape[-1], width) if initial_state is None else initial_state
    outputs = []
    for n in range(length):
        update = B[:, n, None, :, None] * x[:, n, :, None, :]  # (g, h, n, p)
        state = log_decay[:, n].exp()[:, :, None, None] * state + update  # Eq. 10
        outputs.append((C[:, n, None, :, None] * state).sum(-2))  # Eq. 11
    return torch.stack(outputs, 1) if outputs else torch.empty_like(x), state


def ssd_chunked(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the same recurrence as matrix products over chunks, as `ssd_reference` defines it.

    Decays are only ever exponentiated as differences that are <= 0, so no decay, however strong, overflows.
    """
    groups, length, heads, width = x.shape
    chunk = max(1, min(chunk_size, length))
    padding = -length % chunk
    if padding:
        x = F.pad(x, (0, 0, 0, 0, 0, padding))
        log_decay = F.pad(log_decay, (0, 0, 0, padding))  # decay 1: the final state passes the padding unchanged
        B, C = F.pad(B, (0, 0, 0, padding)), F.pad(C, (0, 0, 0, padding))
    chunks = (length + padding) // chunk
    x = x.reshape(groups, chunks, chunk, heads, width).transpose(2, 3)  # (g, c, h, q, p)
    B = B.reshape(groups, chunks, chunk, -1)  # (g, c, q, n)
    C = C.reshape(groups, chunks, chunk, -1)
    cumulative = log_decay.reshape(groups, chunks, chunk, heads).cumsum(2).transpose(2, 3)  # (g, c, h, q)

    # 1. Within a chunk: Y = (C B^T * decay from j to i) X, one C B^T for all heads.
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    between = cumulative[..., :, None] - cumulative[..., None, :]  # (g, c, h, q, q)
    decay = between.masked_fill(future, float("-inf")).exp().to(x.dtype)
    scores = C @ B.transpose(-1, -2)  # (g, c, q, q)
    y = (scores[:, :, None] * decay) @ x  # (g, c, h, q, p)

    # 2. What each chunk adds to the state at its end.
    to_end = (cumulative[..., -1:] - cumulative).exp().to(x.dtype)  # (g, c, h, q)
    added = B.transpose(-1, -2)[:, :, None] @ (x * to_end[..., None])  # (g, c, h, n, p)

    # 3. Pass the states from chunk to chunk.
    chunk_decay = cumulative[..., -1].exp()[..., None, None].to(x.dtype)  # (g, c, h, 1, 1)
    state = added.new_zeros(added[:, 0].shape) if initial_state is None else initial_state
    entering = []
    for index in range(chunks):
        entering.append(state)
        state = chunk_decay[:, index] * state + added[:, index]

    # 4. What the entering state gives to every position.
    if initial_state is not None or chunks > 1:
        from_state = C[:, :, None] @ torch.stack(entering, 1).to(C.dtype)  # (g, c, h, q, p)
        y = y + from_state * cumulative.exp()[..., None].to(x.dtype)
    y = y.transpose(2, 3).reshape(groups, chunks * chunk, heads, width)
    return y[:, :length], state


def ssd(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Run the scan with the named back-end: `"torch"` (chunked) or `"reference"` (sequential)."""
    if backend == "reference":
        return ssd_reference(x, log_decay, B, C, initial_state)
    return ssd_chunked(x, log_decay, B, C, initial_state, chunk_size)


def resolve_backend(requested: str, device: torch.device) -> str:
    """Name the back-end that a tensor on this device runs on; `"auto"` chooses."""
    return "torch" if requested == "auto" else requested
