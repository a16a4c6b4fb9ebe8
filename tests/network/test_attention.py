# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention for `mixer="attention"` (Table 3) against a loop over positions in float64."""

import math

import pytest
import torch
from hypothesis import given as examples
from hypothesis import strategies as st

from modeling_mdm.attention import MDMAttentionMixer, MDMFeedForward, given_first_mask

HIDDEN, HEADS = 12, 3


def make_mixer(dtype=torch.float64):
    mixer = MDMAttentionMixer(HIDDEN, HEADS)
    for norm in (mixer.q_norm, mixer.k_norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return mixer.to(dtype)


def rms_norm(vector, weight):
    return vector / torch.sqrt((vector**2).mean() + 1e-5) * weight


def attend_by_loops(mixer, x, given, valid):
    """Attention of one item (l, hidden): a softmax per head and query over what it may read."""
    length, width = x.shape[0], HIDDEN // HEADS
    mixed = torch.zeros_like(x)
    q_weight, k_weight, v_weight = mixer.in_proj.weight.chunk(3)
    for head in range(HEADS):
        rows = slice(head * width, (head + 1) * width)
        for i in range(length):
            if not valid[i]:
                continue
            read = [j for j in range(length) if valid[j] and (given[j] or not given[i])]
            query = rms_norm(q_weight[rows] @ x[i], mixer.q_norm.weight)
            logits = torch.stack(
                [
                    query @ rms_norm(k_weight[rows] @ x[j], mixer.k_norm.weight) / math.sqrt(width)
                    for j in read
                ]
            )
            share = torch.exp(logits) / torch.exp(logits).sum()
            mixed[i, rows] = sum(
                s * (v_weight[rows] @ x[j]) for s, j in zip(share, read, strict=True)
            )
    return mixed @ mixer.out_proj.weight.T


def random_masks(batch, length, seed):
    generator = torch.Generator().manual_seed(seed)
    given, valid = torch.rand(2, batch, length, generator=generator) < 0.6
    return given, valid


@examples(length=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_equals_the_loop_over_positions(length, seed):
    torch.manual_seed(seed)
    mixer = make_mixer()
    x = torch.randn(2, length, HIDDEN, dtype=torch.float64)
    given, valid = random_masks(2, length, seed)
    with torch.no_grad():
        expected = torch.stack(
            [attend_by_loops(mixer, *item) for item in zip(x, given, valid, strict=True)]
        )
        torch.testing.assert_close(mixer(x, given, valid), expected, rtol=0, atol=1e-12)


def test_mask_is_read_row_by_row():
    given = torch.tensor([[True, False, True]])  # known, to be written, padding marked as known
    valid = torch.tensor([[True, True, False]])
    assert given_first_mask(given, valid).int().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]


def test_given_part_does_not_depend_on_noisy_content():
    mixer = make_mixer()
    x = torch.randn(3, 11, HIDDEN, dtype=torch.float64)
    given, valid = random_masks(3, 11, seed=1)
    known = given & valid
    other = torch.where(known[..., None], x, 100 * torch.randn_like(x))
    before, after = mixer(x, given, valid), mixer(other, given, valid)
    assert torch.equal(before[known], after[known])
    noisy = ~given & valid
    assert (before[noisy] - after[noisy]).abs().min(dim=-1).values.min() > 1e-3


def test_noisy_part_reads_every_real_position():
    mixer = make_mixer()
    x = torch.randn(1, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    given = torch.tensor([[True, True, False, False, False, False]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    mixer(x, given, valid)[0, 3].sum().backward()
    influence = x.grad[0].abs().sum(-1)
    assert (influence[:5] > 0).all()
    assert influence[5] == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("known", [False, True])
def test_padding_is_zero_and_changes_nothing(poison, known):
    """An item alone equals the same item with padding anywhere, whatever the padding holds."""
    mixer = make_mixer()
    alone = torch.randn(1, 5, HIDDEN, dtype=torch.float64)
    alone_given = torch.tensor([[True, False, True, True, False]])
    expected = mixer(alone, alone_given, torch.ones(1, 5, dtype=torch.bool))

    places = torch.tensor([1, 2, 4, 7, 8])
    x = torch.full((2, 10, HIDDEN), poison, dtype=torch.float64)
    given, valid = torch.full((2, 10), known), torch.zeros(2, 10, dtype=torch.bool)
    x[0, places], given[0, places], valid[0, places] = alone[0], alone_given[0], True
    x.requires_grad_()
    out = mixer(x, given, valid)  # the second item is nothing but padding

    torch.testing.assert_close(out[:1, places], expected, rtol=0, atol=1e-10)
    assert (out[~valid] == 0).all()
    out.square().sum().backward()
    assert (x.grad[~valid] == 0).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in mixer.parameters())
    assert torch.isfinite(x.grad).all()


def test_gradients():
    mixer = make_mixer()
    x = torch.randn(2, 4, HIDDEN, dtype=torch.float64, requires_grad=True)
    given, valid = random_masks(2, 4, seed=5)
    assert torch.autograd.gradcheck(lambda z: mixer(z, given, valid), (x,))
    mixer(x, given, valid).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in mixer.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_follows_float64_in_outputs_and_gradients(autocast):
    precise = make_mixer()
    coarse = MDMAttentionMixer(HIDDEN, HEADS)
    coarse.load_state_dict(precise.state_dict())
    coarse = coarse if autocast else coarse.to(torch.bfloat16)
    x = torch.randn(2, 33, HIDDEN)
    given, valid = random_masks(2, 33, seed=3)

    def output_and_gradients(mixer, inputs):
        inputs = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and mixer is coarse):
            out = mixer(inputs, given, valid)
        gradients = torch.autograd.grad(out.double().square().sum(), [inputs, *mixer.parameters()])
        return [out.detach(), *gradients]

    expected = output_and_gradients(precise, x.double())
    found = output_and_gradients(coarse, x if autocast else x.bfloat16())
    for reference, value in zip(expected, found, strict=True):
        error = (value.double() - reference).square().mean().sqrt()
        assert error < 0.02 * reference.square().mean().sqrt()


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(12, 5), (12, 0), (12, 24)])
def test_heads_must_divide_the_width(hidden_size, num_heads):
    with pytest.raises(ValueError, match=rf"`num_heads` is {num_heads}.*`hidden_size` = 12"):
        MDMAttentionMixer(hidden_size, num_heads)


def test_feed_forward_is_gated():
    feed_forward = MDMFeedForward(4, 6).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    gate_weight, up_weight = feed_forward.in_proj.weight[:6], feed_forward.in_proj.weight[6:]
    gate, up = x @ gate_weight.T, x @ up_weight.T
    expected = (gate / (1 + torch.exp(-gate)) * up) @ feed_forward.out_proj.weight.T
    torch.testing.assert_close(feed_forward(x), expected, rtol=0, atol=1e-12)
