# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is computed and kept in float32 at least, whatever type the weights have.

Times, places, running statistics and logarithms: bfloat16 has 8 bits, so it tells 0.999 from 1 no
more than 513 from 514, and a hundredth of the way to a mean is rounded to nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Give float32 for a shorter type, and any other as it is."""
    return torch.promote_types(dtype, torch.float32)


class KeepsPrecision:
    """Keeps some tensors of a module in float32 where the module is cast to a shorter type.

    To be named before `nn.Module` among the parents. `from_pretrained` asks for the same by
    `_keep_in_fp32_modules_strict`.
    """

    precise: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        tensors = [getattr(self, name) for name in self.precise]
        tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]

        def careful(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == at_least_float32(moved.dtype):
                return moved
            if not any(tensor is one for one in tensors):
                return moved
            return tensor.to(moved.device, at_least_float32(tensor.dtype))

        return super()._apply(careful, *args, **kwargs)  # type: ignore[misc]


def cast_parameters_alike(model: nn.Module) -> None:
    """Let a cast reach every parameter of a model; buffers keep their precision.

    For DeepSpeed, which flattens the parameters of a group and needs them of one type.
    """
    for module in model.modules():
        if precise := getattr(module, "precise", ()):
            module.precise = tuple(name for name in precise if name not in module._parameters)
