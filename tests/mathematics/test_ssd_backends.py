# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The factored back-end's memory and blocks, the choice of a back-end, the official kernels."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from modeling_mdm import ssd_factored as factored
from modeling_mdm.configuration_mdm import CHOICES
from modeling_mdm.ssd import (
    BACKENDS,
    QUADRATIC_LENGTH,
    resolve_backend,
    ssd,
    ssd_chunked,
    ssd_quadratic,
    unusable,
)
from modeling_mdm.ssd_factored import ssd_factored

float64 = torch.float64
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = ["x", "input_scale", "log_decay", "B", "C", "initial_state"]


def draw(length, groups=2, heads=3, width=2, state=4, dtype=float64, decay=1.0):
    """x, input_scale, log_decay, B, C, initial_state."""
    return [
        torch.randn(groups, length, heads, width, dtype=dtype),
        torch.rand(groups, length, heads, dtype=dtype),
        -decay * torch.rand(groups, length, heads, dtype=dtype),
        torch.randn(groups, length, state, dtype=dtype),
        torch.randn(groups, length, state, dtype=dtype),
        torch.randn(groups, heads, state, width, dtype=dtype),
    ]


def recurrence(x, input_scale, log_decay, B, C, state):
    """Eq. 10-11, one position after the other."""
    outputs = []
    for n in range(x.shape[1]):
        added = torch.einsum("gn,gh,ghp->ghnp", B[:, n], input_scale[:, n], x[:, n])
        state = torch.exp(log_decay[:, n])[..., None, None] * state + added
        outputs.append(torch.einsum("gn,ghnp->ghp", C[:, n], state))
    return torch.stack(outputs, 1), state


def compare(form, inputs, reads=("y", "state"), tolerance=1e-9, **options):
    """Outputs, last states and gradients of all inputs against the recurrence in float64."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    results = []
    for function, arguments, keywords in ((form, inputs, options), (recurrence, exact, {})):
        outputs = dict(zip(("y", "state"), function(*arguments, **keywords), strict=True))
        generator = torch.Generator().manual_seed(0)
        total = 0
        for name in reads:
            weight = torch.randn(outputs[name].shape, generator=generator, dtype=float64)
            total = total + (outputs[name] * weight).sum()
        slopes = torch.autograd.grad(total, arguments, allow_unused=True)
        results.append({**outputs, **dict(zip(NAMES, slopes, strict=True))})
    for name, truth in results[1].items():
        value = results[0][name]
        if truth is None:
            assert value is None or not value.any(), name
            continue
        error = (value.double() - truth).square().mean().sqrt()
        assert error <= tolerance * (1 + truth.square().mean().sqrt()), name


# --- the factored form


@examples(
    length=st.integers(1, 70),
    chunk_size=st.integers(1, 40),
    segment=st.sampled_from([1, 500, 2**20]),
    decay=st.sampled_from([0.0, 1.0, 8.0, 25.0, 200.0]),
    reads=st.sampled_from([("y",), ("state",), ("y", "state")]),
    form=st.sampled_from([ssd_factored, ssd_quadratic]),
)
@settings(max_examples=40, deadline=None)
def test_any_cut_into_segments_chunks_and_halves(length, chunk_size, segment, decay, reads, form):
    before = factored.SEGMENT_NUMBERS
    factored.SEGMENT_NUMBERS = segment
    try:
        compare(form, draw(length, decay=decay), reads, chunk_size=chunk_size)
    finally:
        factored.SEGMENT_NUMBERS = before


def test_chunks_are_halved_until_their_decay_can_be_factored():
    def levels(decay):
        x, _, log_decay, *_ = draw(128)
        return factored._plan(x, torch.full_like(log_decay, -decay), 4, 64).levels

    assert [levels(decay) for decay in (0.0, 1.9, 3.0, 7.0, 25.0, 1e4)] == [0, 0, 1, 2, 4, 6]


def plan_of(length, decay, chunk_size=64, groups=2, state=4, device="cpu"):
    x, _, log_decay, *_ = draw(length, groups=groups)
    log_decay = torch.full_like(log_decay, -decay)
    return factored._plan(x.to(device), log_decay, state, chunk_size)


def test_a_chunk_is_halved_only_beyond_the_limit():
    """Between the 61 positions of a chunk are 60 decays; the one into the first does not count."""
    plans = [plan_of(61, decay) for decay in (2.0, 2.001)]
    assert [(plan.levels, plan.chunk) for plan in plans] == [(0, 61), (1, 62)]
    assert plan_of(5, 1e4, chunk_size=1).levels == 0  # nothing lies between


def test_the_range_of_decays_is_summed_in_float32():
    log_decay = -torch.rand(2, 250, 3).bfloat16()
    exact = -log_decay.double()
    alone = factored.decay_range(log_decay, 250, 0)
    assert alone == pytest.approx(exact.sum(1).max().item(), rel=1e-6)
    blocks = exact.unflatten(1, (5, 50))
    within = factored.decay_range(log_decay, 50)
    assert within == pytest.approx(blocks[:, :, 1:].sum(2).max().item(), rel=1e-6)
    assert factored.decay_range(log_decay, 1) == 0


def test_decays_are_taken_from_before_a_chunk_where_half_the_limit_holds_them():
    """There the decay into the first position counts."""
    assert [plan_of(60, decay, 10).from_start for decay in (6.0, 6.001)] == [True, False]
    assert [plan_of(60, decay, 10).levels for decay in (6.0, 6.001)] == [0, 0]


def test_many_threads_and_other_devices_take_chunks_all_at_once(monkeypatch):
    assert not plan_of(60, 0.0, device="meta").from_start
    for threads, alone in ((1, True), (4, True), (5, False)):
        with monkeypatch.context() as several:
            several.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert plan_of(60, 0.0).from_start is alone


def test_chunks_are_equal_and_segments_hold_what_a_core_holds(monkeypatch):
    """A chunk's states or scores, whichever are more: groups x max(n, q) x heads x width."""
    plan = plan_of(130, 0.0)
    assert (plan.chunk, plan.segments, plan.length) == (44, [slice(0, 3)], 132)
    assert plan_of(130, 0.0, chunk_size=0).chunk == 1
    for state, numbers, step in ((4, 192, 2), (4, 191, 1), (4, 95, 1), (16, 384, 2), (16, 383, 1)):
        monkeypatch.setattr(factored, "SEGMENT_NUMBERS", numbers)
        starts = range(0, 5, step)
        expected = [slice(start, min(start + step, 5)) for start in starts]
        assert plan_of(40, 0.0, chunk_size=8, state=state).segments == expected


@pytest.mark.parametrize("with_state", [False, True])
def test_sequences_are_read_one_after_the_other_where_that_is_faster(monkeypatch, with_state):
    asked = []

    def is_faster_alone(a, b):
        asked.append((a.shape[-2], a.shape[-1], b.shape[-1]))
        return True

    monkeypatch.setattr(factored, "is_faster_alone", is_faster_alone)
    inputs = draw(20)
    inputs[5] = inputs[5] if with_state else torch.zeros_like(inputs[5])
    y, state = ssd_factored(*inputs[:5], inputs[5] if with_state else None, chunk_size=5)
    exact, last = recurrence(*inputs)
    torch.testing.assert_close(y, exact)
    torch.testing.assert_close(state, last)
    assert asked == [(5, 4, 3 * 2)]  # (q, n) by (n, h * p)


def test_a_sudden_decay_between_mild_ones():
    inputs = draw(90, dtype=torch.float32, decay=0.1)
    inputs[2][:, 37] = -500.0
    inputs[2][0, 60:63] = -40.0
    compare(ssd_factored, inputs, tolerance=1e-5)


def test_gradients_where_only_some_inputs_need_them():
    inputs = draw(20)
    inputs[4].requires_grad_()
    y, state = ssd_factored(*inputs, chunk_size=8)
    exact, _ = recurrence(*inputs)
    (slope,) = torch.autograd.grad(y.sum() + 0 * state.sum(), inputs[4])
    (truth,) = torch.autograd.grad(exact.sum(), inputs[4])
    torch.testing.assert_close(slope, truth)


def test_products_are_bfloat16_for_bfloat16_sequences_without_gradients_alone(monkeypatch):
    types = set()

    def multiply(a, b, out=None):
        types.add(a.dtype)
        return torch.matmul(a, b, out=out)

    monkeypatch.setattr(factored, "multiply", multiply)
    half, single, double = torch.bfloat16, torch.float32, float64
    for dtype, without, asked in (
        (half, half, single),
        (torch.float16, single, single),
        (single, single, single),
        (double, double, double),
    ):
        for decay, with_gradients in ((0.1, False), (25.0, False), (0.1, True), (25.0, True)):
            types.clear()
            with torch.set_grad_enabled(with_gradients):
                ssd_factored(*draw(20, dtype=dtype, decay=decay), chunk_size=8)
            assert types == {asked if with_gradients else without}


def test_two_uses_of_the_same_inputs_add_their_gradients():
    inputs = [tensor.requires_grad_() for tensor in draw(20)]
    once = torch.autograd.grad(ssd_factored(*inputs, chunk_size=8)[0].sum(), inputs)
    y = ssd_factored(*inputs, chunk_size=8)[0] + ssd_factored(*inputs, chunk_size=8)[0]
    first = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(y.sum(), inputs)
    for one, a, b in zip(once, first, second, strict=True):
        torch.testing.assert_close(a, 2 * one)
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [1.0, 25.0])
def test_autocast_leaves_the_arithmetic_in_float32(decay):
    inputs = [tensor.requires_grad_() for tensor in draw(40, dtype=torch.float32, decay=decay)]

    def results():
        y, state = ssd_factored(*inputs, chunk_size=8)
        return [y, state, *torch.autograd.grad(y.sum() + state.square().sum(), inputs)]

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        under = results()
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


def saved_numbers(form, inputs, **options):
    """Numbers that autograd holds between forward and backward, inputs and outputs left out."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = [tensor.requires_grad_() for tensor in inputs]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = form(*inputs, **options)
    for tensor in (*inputs, *outputs):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values()) / inputs[0].element_size()


def test_little_is_kept_between_forward_and_backward():
    """Far less than what autograd keeps of the same products: no matrix or state of a chunk."""
    inputs = draw(1024, groups=1, heads=4, width=16, state=32, dtype=torch.float32)
    own = saved_numbers(ssd_factored, inputs)
    assert own <= 2 * inputs[5].numel()
    assert own < saved_numbers(ssd_chunked, inputs) / 50


def test_only_the_states_before_segments_are_kept(monkeypatch):
    """Sixteen chunks of 64 positions, four a segment: n = 32 and the length count for nothing."""
    inputs = draw(1024, groups=1, heads=4, width=16, state=32, dtype=torch.float32)
    monkeypatch.setattr(factored, "SEGMENT_NUMBERS", 4 * 64 * 4 * 16)
    assert saved_numbers(ssd_factored, inputs) == 4 * inputs[5].numel()


# --- the choice


def test_configuration_offers_every_backend():
    assert set(CHOICES["kernel_backend"]) == {"auto", *BACKENDS}


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("MDM_KERNEL_BACKEND", raising=False)


def test_auto_chooses_by_device_and_length(monkeypatch):
    assert resolve_backend("auto", CPU) == "torch_factored"
    assert resolve_backend("auto", CPU, length=QUADRATIC_LENGTH) == "quadratic"
    assert resolve_backend("auto", CPU, length=QUADRATIC_LENGTH + 1) == "torch_factored"
    assert resolve_backend("auto", torch.device("meta"), length=4) == "torch"
    assert resolve_backend("auto", CPU, length=4, is_compiled=True) == "torch"
    for installed, name in ((None, "torch"), (object(), "triton")):
        monkeypatch.setattr("modeling_mdm.ssd.find_spec", lambda _, found=installed: found)
        assert resolve_backend("auto", CUDA, length=4) == name
        assert resolve_backend("auto", CUDA, length=4, dtype=float64) == "torch"
        assert resolve_backend("auto", CUDA, length=4, sizes=(128, 128)) == name
        assert resolve_backend("auto", CUDA, length=4, sizes=(129, 64)) == "torch"
        assert resolve_backend("auto", CUDA, length=4, sizes=(64, 256)) == "torch"
        assert resolve_backend("auto", CPU, length=4) == "quadratic"


def test_a_named_backend_is_taken_at_its_word():
    for name in ("reference", "torch", "torch_factored", "quadratic"):
        assert resolve_backend(name, CPU, length=1000) == name


def test_variable_wins_over_configuration_and_argument_over_both(monkeypatch):
    monkeypatch.setenv("MDM_KERNEL_BACKEND", "reference")
    assert resolve_backend("auto", CPU) == resolve_backend("torch", CPU) == "reference"
    ran = []
    for name in ("reference", "torch"):
        monkeypatch.setitem(BACKENDS, name, lambda *_, name=name: ran.append(name))
    ssd(*draw(4))
    ssd(*draw(4), backend="torch")
    assert ran == ["reference", "torch"]
    monkeypatch.setenv("MDM_KERNEL_BACKEND", "fast")
    with pytest.raises(ValueError, match="MDM_KERNEL_BACKEND is 'fast'; choose one of 'auto'"):
        resolve_backend("torch", CPU)


def test_auto_asks_by_what_the_tensors_are(monkeypatch):
    asked = []

    def choose(*arguments):
        asked.append(arguments)
        return "reference"

    monkeypatch.setattr("modeling_mdm.ssd.resolve_backend", choose)
    ssd(*draw(7, heads=5))
    ssd(*draw(9, width=6, state=8, dtype=torch.float32))
    assert asked == [("auto", CPU, 7, float64, (4, 2)), ("auto", CPU, 9, torch.float32, (8, 6))]


@pytest.mark.parametrize("backend", ["auto", "quadratic"])
def test_a_state_that_nobody_needs_is_left_out(backend):
    inputs = draw(5)
    exact, last = recurrence(*inputs)
    y, state = ssd(*inputs, backend=backend, needs_state=False)
    torch.testing.assert_close(y, exact)
    assert state is None
    torch.testing.assert_close(ssd(*inputs, backend=backend)[1], last)
    torch.testing.assert_close(ssd(*inputs, backend="torch", needs_state=False)[1], last)


def test_a_named_backend_is_asked_whether_it_can_run_on_these_tensors(monkeypatch):
    """In Triton's interpreter, where its kernels run on a CPU."""
    monkeypatch.setattr("modeling_mdm.ssd.INTERPRETED", True)
    monkeypatch.setattr("modeling_mdm.ssd.find_spec", lambda name: name == "triton" or None)
    assert unusable("triton", CPU, torch.float32, (4, 2)) is None
    assert "on a CUDA device, and these are on cpu" in unusable("mamba_ssm", CPU, torch.float32)
    with pytest.raises(ValueError, match="`backend` is 'triton', but it has no float64; choose"):
        ssd(*draw(4), backend="triton")
    with pytest.raises(ValueError, match=r"state_size of up to 128 .* these are 129 and 6;"):
        ssd(*draw(4, width=6, state=129, dtype=torch.float32), backend="triton")


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    names = "'auto', 'reference', 'torch', 'torch_factored', 'quadratic', 'triton', 'mamba_ssm'"
    with pytest.raises(ValueError, match=f"`backend` is 'fast'; choose one of {names}$"):
        ssd(*draw(4), backend="fast")
    with pytest.raises(ValueError, match=r"`kernel_backend` is 'mamba_ssm', but it needs .* CUDA"):
        resolve_backend("mamba_ssm", CPU)
    with pytest.raises(ValueError, match=r"`backend` is 'mamba_ssm', but it needs .* CUDA"):
        ssd(*draw(4), backend="mamba_ssm")
    with pytest.raises(ValueError, match=r"`kernel_backend` is 'triton', but it needs .* CUDA"):
        resolve_backend("triton", CPU)
    with pytest.raises(ValueError, match="no float64"):
        resolve_backend("mamba_ssm", CUDA, dtype=float64)
    with monkeypatch.context() as installed:
        installed.setattr("modeling_mdm.ssd.find_spec", lambda _: object())
        with pytest.raises(ValueError, match=r"state_size of up to 128 .* these are 256 and 64"):
            resolve_backend("triton", CUDA, sizes=(256, 64))
    monkeypatch.setattr("modeling_mdm.ssd.load_kernels", lambda: None)
    with pytest.raises(ValueError, match="not installed: pip install"):
        resolve_backend("mamba_ssm", CUDA)
    monkeypatch.setattr("modeling_mdm.ssd.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="triton is not installed: pip install"):
        resolve_backend("triton", CUDA)
    monkeypatch.setattr("modeling_mdm.ssd_mamba.load_kernels", lambda: None)
    with pytest.raises(ValueError, match="not installed: pip install"):
        BACKENDS["mamba_ssm"](*draw(4))


@pytest.mark.parametrize("length", [20, 100])
def test_compiled_calls_run_the_form_that_looks_at_no_number(length):
    inputs = [tensor.float() for tensor in draw(length)]
    compiled = torch.compile(lambda *tensors: ssd(*tensors, chunk_size=32), backend="eager")
    torch._dynamo.reset()
    exact = ssd(*inputs, chunk_size=32, backend="torch")
    assert all(torch.equal(a, b) for a, b in zip(compiled(*inputs), exact, strict=True))


# --- the official kernels, in Triton's interpreter

INTERPRETED = """
import contextlib, json, sys, types
import torch, triton

# What a machine without a GPU cannot answer: which device runs, how many processors it has, and
# which of several equal configurations is fastest.
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=4)
autotune = triton.autotune
triton.autotune = lambda configs, **options: autotune(configs[:1], **options)

from modeling_mdm.ssd_mamba import ssd_mamba
from test_ssd_backends import compare, draw

torch.manual_seed(0)
inputs = [tensor.float() for tensor in draw(21, groups=1, heads=2, width=16, state=16)]
inputs[1] = -inputs[2] * (0.5 + inputs[1])  # as Delta A and Delta: both vanish together
inputs[1][:, 3:9] = inputs[2][:, 3:9] = 0
inputs[2][..., 1] *= 25
compare(ssd_mamba, inputs, tolerance=1e-5, chunk_size=16)
print("equal")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None or importlib.util.find_spec("triton") is None,
    reason="mamba_ssm is not installed (the extra `kernels`)",
)
@pytest.mark.timeout(600)  # the interpreter is slow where others use the processor
def test_official_kernels_compute_the_recurrence():
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parents[1]), str(here), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
