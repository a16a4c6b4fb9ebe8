# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recurrence of Eq. 10-11 and its discretisation (Eq. 12-13) against matrices by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from modeling_mdm.ssd import discretize, ssd, ssd_chunked, ssd_quadratic, ssd_reference
from modeling_mdm.ssd_factored import MAX_FACTORED_DECAY, ssd_factored

float64 = torch.float64
HALF = [torch.bfloat16, torch.float16]
FAST = [ssd_chunked, ssd_factored, ssd_quadratic]
fast_forms = pytest.mark.parametrize("fast", FAST)


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


def dense(x, input_scale, log_decay, B, C, initial_state=None):
    """y = M x by the matrix of every group and head, and the last state: no recurrence, no chunks.

    M[i, j] = C_i . B_j scale_j exp(a_{j+1} + ... + a_i) for j <= i, else 0.
    """
    a = log_decay.transpose(1, 2).cumsum(-1)  # (g, h, l)
    before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    decay = (a[..., :, None] - a[..., None, :]).masked_fill(~before, float("-inf")).exp()
    scaled = input_scale[..., None] * x
    y = torch.einsum("gin,gjn,ghij,gjhp->gihp", C, B, decay, scaled)
    state = torch.einsum("ghj,gjn,gjhp->ghnp", decay[:, :, -1], B, scaled)
    if initial_state is not None:
        y = y + torch.einsum("gin,ghi,ghnp->gihp", C, a.exp(), initial_state)
        state = state + a[..., -1, None, None].exp() * initial_state
    return y, state


def gradients(form, inputs, weights, **options):
    """Outputs, and gradients of every input, of a weighted sum of outputs and final states."""
    inputs = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    y, state = form(*inputs, **options)
    total = (y * weights[0]).sum() + (state * weights[1]).sum()
    return [y, state, *torch.autograd.grad(total, [x for x in inputs if x is not None])]


def draw_weights(inputs):
    x, B = inputs[0], inputs[3]
    groups, _, heads, width = x.shape
    return torch.randn_like(x), torch.randn(groups, heads, B.shape[-1], width, dtype=x.dtype)


# --- Eq. 12-13


@examples(delta=st.floats(1e-4, 10), A=st.floats(-20, -0.01))
def test_zero_order_hold_is_the_matrix_exponential(delta, A):
    """h' = A h + u under a constant u has the exact step [h u] <- expm([[A 1] [0 0]] Delta)."""
    system = torch.tensor([[A, 1.0], [0.0, 0.0]], dtype=float64)
    exact = torch.linalg.matrix_exp(system * delta)
    log_decay, input_scale = discretize(
        torch.tensor([delta], dtype=float64), torch.tensor([A], dtype=float64), "zoh"
    )
    torch.testing.assert_close(log_decay.exp()[0], exact[0, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(input_scale[0], exact[0, 1], rtol=1e-9, atol=1e-12)


def test_zero_order_hold_is_equation_13():
    delta, A = torch.rand(5, 3, dtype=float64), -torch.rand(3, dtype=float64) - 0.1
    log_decay, input_scale = discretize(delta, A, "zoh")
    torch.testing.assert_close(log_decay.exp(), torch.exp(delta * A))
    torch.testing.assert_close(input_scale, (torch.exp(delta * A) - 1) / A)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_zero_order_hold_has_its_limit_at_small_steps(dtype):
    """B-bar / (Delta B) = 1 + Delta A / 2 + ... -> 1: no cancellation, however small the step."""
    A = torch.tensor([-1.0, -64.0], dtype=dtype)
    for delta in (1e-3, 1e-6, 1e-9, 1e-12, 1e-30):
        _, scale = discretize(torch.full((2,), delta, dtype=dtype), A, "zoh")
        exact = [-math.expm1(-delta), -math.expm1(-64 * delta) / 64]
        assert scale.tolist() == pytest.approx(exact, rel=1e-6, abs=0)
    delta = torch.zeros(2, dtype=dtype, requires_grad=True)
    log_decay, scale = discretize(delta, A, "zoh")
    assert log_decay.exp().tolist() == [1, 1]  # the state passes the item by
    assert scale.tolist() == [0, 0]
    assert torch.autograd.grad(scale.sum(), delta)[0].tolist() == [1, 1]


def test_euler_is_stock_mamba_2():
    delta, A = torch.rand(5, 3, dtype=float64), -torch.rand(3, dtype=float64)
    log_decay, input_scale = discretize(delta, A, "euler")
    assert torch.equal(input_scale, delta)
    assert torch.equal(log_decay, delta * A)


# --- Eq. 10-11


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("length", [1, 5])
def test_reference_equals_the_dense_matrix(length, with_state):
    inputs = draw(length)
    inputs[5] = inputs[5] if with_state else None
    torch.testing.assert_close(ssd_reference(*inputs), dense(*inputs), rtol=0, atol=1e-12)


def test_reference_is_one_step_of_equations_10_and_11():
    x, scale, log_decay, B, C, state = draw(1, groups=1, heads=1)
    y, after = ssd_reference(x, scale, log_decay, B, C, state)
    A_bar, B_bar = math.exp(log_decay.item()), scale.item() * B[0, 0]
    by_hand = A_bar * state[0, 0] + torch.outer(B_bar, x[0, 0, 0])
    torch.testing.assert_close(after[0, 0], by_hand)
    torch.testing.assert_close(y[0, 0, 0], C[0, 0] @ by_hand)


@fast_forms
@examples(
    length=st.integers(1, 23),
    chunk_size=st.integers(1, 25),
    with_state=st.booleans(),
    decay=st.sampled_from([0.0, 0.5, 20.0]),
)
@settings(max_examples=40)
def test_fast_forms_equal_the_recurrence_for_any_length_and_chunk(
    fast, length, chunk_size, with_state, decay
):
    inputs = draw(length, decay=decay)
    inputs[5] = inputs[5] if with_state else None
    weights = draw_weights(inputs)
    expected = gradients(ssd_reference, inputs, weights)
    computed = gradients(fast, inputs, weights, chunk_size=chunk_size)
    for value, exact in zip(computed, expected, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-10)


@fast_forms
def test_fast_forms_have_the_gradients_of_finite_differences(fast):
    inputs = [tensor.requires_grad_() for tensor in draw(5, groups=1, heads=2)]
    assert torch.autograd.gradcheck(lambda *tensors: fast(*tensors, chunk_size=2), inputs)


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
def test_a_sequence_may_be_cut_anywhere_and_goes_on_from_its_state(form):
    inputs = draw(11)
    whole, last = form(*inputs)
    for cut in (1, 4, 10):
        parts = [[tensor[:, :cut], tensor[:, cut:]] for tensor in inputs[:5]]
        first, state = form(*(part[0] for part in parts), inputs[5])
        second, state = form(*(part[1] for part in parts), state)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
def test_nothing_to_read_gives_nothing_and_leaves_the_state(form):
    inputs = draw(0)
    y, state = form(*inputs)
    assert y.shape == (2, 0, 3, 2)
    assert torch.equal(state, inputs[5])
    y, state = form(*inputs[:5])
    assert y.shape == (2, 0, 3, 2)
    assert torch.equal(state, torch.zeros_like(inputs[5]))


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
@pytest.mark.parametrize("discretization", ["zoh", "euler"])
def test_delta_of_zero_leaves_the_state_untouched(form, discretization):
    """Items of Delta = 0 can be taken out: bitwise the same state where there is nothing else."""
    x, _, _, B, C, state = draw(9)
    A = -torch.exp(torch.randn(3, dtype=float64))
    read = torch.tensor([True, False, False, True, True, False, True, False, False])
    delta = torch.rand(2, 9, 3, dtype=float64) * read[:, None]
    log_decay, scale = discretize(delta, A, discretization)
    y, after = form(x, scale, log_decay, B, C, state)
    shorter = [tensor[:, read] for tensor in (x, scale, log_decay, B, C)]
    y_shorter, after_shorter = form(*shorter, state)
    torch.testing.assert_close(y[:, read], y_shorter, rtol=0, atol=1e-12)
    torch.testing.assert_close(after, after_shorter, rtol=0, atol=1e-12)
    nothing = torch.zeros(2, 9, 3, dtype=float64)
    _, untouched = form(x, nothing, nothing, B, C, state)
    assert torch.equal(untouched, state)


# --- Strong decays in float32


def rms(values):
    return values.square().mean().sqrt().item()


@fast_forms
@pytest.mark.parametrize(
    "decay",
    [
        "25 a step",
        "beyond half",
        "at half",
        "at the limit",
        "beyond the limit",
        "sudden",
        "border",
        "none",
    ],
)
def test_strong_decays_stay_finite_and_right_in_float32(fast, decay):
    length, chunk_size = 130, 44  # chunks of this size, the last with padding
    inputs = draw(length)
    per_step = {
        "25 a step": 25.0,
        "at half": 0.5 * 0.999 * MAX_FACTORED_DECAY / chunk_size,
        "beyond half": 0.5 * 1.001 * MAX_FACTORED_DECAY / chunk_size,
        "at the limit": 0.999 * MAX_FACTORED_DECAY / (chunk_size - 1),
        "beyond the limit": 1.001 * MAX_FACTORED_DECAY / (chunk_size - 1),
        "sudden": 0.01,
        "border": 0.01,
        "none": 0.0,
    }[decay]
    inputs[2] = torch.full_like(inputs[2], -per_step)
    if decay in ("sudden", "border"):
        inputs[2][:, 70 if decay == "sudden" else chunk_size] = -400.0
    weights = draw_weights(inputs)
    exact = gradients(ssd_reference, inputs, weights)
    single = [tensor.float() for tensor in inputs]
    computed = gradients(fast, single, [w.float() for w in weights], chunk_size=chunk_size)
    for i, (value, truth) in enumerate(zip(computed, exact, strict=True)):
        assert value.isfinite().all()
        # The gradient of a decay that leaves nothing is 0 but for what rounding leaves of sums
        # that are as large as the gradients of the other inputs.
        assert rms(value.double() - truth) < 1e-4 * rms(truth) + (1e-5 if i == 4 else 1e-7)


def test_the_dense_form_holds_decays_up_to_its_limit_and_large_numbers(monkeypatch):
    """Of any number of sequences; and hands over what is beyond, with the size of chunks."""
    handed_over = []

    def hand_over(*arguments):
        handed_over.append(arguments)
        return ssd_factored(*arguments)

    monkeypatch.setattr("modeling_mdm.ssd.ssd_factored", hand_over)
    inputs = draw(60, groups=3)
    inputs[2] = torch.full_like(inputs[2], -MAX_FACTORED_DECAY / 60)
    for i in (0, 3, 4):
        inputs[i] *= 1000
    exact = dense(*inputs)
    for value, truth in zip(ssd_quadratic(*[i.float() for i in inputs]), exact, strict=True):
        assert rms(value.double() - truth) < 1e-4 * rms(truth)
    assert not handed_over
    inputs[2][1, 30, 2] -= 1
    y, _ = ssd_quadratic(*inputs, 7)
    torch.testing.assert_close(y, dense(*inputs)[0])
    ((*_, chunk_size),) = handed_over
    assert chunk_size == 7


@fast_forms
def test_the_strongest_decay_that_delta_may_have_gives_each_item_alone(fast):
    """|A| = 64, Delta = 100: nothing is left of the past, y_n = C_n . B_n scale_n x_n."""
    inputs = draw(70, dtype=torch.float32)
    delta = torch.full((2, 70, 3), 100.0)
    log_decay, scale = discretize(delta, torch.tensor([-64.0, -64.0, -1.0]), "zoh")
    x, _, _, B, C, state = inputs
    y, after = fast(x, scale, log_decay, B, C, state)
    alone = (B * C).sum(-1)[..., None, None] * scale[..., None] * x
    torch.testing.assert_close(y, alone, rtol=1e-4, atol=1e-5)
    assert after.isfinite().all()


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("decay", [0.05, 2.0])
def test_half_precision_stays_finite_and_right(form, dtype, decay):
    """x, B and C in half precision, decays in float32, as a model in half precision has them."""
    inputs = [
        tensor.to(torch.float32 if i in (1, 2, 5) else dtype)
        for i, tensor in enumerate(draw(130, width=16, state=8, decay=decay))
    ]
    exact = [tensor.double() for tensor in inputs]
    y, state = draw_weights(exact)
    weights = [y.to(dtype), state.float()]
    computed = gradients(form, inputs, weights)
    expected = gradients(ssd_reference, exact, [weight.double() for weight in weights])
    assert [value.dtype for value in computed[:2]] == [dtype, torch.float32]
    for value, truth in zip(computed, expected, strict=True):
        assert rms(value.double() - truth) < 0.02 * rms(truth)


@fast_forms
@pytest.mark.parametrize("length", [1, 130])
@pytest.mark.parametrize("decay", [0.05, 25.0])
def test_half_precision_without_gradients_is_right_from_any_state(fast, length, decay):
    """Products may be bfloat16 there; states and decays are float32."""
    inputs = [
        tensor.to(torch.float32 if i in (1, 2, 5) else torch.bfloat16)
        for i, tensor in enumerate(draw(length, width=16, state=8, decay=decay))
    ]
    with torch.no_grad():
        computed = fast(*inputs)
    assert [value.dtype for value in computed] == [torch.bfloat16, torch.float32]
    for value, truth in zip(computed, dense(*[i.double() for i in inputs]), strict=True):
        assert rms(value.double() - truth) < 0.02 * rms(truth)


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
def test_states_are_float32_at_least_whatever_comes_in(form):
    """The type of the state before does not count."""
    types = [*HALF, torch.float32, float64]
    kinds = itertools.product([0, 1, 9], types, [1.0, 200.0], [True, False])
    for length, dtype, decay, with_gradients in kinds:
        *inputs, state = draw(length, dtype=dtype, decay=decay)
        for before in (None, state.bfloat16(), state.double()):
            with torch.set_grad_enabled(with_gradients):
                y, after = form(*inputs, before, chunk_size=4)
            assert (y.shape, y.dtype) == (inputs[0].shape, dtype)
            assert after.shape == state.shape
            assert after.dtype == (float64 if dtype == float64 else torch.float32)


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
def test_a_state_decays_in_float32_whatever_the_sequence_is(form):
    for dtype, with_gradients in itertools.product(HALF, [True, False]):
        x, scale, log_decay, B, C, _ = draw(130, dtype=dtype, decay=0.05)
        state = torch.randn(2, 3, 4, 2)
        with torch.set_grad_enabled(with_gradients):
            _, after = form(torch.zeros_like(x), scale, log_decay, B, C, state, chunk_size=16)
        exact = log_decay.double().sum(1).exp()[..., None, None] * state.double()
        torch.testing.assert_close(after.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", [ssd_reference, ssd_factored, ssd_quadratic])
@pytest.mark.parametrize("decay", [0.05, 25.0])
def test_a_sequence_in_half_precision_is_float32_inside_where_gradients_are_asked_for(form, decay):
    inputs = draw(130, dtype=torch.bfloat16, decay=decay)
    y, state = form(*inputs, chunk_size=16)
    exact_y, exact = dense(*[tensor.double() for tensor in inputs])
    assert rms(state.double() - exact) < 1e-5 * rms(exact)
    assert ((y.double() - exact_y).abs() <= 0.501 * 2**-7 * exact_y.abs() + 1e-5).all()


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
def test_what_a_position_adds_to_the_state_is_rounded_once_at_most(form):
    x, scale, log_decay, B, C, _ = draw(2, heads=8, width=64, state=1, dtype=torch.bfloat16)
    x[:, 1] = 0
    with torch.no_grad():
        _, state = form(x, scale, log_decay, torch.ones_like(B), C)
    decay = log_decay[:, 1].double().exp()
    exact = x[:, 0].double() * (scale[:, 0].double() * decay)[..., None]
    assert ((state[:, :, 0] - exact).abs() <= 0.501 * 2**-7 * exact.abs()).all()


@pytest.mark.parametrize("form", [ssd_reference, *FAST])
def test_what_a_form_reads_is_left_unchanged(form):
    inputs = draw(7)
    before = [tensor.clone() for tensor in inputs]
    form(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("scans", [1, 2, 4])
@pytest.mark.parametrize("backend", ["reference", "torch", "torch_factored", "quadratic"])
def test_every_backend_computes_the_recurrence_of_stacked_scans(backend, scans):
    """Scans of one sequence, each with its own A and order, are so many sequences."""
    x, scale, log_decay, B, C, state = draw(7, groups=2 * scans)
    A = torch.rand(scans, 1, 3, dtype=float64) * 3
    log_decay = (log_decay.unflatten(0, (2, scans)) * A).flatten(0, 1)
    inputs = [x, scale, log_decay, B, C, state]
    torch.testing.assert_close(ssd(*inputs, 3, backend), dense(*inputs), rtol=0, atol=1e-12)
