# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The causal convolution in front of every scan against `F.conv1d`, channel by channel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from modeling_mdm.convolution import (
    causal_convolution,
    convolution_at,
    convolve,
    ordered_convolution,
)
from modeling_mdm.scan_orders import Reading

float64 = torch.float64


def convolve_by_conv1d(x, weight, bias):
    """Every channel alone, after as many zeros as it has taps less one."""
    taps = weight.shape[-1]
    outputs = torch.stack(
        [
            torch.cat(
                [
                    F.conv1d(
                        F.pad(x[:, k, :, c : c + 1].transpose(1, 2), (taps - 1, 0)),
                        weight[k, c].view(1, 1, taps),
                        bias[k, c].view(1),
                    )
                    for c in range(x.shape[-1])
                ],
                dim=1,
            )
            for k in range(x.shape[1])
        ],
        dim=1,
    )  # (b, k, c, l)
    return outputs.transpose(2, 3)


def draw(batch, scans, length, channels, taps, dtype=float64):
    return (
        torch.randn(batch, scans, length, channels, dtype=dtype, requires_grad=True),
        torch.randn(scans, channels, taps, dtype=dtype, requires_grad=True),
        torch.randn(scans, channels, dtype=dtype, requires_grad=True),
    )


sizes = {
    "batch": st.integers(1, 3),
    "scans": st.integers(1, 3),
    "length": st.integers(1, 9),
    "channels": st.integers(1, 4),
    "taps": st.integers(1, 5),
}


@examples(**sizes)
@settings(max_examples=60)
def test_outputs_and_gradients_equal_conv1d_for_any_length_and_taps(**sizes):
    inputs = draw(**sizes)
    output, expected = causal_convolution(*inputs), convolve_by_conv1d(*inputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    factor = torch.randn_like(expected)
    gradients = torch.autograd.grad((output * factor).sum(), inputs)
    by_hand = torch.autograd.grad((expected * factor).sum(), inputs)
    torch.testing.assert_close(gradients, by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 3, 7])  # shorter than the taps, and longer
def test_gradients_are_those_of_finite_differences(length):
    assert torch.autograd.gradcheck(causal_convolution, draw(2, 2, length, 2, 5))


def test_the_last_tap_is_the_present_and_the_future_is_never_read():
    x, weight, bias = (tensor.detach() for tensor in draw(1, 1, 6, 2, 4))
    weight[..., :-1] = 0
    output = causal_convolution(x, weight, bias)
    torch.testing.assert_close(output, x * weight[:, :, -1][:, None] + bias[:, None])
    x, weight, bias = draw(1, 2, 6, 2, 4)
    output = causal_convolution(x, weight, bias)
    for n in range(6):
        (gradient,) = torch.autograd.grad(output[:, :, n].sum(), x, retain_graph=True)
        assert not gradient[:, :, n + 1 :].any()
        assert gradient[:, :, n].all()


def test_float32_is_as_exact_as_conv1d():
    inputs = draw(2, 3, 40, 8, 4, torch.float32)
    exact = convolve_by_conv1d(*(tensor.double() for tensor in inputs))
    assert (causal_convolution(*inputs) - exact).abs().max() < 1e-5


def test_a_strided_input_and_a_strided_gradient_are_read_rightly():
    """Rows of a larger tensor, as the split of a projection gives them."""
    x, weight, bias = draw(2, 2, 5, 3, 4)
    wide = torch.cat([x, x + 1], -1)[..., :3].detach().requires_grad_()
    expected = convolve_by_conv1d(x, weight, bias)
    output = causal_convolution(wide, weight, bias)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    ones = torch.ones((), dtype=float64).expand(output.shape)
    (gradient,) = torch.autograd.grad(output, wide, ones)
    (by_hand,) = torch.autograd.grad(expected, x, ones)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@examples(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 3)),
    taps=st.integers(1, 4),
    shared=st.booleans(),
    earlier=st.booleans(),
)
def test_some_steps_alone_equal_those_of_the_whole(shape, taps, shared, earlier):
    batch, scans, length, channels = shape
    x = torch.randn(batch, *([] if shared else [scans]), length, channels, dtype=float64)
    order = torch.rand(batch, scans, length).argsort(-1)
    steps = torch.rand(batch, scans, length).argsort(-1)[..., : (length + 1) // 2].sort(-1).values
    weight = torch.randn(scans, channels, taps, dtype=float64)
    bias = torch.randn(scans, channels, dtype=float64)
    tail = torch.randn(batch, scans, taps - 1, channels, dtype=float64) if earlier else None
    index = order[..., None].expand(*order.shape, channels)
    ordered = (x[:, None].expand(-1, scans, -1, -1) if shared else x).gather(2, index)
    whole = causal_convolution(ordered, weight, bias, tail)
    expected = whole.gather(2, steps[..., None].expand(*steps.shape, channels))
    got = convolution_at(x, order, steps, weight, bias, tail)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@examples(**sizes, shared=st.booleans(), with_tail=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_in_any_order_it_is_silu_of_the_convolution_of_what_each_scan_reads(
    shared, with_tail, seed, **sizes
):
    x, weight, bias = draw(**sizes)
    batch, scans, length, channels, taps = sizes.values()
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, scans, length, generator=generator).argsort(-1)
    tail = torch.randn(batch, scans, taps - 1, channels, dtype=float64) if with_tail else None
    x = (x[:, 0] if shared else x).detach().requires_grad_()
    before = torch.zeros(batch, scans, taps - 1, channels, dtype=float64) if tail is None else tail

    def plain(x):
        each = x[:, None].expand(-1, scans, -1, -1) if shared else x
        read = each.gather(2, order[..., None].expand(-1, -1, -1, channels))
        return F.silu(convolve_by_conv1d(torch.cat([before, read], 2), weight, bias))[
            :, :, taps - 1 :
        ]

    def ours(x):
        return ordered_convolution(x, order, order.argsort(-1), weight, bias, tail)

    kept, factor = x.detach().clone(), torch.randn(batch, scans, length, channels, dtype=float64)
    torch.testing.assert_close(ours(x), plain(x))
    inputs = (x, weight, bias)
    found = torch.autograd.grad((ours(x) * factor).sum(), inputs)
    expected = torch.autograd.grad((plain(x) * factor).sum(), inputs)
    for gradient, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, truth)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
    assert torch.equal(x, kept)


def test_only_the_input_in_storage_order_is_kept_for_gradients():
    x = torch.randn(2, 9, 4, requires_grad=True)
    order = torch.arange(9).expand(2, 3, 9)
    weight, bias = torch.randn(3, 4, 3, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        ordered_convolution(x, order, order, weight, bias)
    assert sorted(map(tuple, kept)) == sorted([(2, 9, 4), (2, 3, 9), (2, 3, 9), (3, 4, 3), (3, 4)])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("with_tail", [True, False])
@pytest.mark.parametrize("read", [None, 2, 6, 9], ids="{} steps".format)
def test_convolve_gives_what_is_read_whichever_path_it_takes(read, with_tail, shared):
    """Of all, few and most of 9 steps: gathered, convolved by `F.conv1d`, SiLU, in that order."""
    x, weight, bias = draw(2, 3, 9, 4, 4)
    x = (x[:, 0] if shared else x).detach().requires_grad_()
    order = torch.rand(2, 3, 9).argsort(-1)
    tail = torch.randn(2, 3, 3, 4, dtype=float64) if with_tail else torch.zeros(2, 3, 3, 4).double()
    steps = None if read is None else torch.rand(2, 3, 9).argsort(-1)[..., :read].sort(-1).values
    reading = Reading(order, order.argsort(-1), steps)

    def plain():
        each = x[:, None].expand(-1, 3, -1, -1) if shared else x
        in_order = each.gather(2, order[..., None].expand(-1, -1, -1, 4))
        y = F.silu(convolve_by_conv1d(torch.cat([tail, in_order], 2), weight, bias))[:, :, 3:]
        return y if steps is None else y.gather(2, steps[..., None].expand(-1, -1, -1, 4))

    def ours():
        return convolve(x, reading, weight, bias, tail if with_tail else None)

    torch.testing.assert_close(ours(), plain())
    factor = torch.randn_like(plain())
    found, expected = (
        torch.autograd.grad((y * factor).sum(), (x, weight, bias)) for y in (ours(), plain())
    )
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(), plain())
