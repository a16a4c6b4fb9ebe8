# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""State-space duality: the recurrence of Eq. 10-11, one definition and two fast forms.

Axes: g sequences (batch x scans), l positions, h heads, p head width, n state width, c chunks,
q positions of a chunk. All forms take what is already discretised: `log_decay` = Delta A (Eq. 12)
and `input_scale`, with B-bar = input_scale B (Eq. 13).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def discretize(delta: Tensor, A: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    """Turn the continuous system into a discrete one: Eq. 12 and 13.

    Args:
        delta: (..., h), non-negative.
        A: negative, broadcastable to delta.
        discretization: `"zoh"`, Eq. 13: B-bar = (exp(Delta A) - 1) / A B, or `"euler"`:
            B-bar = Delta B (stock Mamba-2).

    Returns:
        log_decay = Delta A and input_scale, both shaped like delta. At Delta = 0 the decay is 1
        and the input scale 0.
    """
    log_decay = delta * A
    if discretization == "euler":
        return log_decay, delta
    # A = -exp(A_log) is bounded away from zero: expm1(Delta A) / A needs no limit at Delta = 0.
    return log_decay, torch.expm1(log_decay) / A


def ssd_reference(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence position by position: Eq. 10-11 without the skip term.

    Args:
        x: (g, l, h, p). input_scale, log_decay: (g, l, h). B, C: (g, l, n), shared by all heads.
        initial_state: (g, h, n, p), zeros where None.

    Returns:
        y (g, l, h, p) and the state after the last position (g, h, n, p).
    """
    groups, length, heads, width = x.shape
    x = x * input_scale[..., None]
    state = (
        x.new_zeros(groups, heads, B.shape[-1], width) if initial_state is None else initial_state
    )
    outputs = []
    for n in range(length):
        update = B[:, n, None, :, None] * x[:, n, :, None, :]  # (g, h, n, p)
        state = log_decay[:, n].exp()[:, :, None, None] * state + update  # Eq. 10
        outputs.append((C[:, n, None, :, None] * state).sum(-2))  # Eq. 11
    return torch.stack(outputs, 1) if outputs else torch.empty_like(x), state


def ssd_chunked(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence that `ssd_reference` defines as matrix products over chunks.

    Decays are only ever exponentiated as differences that are <= 0, so no decay, however strong,
    overflows.
    """
    groups, length, heads, width = x.shape
    x, log_decay, B, C = _into_chunks(
        x * input_scale[..., None].to(x.dtype), log_decay, B, C, chunk_size
    )
    chunk = x.shape[2]
    x = x.transpose(2, 3)  # (g, c, h, q, p)
    cumulative = log_decay.cumsum(2).transpose(2, 3)  # (g, c, h, q)

    # Within a chunk: Y = (C B^T * decay from j to i) X, one C B^T for all heads.
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    between = cumulative[..., :, None] - cumulative[..., None, :]  # (g, c, h, q, q)
    decay = between.masked_fill(future, float("-inf")).exp().to(x.dtype)
    scores = C @ B.transpose(-1, -2)  # (g, c, q, q)
    y = (scores[:, :, None] * decay) @ x  # (g, c, h, q, p)

    # What each chunk adds to the state at its end, and what the state at its start gives to
    # every position.
    to_end = (cumulative[..., -1:] - cumulative).exp().to(x.dtype)  # (g, c, h, q)
    added = B.transpose(-1, -2)[:, :, None] @ (x * to_end[..., None])  # (g, c, h, n, p)
    entering, state = _pass_states(added, cumulative[..., -1], initial_state)
    if entering is not None:
        from_state = C[:, :, None] @ entering.to(C.dtype)  # (g, c, h, q, p)
        y = y + from_state * cumulative.exp()[..., None].to(x.dtype)
    return y.transpose(2, 3).reshape(groups, -1, heads, width)[:, :length], state


# Half of the range of a chunk's decay may be exponentiated in float32 (exp(88) overflows) with room
# for products.
MAX_FACTORED_DECAY = 120.0


def ssd_factored(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the same recurrence with one product for all heads.

    The decay is split into a factor of i and a factor of j: exp(cs_i - cs_j) =
    exp(cs_i - m) exp(m - cs_j), cs the cumulative decay, m the middle of its range. A chunk whose
    decay spans more than `MAX_FACTORED_DECAY` would overflow, and in float16
    one of far less: `ssd_chunked` then takes over.
    """
    groups, length, heads, width = x.shape
    chunked = _into_chunks(x, log_decay, B, C, chunk_size)
    cumulative = chunked[1].cumsum(2)  # (g, c, q, h)
    overflows = float(cumulative.detach()[:, :, -1].amin()) < -MAX_FACTORED_DECAY
    if overflows or x.dtype == torch.float16:
        return ssd_chunked(x, input_scale, log_decay, B, C, initial_state, chunk_size)
    x, _, B, C = chunked
    chunks, chunk = x.shape[1:3]
    middle = cumulative[:, :, -1:] / 2  # (g, c, 1, h)
    scale = F.pad(input_scale, (0, 0, 0, chunks * chunk - length)).reshape(cumulative.shape)
    rising = (torch.exp(middle - cumulative) * scale).to(x.dtype)
    falling = torch.exp(cumulative - middle).to(x.dtype)
    scaled = (x * rising[..., None]).flatten(-2)  # (g, c, q, h * p)
    y = (C @ B.transpose(-1, -2)).tril() @ scaled

    total = cumulative[:, :, -1]  # (g, c, h)
    added = B.transpose(-1, -2) @ scaled  # (g, c, n, h * p)
    added = added.reshape(*added.shape[:-1], heads, width)  # (g, c, n, h, p)
    added = (added * torch.exp(total - middle[:, :, 0])[:, :, None, :, None].to(x.dtype)).transpose(
        2, 3
    )
    entering, state = _pass_states(added, total, initial_state)
    if entering is not None:
        at_middle = entering * torch.exp(middle[:, :, 0])[..., None, None].to(
            entering.dtype
        )  # (g, c, h, n, p)
        y = y + C @ at_middle.transpose(2, 3).flatten(-2).to(C.dtype)
    y = y.reshape(*y.shape[:-1], heads, width) * falling[..., None]
    return y.reshape(groups, -1, heads, width)[:, :length], state


def _into_chunks(
    x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut (g, l, ...) into (g, c, q, ...); padding has decay 1, input 0: it changes no state."""
    groups, length = x.shape[:2]
    chunk = max(1, min(chunk_size, length))
    padding = -length % chunk if length else 1  # of an empty sequence, one chunk that does nothing
    if padding:
        x = F.pad(x, (0, 0, 0, 0, 0, padding))
        log_decay, B, C = (F.pad(tensor, (0, 0, 0, padding)) for tensor in (log_decay, B, C))
    chunks = (length + padding) // chunk
    return (
        x.reshape(groups, chunks, chunk, *x.shape[2:]),
        log_decay.reshape(groups, chunks, chunk, log_decay.shape[-1]),
        B.reshape(groups, chunks, chunk, B.shape[-1]),
        C.reshape(groups, chunks, chunk, C.shape[-1]),
    )


def _pass_states(
    added: Tensor, log_decay: Tensor, initial_state: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Pass the state from chunk to chunk.

    Args:
        added: what each chunk adds, (g, c, h, n, p). log_decay: over each chunk, (g, c, h).

    Returns:
        the state at the start of every chunk (g, c, h, n, p), None where it is zero; the state at
        the end.
    """
    chunks = added.shape[1]
    if initial_state is None and chunks == 1:
        return None, added[:, 0]
    decay = log_decay.exp()[..., None, None].to(added.dtype)
    state = torch.zeros_like(added[:, 0]) if initial_state is None else initial_state
    entering = []
    for index in range(chunks):
        entering.append(state)
        state = decay[:, index] * state + added[:, index]
    return torch.stack(entering, 1), state


BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": ssd_reference,
    "torch": ssd_chunked,
    "torch_factored": ssd_factored,
}


def ssd(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Run the recurrence with a back-end of `BACKENDS`; the rest is as for `ssd_reference`."""
    if backend == "reference":
        return ssd_reference(x, input_scale, log_decay, B, C, initial_state)
    return BACKENDS[backend](x, input_scale, log_decay, B, C, initial_state, chunk_size)


def resolve_backend(requested: str, device: torch.device) -> str:
    """Name the back-end that a tensor on this device runs on; `"auto"` chooses."""
    if requested != "auto":
        return requested
    return (
        "torch_factored" if device.type == "cpu" and not torch.compiler.is_compiling() else "torch"
    )
