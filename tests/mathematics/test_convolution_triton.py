# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reordering, convolution and SiLU in one Triton kernel: compilation, errors, numbers on a GPU.

Their numbers in the interpreter are among those of test_ssd_triton.py, of one process for all.
"""

from pathlib import Path

import pytest
import torch

from modeling_mdm import convolution_triton as host
from modeling_mdm import triton_support

triton = pytest.importorskip("triton")
from triton_cases import CASES, compare_convolution  # noqa: E402
from triton_compile import SHARED_MEMORY, compile_all  # noqa: E402

# Compilers and the interpreter may share their cores with other tests.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ["convolution_kernel", "sum_gradient_kernel", "input_gradient_kernel"]
CONVOLUTION_CASES = [name for name in CASES if name.startswith("convolution")]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_compiles_for_an_h100_without_spills(monkeypatch, shared):
    """One guidance pair of the `mdm-1b` preset: x as the channels of all heads, or B and C."""

    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    channels = 4096 if shared else 256
    order = empty(2, 4, 1024, dtype=torch.int64)
    x = empty(2, 1024, channels) if shared else empty(2, 4, 1024, channels)
    weight, bias, tail = empty(4, channels, 4), empty(4, channels), empty(2, 4, 3, channels)

    def launches():
        y = host._forward(x, order, weight, bias, tail)
        host._backward(x, order, order, weight, bias, tail, y)

    for name, versions in compile_all(monkeypatch, host, KERNELS, launches).items():
        (version,) = versions
        assert version.spills == 0, name
        assert version.shared <= SHARED_MEMORY, name


def test_errors_name_the_cause_and_the_fix(monkeypatch):
    x, order = torch.zeros(1, 3, 2), torch.arange(3)[None, None]
    with pytest.raises(ValueError, match=r"needs CUDA tensors, got a tensor on 'cpu': move"):
        host.convolution_triton(x, order, order, torch.zeros(1, 2, 4), torch.zeros(1, 2))
    monkeypatch.setattr(triton_support, "INTERPRETED", True)
    with pytest.raises(ValueError, match=r"up to 7 taps, got conv_kernel=8: choose"):
        host.convolution_triton(x, order, order, torch.zeros(1, 2, 8), torch.zeros(1, 2))


def test_no_steps(monkeypatch):
    monkeypatch.setattr(triton_support, "INTERPRETED", True)
    x, order = torch.zeros(1, 3, 2), torch.arange(3)[None, None]
    none = order[:, :, :0]
    y = host.convolution_triton(x, none, order, torch.zeros(1, 2, 4), torch.zeros(1, 2))
    assert y.shape == (1, 1, 0, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("steps", [4096, 1000])
def test_equals_the_ground_truth_on_a_gpu(dtype, shared, steps):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    errors = compare_convolution(
        4096, steps, shared, channels=300, scans=4, device="cuda", dtype=dtype
    )
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert {name: e for name, e in errors.items() if not e < limit} == {}
