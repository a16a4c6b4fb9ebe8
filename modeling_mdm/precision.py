# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is computed and kept in float32 at least, whatever type the weights have.

Times, places, running statistics and logarithms: bfloat16 has 8 bits, so it tells 0.999 from 1 no
more than 513 from 514, and a hundredth of the way to a mean is rounded to nothing.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging
from transformers.utils.import_utils import is_torch_bf16_gpu_available


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


class RMSNorm(nn.RMSNorm):
    """torch's RMS norm, in the type of its input: under autocast that is not its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., size); the mean square is taken in float32."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


logger = logging.get_logger(__name__)

# As `torch.cpu.get_capabilities` calls them, on x86 and on Arm.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
# Settings of oneDNN's ONEDNN_MAX_CPU_ISA that leave those instructions unused.
_HELD_BELOW = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)
# `accelerate launch` writes the type that it was told to use here.
_LAUNCHER = "ACCELERATE_MIXED_PRECISION"
_SIDE = 192  # of the matrices that are timed: milliseconds even where bfloat16 is slow
_LONG_ENOUGH = 0.02  # seconds of timing in each type


def has_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Tell whether a device has instructions for bfloat16.

    On a CPU oneDNN must also be there to use them, and free to (`ONEDNN_MAX_CPU_ISA`).
    """
    kind = torch.device(device).type
    if kind == "cuda":
        available = torch.cuda.is_available()
        return available and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return bool(is_torch_bf16_gpu_available())
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not supported() or not torch.backends.mkldnn.enabled:
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _HELD_BELOW:
        return False
    return any(_capabilities().get(name) for name in _INSTRUCTIONS)


def _capabilities() -> dict[str, Any]:
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def default_device() -> str:
    """Name the kind of device that training runs on unless it is told to use the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def use_bfloat16(asked: bool | str, device: str | torch.device = "cpu") -> bool:
    """Decide whether to compute in bfloat16.

    Args:
        asked: `"auto"`: where the device has instructions for it, unless `accelerate launch` was
            told a type, which then stands. True, False, or a word for either: as it says; True on
            a CPU that emulates bfloat16 warns once, with the factor measured at that moment.
        device: where it is computed.

    Raises:
        ValueError: `asked` is nothing of these.
    """
    word = str(asked).strip().lower()
    launched = os.environ.get(_LAUNCHER)
    if word == "auto" and launched is None:
        return has_bfloat16(device)
    if word in ("auto", "true", "yes", "1"):
        chosen = word != "auto" or launched == "bf16"
        warn_if_emulated(torch.bfloat16 if chosen else torch.float32, device)
        return chosen
    if word in ("false", "no", "0"):
        return False
    raise ValueError(f"bf16={asked!r} is no choice: use auto, true or false.")


def autocast(bfloat16: bool, device: str | torch.device) -> AbstractContextManager[object]:
    """Compute in bfloat16 inside a `with` block, if that was decided."""
    if not bfloat16:
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def load_dtype(bfloat16: bool) -> str | torch.dtype:
    """The `dtype` of `from_pretrained` where that was decided: as stored, or float32."""
    return "auto" if bfloat16 else torch.float32


def warn_if_emulated(dtype: torch.dtype, device: str | torch.device) -> None:
    """Warn, once in a process, of computing in bfloat16 on a CPU that emulates it."""
    if dtype != torch.bfloat16 or torch.device(device).type != "cpu" or has_bfloat16(device):
        return
    vectors = torch.backends.cpu.get_cpu_capability()
    logger.warning_once(
        f"This CPU emulates bfloat16 ({processor_name()}, {vectors}): a product of matrices takes "
        f"{bfloat16_cost():.1f} times as long as in float32, measured just now. Use float32: "
        "`--bf16 false`, or `dtype=torch.float32` in `from_pretrained`."
    )


def warn_if_computes_emulated(dtype: torch.dtype, device: torch.device) -> None:
    """As `warn_if_emulated`, of weights of this dtype or of autocast around the call."""
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    warn_if_emulated(dtype, device)


@lru_cache
def bfloat16_cost() -> float:
    """How many times as long this CPU takes for a product in bfloat16 as in float32, measured.

    On one thread: several of a busy machine wait for each other longer than they compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return _seconds_of_product(torch.bfloat16) / _seconds_of_product(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _seconds_of_product(dtype: torch.dtype) -> float:
    """The shortest of the calls that fit into some milliseconds: one that nobody disturbed."""
    # Not random: nobody's noise may depend on whether this was measured.
    matrix = torch.full((_SIDE, _SIDE), 0.5, dtype=dtype)
    taken: list[float] = []
    end = time.perf_counter() + _LONG_ENOUGH
    while len(taken) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - start)
    return min(taken)


def processor_name() -> str:
    """Name the CPU's model."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else str(_capabilities().get("cpu_name", "unknown CPU"))


def describe_processor(device: str | torch.device = "cpu") -> str:
    """Say what speed depends on: the processor's model, a CPU's vectors, its kind of bfloat16."""
    device = torch.device(device)
    kind = "in hardware" if has_bfloat16(device) else "emulated"
    name = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda" and torch.cuda.is_available():
        name = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        name = f"{device.type} beside {name}"
    return f"{name}, bfloat16 {kind}"
