# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a machine is and what it can do at best: peaks of matrix products, memory and exp."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from modeling_mdm.matmul import project, takes_onednn
from modeling_mdm.planning.gpus import GPUS
from modeling_mdm.precision import has_bfloat16, processor_name

from .timing import stopwatch

# Side of matrices in bfloat16 on a CPU that emulates it: as fast there as any, at a few Gflop/s.
EMULATED_SIDE = 256


@dataclass(frozen=True)
class Peaks:
    """The best that a machine can do.

    matmul: flop/s of `torch.mm`, by dtype; `float32 by oneDNN` where that is another library's.
    bandwidth: bytes/s, read and written both counted.
    exponentials: exp/s. source: how the figures were obtained.
    """

    matmul: dict[str, float]
    bandwidth: float
    exponentials: float
    source: str

    def products(self, dtype: str) -> float:
        """Flop/s of matrix products by the faster library."""
        return max(rate for name, rate in self.matmul.items() if name.split()[0] == dtype)


# exp: 16 a clock of each of 132 multiprocessors at 1.755 GHz.
GIVEN = {
    name: Peaks(
        GPUS[name].products,
        GPUS[name].bandwidth,
        3.7e12,
        f"NVIDIA's data sheet, {name.upper()} SXM",
    )
    for name in ("h100", "h200")
}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without its module: `float32`."""
    return str(dtype).removeprefix("torch.")


def measure_peaks(device: torch.device, small: bool = False) -> Peaks:
    """Measure this machine's peaks, with the threads that torch is set to.

    Args:
        small: on sizes that take no time, for a dry run; the figures mean nothing.
    """
    on_gpu = device.type == "cuda"
    sample = 1e-4 if small else 0.02
    side = 128 if small else 8192 if on_gpu else 2048
    matmul = {}
    for dtype in (torch.float32, torch.bfloat16):
        is_slow = dtype == torch.bfloat16 and not has_bfloat16(device)
        rows = min(side, EMULATED_SIDE) if is_slow else side
        a, b = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, sample)
        matmul[dtype_name(dtype)] = 2 * rows**3 / seconds
    matmul |= _onednn_peak(side, sample) if device.type == "cpu" else {}
    # Far larger than any cache.
    source = torch.randn((1 << 16) if small else (1 << 28) if on_gpu else (1 << 26), device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / _best(lambda: target.copy_(source), device, sample)
    inside = torch.randn(1 << (24 if on_gpu else 16), device=device)  # on a CPU within its cache
    result = torch.empty_like(inside)
    rate = inside.numel() / _best(lambda: torch.exp(inside, out=result), device, sample)
    return Peaks(matmul, bandwidth, rate, f"measured on {torch.get_num_threads()} threads")


@torch.no_grad()
def _onednn_peak(side: int, sample: float) -> dict[str, float]:
    layer, x = torch.nn.Linear(side, side, bias=False), torch.randn(side, side)
    if not takes_onednn(x, layer.weight):
        return {}
    seconds = _best(partial(project, layer, x), x.device, sample)
    return {"float32 by oneDNN": 2 * side**3 / seconds}


def _best(call: Callable[[], object], device: torch.device, sample: float) -> float:
    """The median of the faster half: a peak is what the machine reaches undisturbed."""
    call()
    repeats = max(1, int(sample / max(stopwatch(call, device), 1e-7)))
    taken = sorted(stopwatch(call, device, repeats) for _ in range(7))
    return median(taken[:4])


def describe_machine(device: torch.device, peaks: Peaks) -> dict[str, Any]:
    """Say what a run ran on."""
    described = {
        "device": device.type,
        "name": processor_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "in hardware" if has_bfloat16(device) else "emulated",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "peaks": asdict(peaks),
        "huge_pages": _huge_pages(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["capability"] = f"{properties.major}.{properties.minor}"
        described["memory_bytes"] = properties.total_memory
    return described


def _huge_pages() -> str | None:
    """Linux's setting for transparent huge pages: with `always`, new memory costs less."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="utf-8") as file:
            return file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return None


def device_slug(device: torch.device) -> str:
    """Name of a device for a file: `cpu`, `nvidia-h100-80gb-hbm3`."""
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def versions() -> dict[str, str | None]:
    """Versions of what decides the speed; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "transformers", "triton", "mamba-ssm", "causal-conv1d"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    return found
