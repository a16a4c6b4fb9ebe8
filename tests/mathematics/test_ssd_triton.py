# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the recurrence: numbers in the interpreter, compilation for an H100.

The interpreter multiplies bfloat16 wrongly and needs a process of its own, so numbers are float32
there; `gpu` tests make the same comparisons on a device.
"""

import importlib.util
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import modeling_mdm
from modeling_mdm import ssd_triton as host
from modeling_mdm import triton_support

triton = pytest.importorskip("triton")
from triton_cases import CASES, SLOW, compare_ssd  # noqa: E402
from triton_compile import SHARED_MEMORY, compile_all  # noqa: E402

# Compilers and the interpreter may share their cores with other tests.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ["scan_kernel", "states_kernel", "input_gradient_kernel", "shared_gradient_kernel"]
SSD_CASES = [name for name in CASES if name.startswith("ssd")]
CONVOLUTION_CASES = [name for name in CASES if name.startswith("convolution")]


def run_python(*arguments, **environment):
    """Run Python with this project importable and return what it prints."""
    paths = [str(ROOT), str(ROOT / "tests" / "support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def interpreted():
    """Give the errors of a case: one process of the interpreter for the fast, one for the slow."""

    @lru_cache
    def errors_of(speed):
        script = str(ROOT / "tests" / "support" / "triton_cases.py")
        return json.loads(run_python(script, speed, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"))

    return lambda case: errors_of("slow" if case in SLOW else "fast")[case]


def marked(cases):
    return [pytest.param(c, marks=pytest.mark.slow if c in SLOW else []) for c in cases]


@pytest.mark.parametrize("case", marked(SSD_CASES))
def test_equals_the_ground_truth_in_the_interpreter(interpreted, case):
    errors = interpreted(case)
    # A decay of 25 a step leaves sums of many terms of which few matter: 5 digits are left.
    limit = 5e-5 if "strong" in case else 3e-6
    assert errors
    assert {name: e for name, e in errors.items() if not e < limit} == {}


@pytest.mark.parametrize("case", marked(CONVOLUTION_CASES))
def test_the_convolution_equals_the_ground_truth_in_the_interpreter(interpreted, case):
    errors = interpreted(case)
    assert errors
    assert {name: e for name, e in errors.items() if not e < 1e-6} == {}


@pytest.mark.slow
def test_a_whole_model_runs_on_the_kernels(interpreted):
    """In the interpreter: training, and generation from a prompt cache."""
    errors = interpreted("decoder")
    assert {"loss", "images", "A_log", "conv_weight", "delta_bias"} <= set(errors)
    assert {name: e for name, e in errors.items() if not e < 1e-4} == {}


def launches(groups, length, heads, width, states, dtype=torch.bfloat16):
    """Make all launches of a forward and a backward pass, without data."""

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(groups, length, heads, width, dtype=dtype)
    B = C = empty(groups, length, states, dtype=dtype)
    scale, state = empty(groups, length, heads), empty(groups, heads, states, width)
    host._forward(x, scale, scale, B, C, state, 64)
    host._backward(x, scale, scale, B, C, state, x, state, 64)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((8, 1024, 64, 64, 128), id="1b"),
        pytest.param((1, 4096, 64, 64, 128), id="1b-segments", marks=pytest.mark.slow),
        pytest.param((32, 256, 6, 64, 64), id="defaults", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_an_h100_on_tensor_cores_without_spills(monkeypatch, sizes):
    compiled = compile_all(monkeypatch, host, KERNELS, lambda: launches(*sizes))
    for name, versions in compiled.items():
        assert versions, name
        for version in versions:
            assert version.spills == 0, name
            assert version.tensor_core_products > 0, name
            assert version.shared <= SHARED_MEMORY, name


def test_imports_without_triton_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    name, path = "modeling_mdm.ssd_without_triton", ROOT / "modeling_mdm" / "ssd_triton.py"
    spec = importlib.util.spec_from_file_location(name, path)
    without = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, without)
    for file in ("triton_support", "ssd_triton_kernels"):  # imported anew, and put back at the end
        monkeypatch.setattr(modeling_mdm, file, getattr(modeling_mdm, file))
        monkeypatch.delitem(sys.modules, f"modeling_mdm.{file}")
    spec.loader.exec_module(without)
    row = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match=r"install 'modeling-mdm\[kernels\]'"):
        without.ssd_triton(row[..., None], row, row, row, row)


def test_errors_name_the_cause_and_the_fix():
    row = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match=r"needs CUDA tensors, got a tensor on 'cpu': move"):
        host.ssd_triton(row[..., None], row, row, row, row)


def test_errors_of_type_and_size(monkeypatch):
    monkeypatch.setattr(triton_support, "INTERPRETED", True)
    row, wide = torch.zeros(1, 4, 2), torch.zeros(1, 4, 500)
    with pytest.raises(ValueError, match=r"got torch.float64: choose the back-end 'torch'"):
        host.ssd_triton(row[..., None].double(), row, row, row, row)
    with pytest.raises(ValueError, match=r"state_size 128 and head_dim 128, got 500 and 1"):
        host.ssd_triton(row[..., None], row, row, wide, wide)


def test_empty_sequence_keeps_the_state(monkeypatch):
    monkeypatch.setattr(triton_support, "INTERPRETED", True)
    row, state = torch.zeros(1, 0, 2), torch.randn(1, 2, 2, 1)
    y, last = host.ssd_triton(row[..., None], row, row, row, row, state)
    assert y.shape == (1, 0, 2, 1)
    assert torch.equal(last, state)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 63, 64, 1000, 4096])
def test_equals_the_ground_truth_on_a_gpu(dtype, length):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.utils.deterministic.fill_uninitialized_memory = True
    errors = compare_ssd(
        length, heads=4, width=64, states=128, chunk=64, decay=0.2, device="cuda", dtype=dtype
    )
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    assert {name: e for name, e in errors.items() if not e < limit} == {}


@pytest.mark.parametrize("asked, exactness", [("high", "tf32"), ("highest", "tf32x3")])
def test_products_are_as_exact_as_torch_was_told(asked, exactness):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        assert host._precision() == exactness
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_setting_of_trainer_is_followed_too():
    # In a process of its own: afterwards torch refuses to say what its older function set.
    said = run_python(
        "-c",
        "from transformers.utils.import_utils import enable_tf32; "
        "from modeling_mdm import ssd_triton; enable_tf32(True); told = ssd_triton._precision(); "
        "enable_tf32(False); print(told, ssd_triton._precision())",
    )
    assert said.split()[-2:] == ["tf32", "tf32x3"]
