# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""State-space duality: the recurrence of Eq. 10-11, its forms, and the choice between them.

Axes: g sequences (batch x scans), l positions, h heads, p head width, n state width, c chunks,
q positions of a chunk. All forms take what is already discretised: `log_decay` = Delta A (Eq. 12)
and `input_scale`, with B-bar = input_scale B (Eq. 13).
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .matmul import multiply
from .ssd_factored import MAX_FACTORED_DECAY, into_chunks, ssd_factored, state_dtype
from .ssd_mamba import load_kernels, ssd_mamba
from .ssd_triton import MAX_STATE, MAX_WIDTH, ssd_triton
from .triton_support import INTERPRETED


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
    chunk_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence position by position: Eq. 10-11 without the skip term.

    Args:
        x: (g, l, h, p). input_scale, log_decay: (g, l, h). B, C: (g, l, n), shared by all heads.
        initial_state: (g, h, n, p), zeros where None. chunk_size: not used.

    Returns:
        y (g, l, h, p) in the dtype of x and the state after the last position (g, h, n, p), which
        is float32 at least.
    """
    groups, length, heads, width = x.shape
    dtype = state_dtype(x, log_decay)
    inputs, decay = x * input_scale[..., None].to(dtype), log_decay.to(dtype).exp()
    state = inputs.new_zeros(groups, heads, B.shape[-1], width)
    state = state if initial_state is None else initial_state.to(dtype)
    outputs = []
    for n in range(length):
        update = B[:, n, None, :, None] * inputs[:, n, :, None, :]  # (g, h, n, p)
        state = decay[:, n, :, None, None] * state + update  # Eq. 10
        outputs.append((C[:, n, None, :, None] * state).sum(-2).to(x.dtype))  # Eq. 11
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
    overflows. Products of matrices are in the dtype of x, all else in float32 at least.
    """
    groups, length, heads, width = x.shape
    dtype, chunk = state_dtype(x, log_decay), max(1, min(chunk_size, length))
    if not length:
        empty = x.new_zeros(groups, heads, B.shape[-1], width, dtype=dtype)
        return torch.empty_like(x), empty if initial_state is None else initial_state.to(dtype)
    scaled = into_chunks(x * input_scale[..., None].to(dtype), chunk).transpose(2, 3)
    log_decay, B, C = (into_chunks(tensor, chunk) for tensor in (log_decay.to(dtype), B, C))
    cumulative = log_decay.cumsum(2).transpose(2, 3)  # (g, c, h, q)

    # Within a chunk: Y = (C B^T * decay from j to i) X, one C B^T for all heads.
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    between = cumulative[..., :, None] - cumulative[..., None, :]  # (g, c, h, q, q)
    decay = between.masked_fill(future, float("-inf")).exp()
    scores = (C @ B.transpose(-1, -2))[:, :, None] * decay
    y = scores.to(x.dtype) @ scaled.to(x.dtype)  # (g, c, h, q, p)

    # What each chunk adds to the state at its end, and what the state at its start gives to
    # every position.
    to_end = (scaled * (cumulative[..., -1:] - cumulative).exp()[..., None]).to(x.dtype)
    added = (B.transpose(-1, -2)[:, :, None] @ to_end).to(dtype)  # (g, c, h, n, p)
    entering, state = _pass_states(added, cumulative[..., -1], initial_state)
    if entering is not None:
        from_state = C[:, :, None] @ entering.to(C.dtype)  # (g, c, h, q, p)
        y = y + from_state * cumulative.exp()[..., None]
    y = y.transpose(2, 3).reshape(groups, -1, heads, width)
    return y[:, :length].to(x.dtype), state


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
    decay = log_decay.exp()[..., None, None]
    state = torch.zeros_like(added[:, 0])
    state = state if initial_state is None else initial_state.to(added.dtype)
    entering = []
    for index in range(chunks):
        entering.append(state)
        state = decay[:, index] * state + added[:, index]
    return torch.stack(entering, 1), state


def ssd_quadratic(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    needs_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrence as one dense matrix, for short sequences.

    y = exp(cs - m) * [tril(C B^T) (x^ exp(m - cs)) + C S exp(m)], cs the cumulative decay, m the
    middle of its range. Decays that this form cannot hold go to `ssd_factored`, which halves.
    """
    _, length, heads, width = x.shape
    if not length or -float(log_decay.detach().sum(1).amin()) > MAX_FACTORED_DECAY:
        return ssd_factored(x, input_scale, log_decay, B, C, initial_state, chunk_size)
    dtype = state_dtype(x, log_decay)
    B, C = B.to(dtype), C.to(dtype)
    cumulative = log_decay.to(dtype).cumsum(1)  # (g, l, h)
    middle = cumulative[:, -1:] / 2  # m cancels, but its gradient halves what rounding leaves
    rising = input_scale * torch.exp(middle - cumulative)
    falling = torch.exp(cumulative - middle)[..., None]
    scaled = (x * rising[..., None]).flatten(-2)  # (g, l, h * p)
    y = multiply((C @ B.mT).tril(), scaled)
    entering = None
    if initial_state is not None:
        entering = initial_state.to(dtype) * torch.exp(middle.transpose(1, 2))[..., None]
        entering = entering.transpose(1, 2).flatten(-2)
        y = y + multiply(C, entering)
    y = (torch.unflatten(y, -1, (heads, width)) * falling).to(x.dtype)
    if not needs_state:
        return y, None
    state = multiply(B.mT, scaled)  # (g, n, h * p), relative to the middle
    state = state if entering is None else state + entering
    state = torch.unflatten(state, -1, (heads, width)) * falling[:, -1:]
    return y, state.transpose(1, 2)


BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "reference": ssd_reference,
    "torch": ssd_chunked,
    "torch_factored": ssd_factored,
    "quadratic": ssd_quadratic,
    "triton": ssd_triton,
    "mamba_ssm": ssd_mamba,
}

# Sequences up to this length are faster as one dense matrix than in chunks.
QUADRATIC_LENGTH = 128

BACKEND_VARIABLE = "MDM_KERNEL_BACKEND"

# Every scan of every block asks: the file system is searched once.
find_spec = cache(importlib.util.find_spec)


def ssd(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
    needs_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrence with a back-end of `BACKENDS`; the rest is as for `ssd_reference`.

    Without `needs_state`, the state after the last position is None where it would cost something.
    A named back-end is taken at its word; `"auto"` asks `resolve_backend`.

    Raises:
        ValueError: the back-end is unknown or cannot run on these tensors.
    """
    sizes = (B.shape[-1], x.shape[-1])
    if backend == "auto":
        backend = resolve_backend(backend, x.device, x.shape[1], x.dtype, sizes)
    else:
        _check_backend(backend, "`backend`", x.device, x.dtype, sizes)
    inputs = (x, input_scale, log_decay, B, C, initial_state, chunk_size)
    options = {"needs_state": needs_state} if backend == "quadratic" else {}
    return BACKENDS[backend](*inputs, **options)


def resolve_backend(
    requested: str,
    device: torch.device,
    length: int | None = None,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int] = (0, 0),
    is_compiled: bool = False,
) -> str:
    """Name the back-end for tensors of this device and dtype and sequences of this length.

    The environment variable `MDM_KERNEL_BACKEND` wins over `requested`, the configuration's
    `kernel_backend`; `"auto"` chooses. A length of None is a long one. `sizes` are those of the
    state and of a head, where they are known; `is_compiled` asks what `torch.compile` will get.

    Raises:
        ValueError: the back-end is unknown or cannot run on such tensors.
    """
    override = os.environ.get(BACKEND_VARIABLE)
    name, source = (override, BACKEND_VARIABLE) if override else (requested, "`kernel_backend`")
    if name != "auto":
        _check_backend(name, source, device, dtype, sizes)
        return name
    if device.type == "cuda" and unusable("triton", device, dtype, sizes) is None:
        return "triton"
    if device.type != "cpu" or is_compiled or torch.compiler.is_compiling():
        return "torch"  # the others look at the decays to choose their blocks
    return "quadratic" if length is not None and length <= QUADRATIC_LENGTH else "torch_factored"


def unusable(
    backend: str, device: torch.device, dtype: torch.dtype, sizes: tuple[int, int] = (0, 0)
) -> str | None:
    """Say why a back-end cannot run on such tensors, None where it can."""
    if backend not in ("triton", "mamba_ssm"):
        return None
    if device.type != "cuda" and not (backend == "triton" and INTERPRETED):
        return f"it needs tensors on a CUDA device, and these are on {device.type}"
    if dtype == torch.float64:
        return "it has no float64"
    if (find_spec("triton") if backend == "triton" else load_kernels()) is None:
        return f'{backend} is not installed: pip install "modeling-mdm[kernels]"'
    if backend == "triton" and not (sizes[0] <= MAX_STATE and sizes[1] <= MAX_WIDTH):
        return (
            f"it holds a state_size of up to {MAX_STATE} and a head_dim of up to {MAX_WIDTH}, and "
            f"these are {sizes[0]} and {sizes[1]}"
        )
    return None


def _check_backend(
    backend: str, source: str, device: torch.device, dtype: torch.dtype, sizes: tuple[int, int]
) -> None:
    if backend not in BACKENDS:
        names = ", ".join(repr(name) for name in ("auto", *BACKENDS))
        raise ValueError(f"{source} is {backend!r}; choose one of {names}")
    reason = unusable(backend, device, dtype, sizes)
    if reason is not None:
        raise ValueError(f"{source} is {backend!r}, but {reason}; choose 'auto' or 'torch'")
