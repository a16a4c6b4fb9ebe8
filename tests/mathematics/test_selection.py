# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Selection through Delta (Theorem 3): what is kept, and that what is dropped has no effect."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

import modeling_mdm.block
from modeling_mdm import MDMConfig
from modeling_mdm.block import MDMBlock, ScanInputs, SelectiveScan
from modeling_mdm.scan_orders import Reading, gather_rows
from modeling_mdm.selection import (
    ScoreEntropyHead,
    Selection,
    SelectionHead,
    compact_order,
    select_items,
)
from modeling_mdm.sequence import JointSequence

float64 = torch.float64
HEADS, WIDTH, STATE = 2, 4, 3


def random_masks(batch, length, seed):
    """Given, valid and special positions (b, l) of every kind."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.8, 0.2])[:, None, None]
    return (torch.rand(3, batch, length, generator=generator) < shares).unbind(0)


# --- What is kept


@examples(
    length=st.integers(1, 12),
    scans=st.integers(1, 3),
    keep=st.fractions(Fraction(1, 100), 1, max_denominator=100),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_the_best_of_the_given_and_of_the_noisy_part_are_kept(length, scans, keep, seed):
    given, valid, special = random_masks(2, length, seed)
    importance = torch.rand(2, scans, length, generator=torch.Generator().manual_seed(seed))
    kept = select_items(importance, float(keep), given, valid, special)
    for b in range(2):
        for k in range(scans):
            expected = {n for n in range(length) if valid[b, n] and special[b, n]}
            for is_given in (True, False):
                part = [
                    n
                    for n in range(length)
                    if valid[b, n] and not special[b, n] and bool(given[b, n]) == is_given
                ]
                part.sort(key=lambda n, b=b, k=k: -importance[b, k, n].item())
                expected |= set(part[: math.ceil(keep * len(part))])  # exact: keep is a fraction
            assert set(kept[b, k].nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("keep", [1, 0.75, 0.5, 0.25])
@pytest.mark.parametrize("count", range(1, 17))
def test_no_share_that_training_draws_is_rounded_up_by_its_floating_point(keep, count):
    mask = torch.ones(1, count, dtype=torch.bool)
    kept = select_items(torch.rand(1, 1, count), keep, ~mask, mask, ~mask)
    assert int(kept.sum()) == math.ceil(Fraction(keep) * count)


def test_equal_importance_keeps_the_count_all_the_same():
    mask = torch.ones(1, 9, dtype=torch.bool)
    assert int(select_items(torch.full((1, 1, 9), 0.5), 0.5, mask, mask, ~mask).sum()) == 5


def test_what_is_kept_of_the_given_part_does_not_depend_on_the_noisy_part():
    given, valid, special = random_masks(3, 12, 1)
    importance = torch.rand(3, 2, 12)
    other = torch.where(given[:, None], importance, torch.rand(3, 2, 12))
    kept, again = (select_items(x, 0.5, given, valid, special) for x in (importance, other))
    assert not torch.equal(kept, again)
    assert torch.equal(kept & given[:, None], again & given[:, None])


def test_compact_order_lists_what_is_selected_in_scan_order():
    order = torch.tensor([[[3, 0, 2, 1], [1, 2, 0, 3]]])
    selected = torch.tensor([[[True, False, True, False], [False, False, False, True]]])
    steps, real = compact_order(order, selected, 2)
    assert steps[0, 0].tolist() == [1, 2] and real[0, 0].tolist() == [True, True]
    assert steps[0, 1, 0].item() == 3 and real[0, 1].tolist() == [True, False]
    assert steps[0, 1, 1].item() != 3  # a filler, never an item twice


# --- Dropped items have no effect


def make_config(**changes):
    values = {
        "hidden_size": HEADS * WIDTH,
        "expand": 1,
        "head_dim": WIDTH,
        "state_size": STATE,
        "conv_kernel": 3,
        "chunk_size": 4,
        "num_hidden_layers": 1,
    }
    return MDMConfig(**{**values, **changes})


def make_scan(config, scans):
    scan = SelectiveScan(config, scans).double()
    with torch.no_grad():
        for parameter in scan.parameters():
            parameter.normal_()
    return scan


def make_sequence(batch, scans, length, seed, silent=False):
    """A joint sequence in random orders; if `silent`, scans do not read all positions."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(batch, scans, length, generator=generator).argsort(-1)
    given, valid, special = random_masks(batch, length, seed)
    active = torch.ones(scans, length, dtype=torch.bool)
    if silent:
        active = torch.rand(scans, length, generator=generator) < 0.6
    return JointSequence(
        valid,
        given,
        special,
        torch.zeros(batch, length, dtype=torch.long),
        torch.zeros(batch, length, dtype=torch.long),
        orders,
        orders.argsort(-1),
        active,
        all_active=not silent,
        num_null=0,
        text_segment=length,
        text_tokens=0,
        image_tokens=0,
    )


def chosen(kept, gate=None):
    """A selection of these items."""
    return Selection(kept, int(kept.sum(-1).max()), gate)


def scan_by_loops(scan, x, BC, raw_delta, sequence, kept, written=None):
    """Every scan step by step, Delta = 0 and output 0 where `kept` is 0: (b, k, l, h * p)."""
    written = kept if written is None else written
    batch, scans, length = sequence.orders.shape
    outputs = []
    taps = scan.conv_weight.shape[-1]
    for b in range(batch):
        for k in range(scans):
            order = sequence.orders[b, k].tolist()
            channels = torch.cat([x[b], BC[b, k]], -1)[order]
            states = [torch.zeros(STATE, WIDTH, dtype=float64) for _ in range(HEADS)]
            for step, n in enumerate(order):
                convolved = scan.conv_bias[k].clone()
                for back in range(min(taps, step + 1)):
                    tap = scan.conv_weight[k, :, taps - 1 - back]
                    convolved = convolved + tap * channels[step - back]
                convolved = convolved * torch.sigmoid(convolved)
                v, B, C = convolved.split([HEADS * WIDTH, STATE, STATE])
                delta = torch.log1p(torch.exp(raw_delta[b, k, n] + scan.delta_bias[k]))
                delta = delta * kept[b, k, n]
                for h in range(HEADS):
                    A = -torch.exp(scan.A_log[k, h])
                    scale = (torch.exp(delta[h] * A) - 1) / A
                    u = v[h * WIDTH : (h + 1) * WIDTH]
                    states[h] = torch.exp(delta[h] * A) * states[h] + scale * torch.outer(B, u)
                    outputs.append((C @ states[h] + scan.D[k, h] * u) * written[b, k, n])
    return torch.stack(outputs).view(batch, scans, length, HEADS * WIDTH)


def scan_all(scan, inputs, sequence, selection=None):
    """The outputs of all passes in scan order, 0 where nothing was read: (b, k, l, h * p)."""
    x, BC, raw_delta = inputs
    outputs, merged = [], None
    for scan_pass in scan.passes(x, sequence, selection, None):
        scans = scan_pass.scans
        read = ScanInputs(x, BC[:, scans], raw_delta[:, scans])
        outputs.append(scan.separately(read, scan_pass, sequence))
        merged = scan(read, scan_pass, sequence, merged)
    result = torch.cat(outputs, 1)
    torch.testing.assert_close(merged, result.sum(1), rtol=0, atol=1e-12)
    return gather_rows(result, sequence.orders)


def draw_inputs(batch, scans, length):
    x = torch.randn(batch, length, HEADS * WIDTH, dtype=float64)
    BC = torch.randn(batch, scans, length, 2 * STATE, dtype=float64)
    return x, BC, torch.randn(batch, scans, length, HEADS, dtype=float64)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("scans", [1, 3])
def test_hard_and_gated_selection_equal_the_scan_with_delta_and_output_zero(
    scans, silent, scan_passes
):
    length = 9
    scan = make_scan(make_config(), tuple(range(scans)))
    sequence = make_sequence(2, scans, length, seed=3, silent=silent)
    inputs = draw_inputs(2, scans, length)
    selected = torch.rand(2, scans, length) < 0.5
    kept = (selected & sequence.scan_active[None]).double()
    with torch.no_grad():
        expected = scan_by_loops(scan, *inputs, sequence, kept)
        hard = scan_all(scan, inputs, sequence, chosen(selected))
        gated = scan_all(scan, inputs, sequence, chosen(selected, selected.double()))
        torch.testing.assert_close(hard, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(gated, expected, rtol=0, atol=1e-10)
        full = scan_all(scan, inputs, sequence)
        everything = sequence.scan_active[None].expand(2, -1, -1).double()
        expected = scan_by_loops(scan, *inputs, sequence, everything)
        torch.testing.assert_close(full, expected, rtol=0, atol=1e-10)


def test_hard_selection_has_the_gradients_of_the_masked_scan(scan_passes):
    scan = make_scan(make_config(), (0, 1))
    sequence = make_sequence(2, 2, 7, seed=5)
    inputs = [tensor.requires_grad_() for tensor in draw_inputs(2, 2, 7)]
    selected = torch.rand(2, 2, 7) < 0.6
    sources = [*inputs, *scan.parameters()]
    weights = torch.randn(2, 2, 7, HEADS * WIDTH, dtype=float64)
    expected = scan_by_loops(scan, *inputs, sequence, selected.double())
    expected = torch.autograd.grad((expected * weights).sum(), sources)
    for gate in (None, selected.double()):
        output = scan_all(scan, inputs, sequence, chosen(selected, gate))
        gradients = torch.autograd.grad((output * weights).sum(), sources)
        torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-9)


def test_the_gate_learns_through_delta_alone():
    """The norm that follows would make full size of any share of an output: no gradient there."""
    scan = make_scan(make_config(), (0, 1))
    sequence = make_sequence(2, 2, 7, seed=5)
    inputs = draw_inputs(2, 2, 7)
    gate = (torch.rand(2, 2, 7) < 0.6).double().requires_grad_()
    weights = torch.randn(2, 2, 7, HEADS * WIDTH, dtype=float64)
    output = scan_all(scan, inputs, sequence, chosen(gate > 0.5, gate))
    (gradient,) = torch.autograd.grad((output * weights).sum(), gate)
    expected = scan_by_loops(scan, *inputs, sequence, gate, gate.detach())
    (by_hand,) = torch.autograd.grad((expected * weights).sum(), gate)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-9)
    assert by_hand[gate < 0.5].abs().max() > 1e-3


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25])
def test_the_scanned_sequences_grow_shorter_with_what_is_kept(keep, monkeypatch):
    lengths = []

    def record(x, *rest, ssd=modeling_mdm.block.ssd, **options):
        lengths.append(x.shape[1])
        return ssd(x, *rest, **options)

    monkeypatch.setattr(modeling_mdm.block, "ssd", record)
    scan, length = make_scan(make_config(), (0,)), 16
    sequence = make_sequence(1, 1, length, seed=0)
    mask = torch.ones(1, length, dtype=torch.bool)
    selected = select_items(torch.rand(1, 1, length), keep, mask, mask, ~mask)
    scan_all(scan, draw_inputs(1, 1, length), sequence, chosen(selected))
    assert lengths == 2 * [keep * length]  # by itself, and summed


def test_nothing_selected_gives_zeros():
    scan = make_scan(make_config(), (0,))
    sequence = make_sequence(2, 1, 5, seed=0)
    selected = torch.zeros(2, 1, 5, dtype=torch.bool)
    assert not scan_all(scan, draw_inputs(2, 1, 5), sequence, chosen(selected)).any()


@pytest.mark.gpu
def test_hard_selection_gives_the_same_on_a_gpu_every_time():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    length = 512
    order = torch.stack([torch.randperm(length) for _ in range(4)])[None].cuda()
    steps = torch.arange(length // 2, device="cuda").expand(1, 4, -1)
    reading = Reading(order, order.argsort(-1), steps, real=steps >= 0)
    y = torch.randn(1, 4, length // 2, 256, device="cuda")
    first = reading.merge(y)
    torch.testing.assert_close(first, reading.bring_back(y).sum(1))
    assert all(torch.equal(reading.merge(y), first) for _ in range(20))


# --- The heads


def test_gate_is_straight_through():
    """Its value says what is selected, its gradient is that of sigmoid(w . x + b)."""
    head = SelectionHead(6, 2).double()
    hidden = torch.randn(2, 5, 6, dtype=float64, requires_grad=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    selected, gate = head(hidden, 0.5, mask, mask, ~mask)
    assert gate.shape == (2, 2, 5)
    torch.testing.assert_close(gate, selected.float().to(gate.dtype), rtol=0, atol=1e-6)
    weights = torch.randn(2, 2, 5)
    gradients = torch.autograd.grad((gate * weights).sum(), [hidden, *head.parameters()])
    scores = F.linear(hidden, head.score.weight, head.score.bias).transpose(1, 2)
    slope = torch.sigmoid(scores) * (1 - torch.sigmoid(scores)) * weights  # (b, k, l)
    expected = [
        torch.einsum("bkl,kh->blh", slope, head.score.weight),
        torch.einsum("bkl,blh->kh", slope, hidden),
        slope.sum((0, 2)),
    ]
    for gradient, by_hand in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, by_hand, rtol=1e-5, atol=1e-6)
    assert (gate.detach().sort(-1).values == torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])).all()


def test_a_block_selects_alike_in_training_and_in_use_and_learns_what_to_select():
    config = make_config(image_scans=[1], text_scans=[1], use_selection=True)
    block = MDMBlock(config, 0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    sequence = make_sequence(2, 1, 9, seed=2)
    hidden = torch.randn(2, 9, HEADS * WIDTH, dtype=float64)
    modulation = torch.randn(2, 3, 3, HEADS * WIDTH, dtype=float64)
    in_training = block.train()(hidden, modulation, sequence, 0.5)
    in_use = block.eval()(hidden, modulation, sequence, 0.5)
    torch.testing.assert_close(in_training, in_use, rtol=0, atol=1e-7)
    assert (in_use - block(hidden, modulation, sequence, 1.0)).abs().max() > 1e-3
    in_training.square().sum().backward()
    assert block.selection.score.weight.grad.abs().max() > 0


def test_score_entropy_head_learns_without_changing_the_features():
    head = ScoreEntropyHead(6)
    hidden = torch.randn(2, 5, 6, requires_grad=True)
    predicted = head(hidden)
    by_hand = (hidden * head.predict.weight[0]).sum(-1) + head.predict.bias
    torch.testing.assert_close(predicted, by_hand)
    predicted.sum().backward()
    assert hidden.grad is None
    assert head.predict.weight.grad.abs().max() > 0


@settings(max_examples=30, deadline=None)
@examples(seed=st.integers(0, 999), keep=st.sampled_from([1.0, 0.75, 0.5, 0.3]))
def test_the_longest_selection_is_known_from_the_masks(seed, keep):
    sequence = make_sequence(3, 2, 9, seed)
    scores = torch.rand(3, 2, 9, generator=torch.Generator().manual_seed(seed))
    kept = select_items(scores, keep, sequence.given, sequence.valid, sequence.special)
    assert sequence.longest_selection(keep) == int(kept.sum(-1).max())
