# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all Triton kernels share: an import that may fail, what is refused, and the launch.

A kernel finds `tl` among the names of its own file, so each file of kernels imports it from here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    kernel: Any = triton.jit
    # Triton reads this once, when the kernels are defined.
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError:  # all files of kernels still import; `require_triton` says what to install
    triton = tl = None
    INTERPRETED = False

    def kernel(function: Any) -> Any:
        """Leave a kernel as it is: nothing can compile it."""
        return function


def require_triton(x: Tensor) -> None:
    """Refuse what the kernels cannot compute.

    Raises:
        ValueError: without Triton, away from a CUDA device (but in Triton's interpreter), or for a
            type that has no matrix product there.
    """
    if triton is None:
        raise ValueError(
            "back-end 'triton' needs Triton, which is not installed: install "
            "'modeling-mdm[kernels]' or choose the back-end 'torch'"
        )
    if x.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"back-end 'triton' needs CUDA tensors, got a tensor on {str(x.device)!r}: move the "
            "model, or choose the back-end 'torch' or 'auto'"
        )
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"back-end 'triton' computes in float32, float16 and bfloat16, got {x.dtype}: choose "
            "the back-end 'torch' or 'reference'"
        )


def blocks(size: int, block: int) -> int:
    """Count the blocks that cover a size."""
    return -(-size // block)


def launcher(
    name: str, launch: Callable[..., Any], empty: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap a function that launches kernels: compiled code sees it as one opaque operator.

    Args:
        name: of the operator. launch: annotated with types, from which its schema is read.
        empty: makes uninitialised outputs of the right shapes and types from the same arguments.
    """
    operator = torch.library.custom_op(f"modeling_mdm::{name}", launch, mutates_args=())
    operator.register_fake(empty)

    def run(*inputs: Any) -> Any:
        return operator(*inputs) if torch.compiler.is_compiling() else launch(*inputs)

    return run
