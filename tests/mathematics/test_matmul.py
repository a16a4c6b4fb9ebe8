# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Matrix products by oneDNN: equal to those of torch.matmul, and only where they are meant."""

import math

import pytest
import torch
from torch import nn

from modeling_mdm import matmul as products
from modeling_mdm import ssd_factored
from modeling_mdm.ssd import ssd, ssd_quadratic


@pytest.fixture
def onednn(monkeypatch):
    """Take oneDNN for products of every size, on every processor; yields the shapes it took."""
    mkldnn = torch.backends.mkldnn
    if not (mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_mkl_lags", lambda: True)
    monkeypatch.setattr(products, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    taken, matmul = [], torch.ops.mkldnn._linear_pointwise

    class Listener:
        def default(self, a, b, *rest):
            taken.append((tuple(a.shape), tuple(b.shape)))
            return matmul.default(a, b, *rest)

        def binary(self, a, other, b, *rest):
            taken.append((tuple(a.shape), tuple(b.shape)))
            return matmul.binary(a, other, b, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Listener())
    return taken


def close(value, truth):
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_products_of_matrices_and_batches(leading, into, onednn):
    a, b = torch.randn(*leading, 5, 7), torch.randn(*leading, 7, 4)
    truth = a.double() @ b.double()
    out = torch.full((*leading, 5, 4), torch.nan) if into else None
    with torch.no_grad():
        close(products.multiply(a, b, out=out), truth)
        turned = a.mT.contiguous().mT, b.mT.contiguous().mT  # rows that lie side by side
        close(products.multiply(*turned), truth)
    assert len(onednn) == 2 * math.prod(leading)
    if out is not None:
        close(out, truth)


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_added(leading, dtype, onednn):
    a, b = torch.randn(*leading, 5, 7, dtype=dtype), torch.randn(*leading, 7, 4, dtype=dtype)
    total = torch.randn(*leading, 5, 4)
    truth = total.double() + (a @ b).double()
    with torch.no_grad():
        close(products.add_product(total, a, b), truth)
    assert bool(onednn) == (dtype == torch.float32 and not leading)


@pytest.mark.parametrize("leading", [(), (3,)])
def test_a_small_product_is_added(leading):
    a, b = torch.randn(*leading, 5, 7), torch.randn(*leading, 7, 4)
    total = torch.randn(*leading, 5, 4)
    truth = total.double() + a.double() @ b.double()
    with torch.no_grad():
        close(products.add_product(total, a, b), truth)


@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_linear_layer(bias, onednn, monkeypatch):
    layer, x = nn.Linear(6, 5, bias=bias), torch.randn(2, 3, 6)
    with torch.no_grad():
        truth = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
        close(products.project(layer, x), truth)
        assert len(onednn) == 1
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            close(products.project(layer, x), truth)
    close(products.project(layer, x).detach(), truth)  # with a gradient
    assert len(onednn) == 1


class Doubled(nn.Linear):
    """Not a plain linear layer."""

    def forward(self, input):
        return 2 * super().forward(input)


def with_forward(layer):
    usual = layer.forward
    layer.forward = lambda x: 2 * usual(x)
    return layer


def with_hook(layer):
    layer.register_forward_hook(lambda module, arguments, output: 2 * output)
    return layer


def with_hook_before(layer):
    layer.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(6, 5, bias=False),
        lambda: with_forward(nn.Linear(6, 5, bias=False)),
        lambda: with_hook(nn.Linear(6, 5, bias=False)),
        lambda: with_hook_before(nn.Linear(6, 5, bias=False)),
    ],
    ids=["subclass", "forward of its own", "hook", "hook before"],
)
def test_a_layer_that_does_more_is_called(make, onednn):
    layer, x = make(), torch.randn(3, 6)
    with torch.no_grad():
        close(products.project(layer, x), 2 * x.double() @ layer.weight.double().T)


def test_a_hook_on_all_modules_is_called(onednn):
    layer, seen = nn.Linear(6, 5), []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        with torch.no_grad():
            products.project(layer, torch.randn(3, 6))
    finally:
        handle.remove()
    assert seen == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_contexts_are_left_alone(dtype, onednn, monkeypatch):
    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    with torch.no_grad():
        assert products.project(layer.to(dtype), x.to(dtype)).dtype == dtype
        layer = layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert products.project(layer, x).dtype == torch.bfloat16
        monkeypatch.setattr(torch._C, "_get_tracing_state", lambda: True)
        products.project(layer, x)
    assert onednn == []


@pytest.mark.parametrize("rows", [0, 1])
def test_small_products_stay_where_they_were(rows, onednn, monkeypatch):
    monkeypatch.setattr(products, "LARGE_PRODUCT", 2 * 6 * 5)
    with torch.no_grad():
        assert products.project(nn.Linear(6, 5), torch.randn(rows, 6)).shape == (rows, 5)
        assert onednn == []
        products.project(nn.Linear(6, 5), torch.randn(2, 6))
    assert len(onednn) == 1


def test_a_batch_is_shared_out_among_threads(onednn, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with torch.no_grad():
        products.multiply(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    assert onednn == []


@pytest.mark.parametrize("threads", [1, 4, 5])
def test_many_threads_take_chunks_side_by_side(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, log_decay = torch.randn(2, 40, 3, 4), torch.full((2, 40, 3), -0.1)
    assert ssd_factored._plan(x, log_decay, 5, 8).from_start == (threads <= 4)
    inputs = (x, torch.rand(2, 40, 3), log_decay, torch.randn(2, 40, 5), torch.randn(2, 40, 5))
    with torch.no_grad():
        y, state = ssd_factored.ssd_factored(*inputs, chunk_size=8)
    truth, last = ssd_quadratic(*(tensor.double() for tensor in inputs))
    close(y, truth)
    close(state, last)


def test_a_state_that_nobody_needs_is_not_made():
    inputs = [torch.randn(2, 9, 3, 4), torch.rand(2, 9, 3), -torch.rand(2, 9, 3)]
    inputs += [torch.randn(2, 9, 5), torch.randn(2, 9, 5), torch.randn(2, 3, 5, 4)]
    y, state = ssd(*inputs, backend="quadratic", needs_state=False)
    assert state is None
    assert torch.equal(y, ssd(*inputs, backend="quadratic")[0])


@pytest.mark.parametrize("form", [ssd_factored.ssd_factored, ssd_quadratic])
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("decay", [0.1, 4.0, 30.0])
def test_the_recurrence_is_the_same(decay, has_state, form, onednn):
    groups, length, heads, width, state = 2, 45, 3, 4, 5
    inputs = [
        torch.randn(groups, length, heads, width),
        torch.rand(groups, length, heads),
        -decay * torch.rand(groups, length, heads),
        torch.randn(groups, length, state),
        torch.randn(groups, length, state),
    ]
    entering = torch.randn(groups, heads, state, width) if has_state else None
    kept = None if entering is None else entering.clone()
    # The truth, one position after the other.
    x, scale, log_decay, B, C = (tensor.double() for tensor in inputs)
    now = torch.zeros(groups, heads, state, width).double() if kept is None else kept.double()
    truth = []
    for n in range(length):
        now = torch.exp(log_decay[:, n])[..., None, None] * now
        now = now + torch.einsum("gn,gh,ghp->ghnp", B[:, n], scale[:, n], x[:, n])
        truth.append(torch.einsum("gn,ghnp->ghp", C[:, n], now))
    with torch.no_grad():
        y, last = form(*inputs, entering, chunk_size=8)
    close(y, torch.stack(truth, 1))
    close(last, now)
    assert onednn
    assert kept is None or torch.equal(entering, kept)  # what is given is not written over


@pytest.mark.parametrize("decay", [0.1, 30.0])
def test_gradients_of_the_recurrence_are_the_same(decay, onednn, monkeypatch):
    def slopes():
        torch.manual_seed(1)
        inputs = [
            torch.randn(2, 21, 3, 4),
            torch.rand(2, 21, 3),
            -decay * torch.rand(2, 21, 3),
            torch.randn(2, 21, 5),
            torch.randn(2, 21, 5),
            torch.randn(2, 3, 5, 4),
        ]
        for tensor in inputs:
            tensor.requires_grad_()
        y, last = ssd_factored.ssd_factored(*inputs, chunk_size=8)
        return torch.autograd.grad(y.square().sum() + last.square().sum(), inputs)

    by_onednn = slopes()
    taken = len(onednn)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    by_mkl = slopes()
    assert taken and len(onednn) == taken
    for one, other in zip(by_onednn, by_mkl, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
