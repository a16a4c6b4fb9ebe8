# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recurrence of Eq. 10-11 on the official Mamba-2 kernels, where `mamba_ssm` is installed.

The kernels take one step size for both decay and input: H_n = exp(s A) H_{n-1} + s B x. With A = -1
and s = -log_decay the decay is ours, per sequence, head and position; s x stands for input_scale x
once x is multiplied by input_scale / s. B and C are one group, shared by all heads; D, z, softplus
and the bias of the step are left out.

Axes: g sequences, l positions, h heads, p head width, n state width.
"""

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A step of the kernels may be 0, which no x can be divided by; exp(-1e-8) is 1 in float32.
SMALLEST_STEP = 1e-8
KERNELS, MAMBA_1 = "mamba_ssm.ops.triton.ssd_combined", "selective_scan_cuda"


@functools.cache
def load_kernels() -> Callable[..., Any] | None:
    """Return `mamba_chunk_scan_combined`, or None where mamba_ssm is not installed.

    Releases of mamba_ssm up to 2.3.2 import the compiled kernels of Mamba-1 at once, whether or not
    they were built; later ones ask first. The Mamba-2 kernels do not use them, so an empty module
    takes their place where they are missing, while mamba_ssm is imported and no longer.
    """
    if importlib.util.find_spec("mamba_ssm") is None or importlib.util.find_spec("triton") is None:
        return None
    try:
        module = importlib.import_module(KERNELS)
    except ImportError as error:
        if error.name != MAMBA_1:
            return None
        sys.modules[MAMBA_1] = types.ModuleType(MAMBA_1)
        try:
            module = importlib.import_module(KERNELS)
        except ImportError:
            return None
        finally:
            del sys.modules[MAMBA_1]
    scan: Callable[..., Any] = module.mamba_chunk_scan_combined
    return scan


def ssd_mamba(
    x: Tensor,
    input_scale: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence that `ssd_reference` defines with the official Mamba-2 kernels.

    x, B and C may be of half precision; decays, steps and states are float32.
    """
    kernels = load_kernels()
    if kernels is None:
        raise ValueError(
            '`backend` is "mamba_ssm", which is not installed: '
            'pip install "modeling-mdm[kernels]", or choose "auto"'
        )
    groups, length, heads, width = x.shape
    if initial_state is not None:
        initial_state = (
            initial_state.float().mT.contiguous()
        )  # (g, h, p, n), as the kernels have it
    if not length:
        empty = x.new_zeros(groups, heads, B.shape[-1], width, dtype=torch.float32)
        return torch.empty_like(x), empty if initial_state is None else initial_state.mT
    # A floor that lets the gradient through: what reads nothing still passes the state on.
    step = -log_decay.float()
    step = step + (SMALLEST_STEP - step).clamp(min=0).detach()
    scaled = (x * (input_scale / step)[..., None]).to(x.dtype)
    y, state = kernels(
        scaled,
        step,
        torch.full((heads,), -1.0, device=x.device),
        B[:, :, None],
        C[:, :, None],
        chunk_size,
        initial_states=initial_state,
        return_final_states=True,
    )
    return y, state.float().mT
