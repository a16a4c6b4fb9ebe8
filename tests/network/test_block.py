# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 block: equal to stock Mamba-2 for one scan, to a loop over scans for several."""

import pytest
import torch
from tiny_block import HEADS, HIDDEN, INNER, STATE, TAPS, WIDTH, float64, make_config, randomise
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

import modeling_mdm.scan_pass
from modeling_mdm.block import GatedRMSNorm, MDMBlock, MDMMamba2Mixer, MDMSeparateMixer
from modeling_mdm.sequence import JointSequence


def ordered_sequence(order, valid=None, text_segment=None):
    """A joint sequence that is read in the orders (b, k, l), all of it given."""
    batch, scans, length = order.shape
    everywhere = torch.ones(batch, length, dtype=torch.bool)
    return JointSequence(
        valid=everywhere if valid is None else valid,
        given=everywhere,
        special=~everywhere,
        turn=torch.zeros(batch, length, dtype=torch.long),
        time_index=torch.zeros(batch, length, dtype=torch.long),
        orders=order,
        inverses=order.argsort(-1),
        scan_active=torch.ones(scans, length, dtype=torch.bool),
        all_active=True,
        num_null=0,
        text_segment=length if text_segment is None else text_segment,
        text_tokens=0,
        image_tokens=0,
    )


def random_order(batch, scans, length):
    return torch.rand(batch, scans, length).argsort(-1)


# --- Stock Mamba-2


def stock_and_mdm():
    """transformers' mixer in float32 and MDM's in float64 with the same weights."""
    stock = Mamba2Mixer(
        Mamba2Config(
            hidden_size=HIDDEN,
            num_heads=HEADS,
            head_dim=WIDTH,
            state_size=STATE,
            expand=INNER // HIDDEN,
            conv_kernel=TAPS,
            n_groups=1,
            chunk_size=4,
            num_hidden_layers=1,
            time_step_limit=(0.0, 100.0),
        ),
        layer_idx=0,
    )
    randomise(stock)
    config = make_config(image_scans=[1], text_scans=[1], discretization="euler")
    ours = MDMMamba2Mixer(config, (0,)).double()
    pairs = {
        "in_proj.weight": stock.in_proj.weight,
        "scan.conv_weight": stock.conv1d.weight.transpose(0, 1),
        "scan.conv_bias": stock.conv1d.bias[None],
        "scan.A_log": stock.A_log[None],
        "scan.D": stock.D[None],
        "scan.delta_bias": stock.dt_bias[None],
        "norm.weight": stock.norm.weight,
        "out_proj.weight": stock.out_proj.weight,
    }
    ours.load_state_dict(pairs)
    return stock, ours, pairs


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_one_scan_with_euler_equals_transformers_mixer(length, dtype):
    stock, ours, pairs = stock_and_mdm()
    ours = ours.to(dtype)
    x = torch.randn(2, length, HIDDEN, requires_grad=True)
    x_ours = x.detach().to(dtype).requires_grad_()
    sequence = ordered_sequence(torch.arange(length).expand(2, 1, -1))
    expected, output = stock(x), ours(x_ours, sequence, None, None)
    torch.testing.assert_close(output.float(), expected, rtol=1e-6, atol=1e-6)
    factor = torch.randn_like(expected)
    names = dict(ours.named_parameters())
    sources = [x_ours, *(names[name] for name in pairs)]
    gradients = torch.autograd.grad((output * factor).sum(), sources)
    parameters = dict(stock.named_parameters())
    stock_names = ["in_proj.weight", "conv1d.weight", "conv1d.bias", "A_log", "D", "dt_bias"]
    stock_names += ["norm.weight", "out_proj.weight"]
    by_stock = torch.autograd.grad(
        (expected * factor).sum(), [x, *(parameters[name] for name in stock_names)]
    )
    for gradient, exact in zip(gradients, by_stock, strict=True):
        gradient = gradient.float().view(-1)
        size = exact.abs().max()
        assert size > 0 or length == 1  # a decay matters from the second position on
        # float32 sums over positions in another order: a few units in the last place of the largest
        assert (gradient - exact.flatten()).abs().max() < 3e-6 * max(size, 1)


def test_a_scan_in_another_order_equals_transformers_mixer_on_the_permuted_sequence():
    stock, ours, _ = stock_and_mdm()
    x, order = torch.randn(2, 9, HIDDEN), random_order(2, 1, 9)
    rows = torch.arange(2)[:, None]
    permuted = stock(x[rows, order[:, 0]])
    expected = torch.empty_like(permuted)
    expected[rows, order[:, 0]] = permuted
    output = ours(x.double(), ordered_sequence(order), None, None)
    torch.testing.assert_close(output.float(), expected, rtol=1e-6, atol=1e-6)


# --- Several scans against a loop


def silu(x):
    return x / (1 + torch.exp(-x))


def scan_by_loop(scan, k, x, BC, raw_delta, zoh=True):
    """One scan of one item, in its order: convolution, Eq. 12-13, Eq. 10-11 with the skip term."""
    channels, outputs = torch.cat([x, BC], -1), []
    states = [torch.zeros(STATE, WIDTH, dtype=float64) for _ in range(HEADS)]
    for n in range(x.shape[0]):
        convolved = scan.conv_bias[k]
        for back in range(min(TAPS, n + 1)):
            convolved = convolved + scan.conv_weight[k, :, TAPS - 1 - back] * channels[n - back]
        value, B, C = silu(convolved).split([INNER, STATE, STATE])
        delta = torch.log1p(torch.exp(raw_delta[n] + scan.delta_bias[k]))
        heads = []
        for h in range(HEADS):
            A, u = -torch.exp(scan.A_log[k, h]), value[h * WIDTH : (h + 1) * WIDTH]
            A_bar = torch.exp(delta[h] * A)
            B_bar = (A_bar - 1) / A * B if zoh else delta[h] * B
            states[h] = A_bar * states[h] + torch.outer(B_bar, u)
            heads.append(C @ states[h] + scan.D[k, h] * u)
        outputs.append(torch.cat(heads))
    return torch.stack(outputs)


def gated_norm(y, z, weight):
    gated = y * silu(z)
    return gated / torch.sqrt((gated**2).mean(-1, keepdim=True) + 1e-5) * weight


def back_to_storage(y, order):
    result = torch.empty_like(y)
    result[order] = y
    return result


@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("scans", [(0,), (1,), (0, 1, 2, 3)])
def test_shared_mixer_equals_a_loop_over_scans(scans, discretization, scan_passes):
    """Permute, convolve, scan, permute back, sum; then gate, norm and project once."""
    mixer = randomise(MDMMamba2Mixer(make_config(discretization=discretization), scans).double())
    x, order = torch.randn(2, 7, HIDDEN, dtype=float64), random_order(2, 4, 7)
    expected = []
    with torch.no_grad():
        for b in range(2):
            projected = x[b] @ mixer.in_proj.weight.T
            z, value, rest = projected.tensor_split([INNER, 2 * INNER], dim=-1)
            total = torch.zeros(7, INNER, dtype=float64)
            for i, k in enumerate(scans):
                own = rest[:, i * (2 * STATE + HEADS) : (i + 1) * (2 * STATE + HEADS)]
                BC, raw_delta = own.tensor_split([2 * STATE], dim=-1)
                steps = order[b, k]
                inputs = value[steps], BC[steps], raw_delta[steps]
                y = scan_by_loop(mixer.scan, i, *inputs, zoh=discretization == "zoh")
                total += back_to_storage(y, steps)
            expected.append(gated_norm(total, z, mixer.norm.weight) @ mixer.out_proj.weight.T)
        output = mixer(x, ordered_sequence(order), None, None)
    torch.testing.assert_close(output, torch.stack(expected), rtol=0, atol=1e-10)


PAIRS = ((1, 1), (2, 2), (3, 1), (4, 2))


@pytest.mark.parametrize("boundary", [0, 3, 7])
@pytest.mark.parametrize("scans", [(2,), (0, 1, 2, 3)])
def test_separate_mixer_gives_a_position_the_projections_of_its_own_modality(
    scans, boundary, scan_passes
):
    """The first `boundary` positions are words; a pair is (image order, text order)."""
    mixer = randomise(MDMSeparateMixer(make_config(scan_projections="separate"), scans).double())
    x, order = torch.randn(2, 7, HIDDEN, dtype=float64), random_order(2, 4, 7)

    def project(projections, pair, rows):
        names = [f"text_{pair[1]}" if n < boundary else f"image_{pair[0]}" for n in range(7)]
        return torch.stack(
            [projections[name].weight @ row for name, row in zip(names, rows, strict=True)]
        )

    expected = torch.zeros(2, 7, HIDDEN, dtype=float64)
    with torch.no_grad():
        for b in range(2):
            for i, k in enumerate(scans):
                z, value, BC, raw_delta = project(mixer.in_proj, PAIRS[k], x[b]).split(
                    [INNER, INNER, 2 * STATE, HEADS], dim=-1
                )
                steps = order[b, k]
                y = scan_by_loop(mixer.scan, i, value[steps], BC[steps], raw_delta[steps])
                y = gated_norm(back_to_storage(y, steps), z, mixer.norm[i].weight)
                expected[b] += project(mixer.out_proj, PAIRS[k], y)
        output = mixer(x, ordered_sequence(order, text_segment=boundary), None, None)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixer", [MDMMamba2Mixer, MDMSeparateMixer])
@pytest.mark.parametrize("numbers", [1, 2 * 7 * INNER * 2, 2 * 7 * INNER * 3])
def test_passes_of_some_scans_have_the_gradients_of_one_pass(mixer, numbers, monkeypatch):
    mixer = randomise(mixer(make_config(), (0, 1, 2, 3)).double())
    x = torch.randn(2, 7, HIDDEN, dtype=float64, requires_grad=True)
    sequence = ordered_sequence(random_order(2, 4, 7), text_segment=3)
    sources, weights = [x, *mixer.parameters()], torch.randn(2, 7, HIDDEN, dtype=float64)
    monkeypatch.setattr(modeling_mdm.scan_pass, "PASS_NUMBERS", 2**40)
    assert len(mixer.scan.passes(x, sequence, None, None)) == 1
    expected = mixer(x, sequence)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), sources)
    monkeypatch.setattr(modeling_mdm.scan_pass, "PASS_NUMBERS", numbers)
    passes = [scan_pass.num_scans for scan_pass in mixer.scan.passes(x, sequence, None, None)]
    assert passes == {0: [1] * 4, 2: [2, 2], 3: [3, 1]}[numbers // (2 * 7 * INNER)]
    output = mixer(x, sequence)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad((output * weights).sum(), sources)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, sequence), expected, rtol=0, atol=1e-10)


def test_separate_projections_of_one_modality_never_see_the_other():
    mixer = randomise(MDMSeparateMixer(make_config(scan_projections="separate"), (0, 1)).double())
    x = torch.randn(1, 5, HIDDEN, dtype=float64)
    mixer(x, ordered_sequence(random_order(1, 2, 5), text_segment=5), None, None).sum().backward()
    for projections in (mixer.in_proj, mixer.out_proj):
        assert set(projections) == {"text_1", "text_2", "image_1", "image_2"}
        for name, projection in projections.items():
            moved = projection.weight.grad is not None and bool(projection.weight.grad.any())
            assert moved == name.startswith("text")


def test_gated_norm_is_the_norm_of_the_gated_value():
    norm = randomise(GatedRMSNorm(6, 1e-5).double())
    y, gate = torch.randn(2, 3, 5, 6, dtype=float64)
    torch.testing.assert_close(norm(y, gate), gated_norm(y, gate, norm.weight))
    single, rounded = norm.float(), (y.bfloat16(), gate.bfloat16())
    before = [tensor.clone() for tensor in (y, gate, *rounded)]
    half = single(*rounded)
    assert half.dtype == torch.bfloat16
    with torch.no_grad():  # in place, but not in the inputs
        assert torch.equal(single(*rounded), half)
        expected = gated_norm(y, gate, norm.weight)
        torch.testing.assert_close(norm.double()(y, gate), expected)
    for tensor, old in zip((y, gate, *rounded), before, strict=True):
        assert torch.equal(tensor, old)


# --- The block


def test_a_block_is_the_residual_of_a_modulated_mixer():
    """h + gate * mixer((1 + scale) * norm(h) + shift), each from its position's own time."""
    config = make_config()
    block = randomise(MDMBlock(config, 0).double()).eval()
    order = random_order(2, 4, 6)
    sequence = ordered_sequence(order)
    sequence.time_index = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
    hidden = torch.randn(2, 6, HIDDEN, dtype=float64)
    modulation = torch.randn(2, 3, 3, HIDDEN, dtype=float64)
    with torch.no_grad():
        parts = modulation + block.modulation_bias
        at = torch.stack([parts[b, sequence.time_index[b]] for b in range(2)])  # (b, l, 3, hidden)
        shift, scale, gate = at.unbind(2)
        root = torch.sqrt((hidden**2).mean(-1, keepdim=True) + config.layer_norm_epsilon)
        normed = hidden / root * block.norm.weight
        mixed = block.mixer((1 + scale) * normed + shift, sequence, None, None)
        output = block(hidden, modulation, sequence)
    torch.testing.assert_close(output, hidden + gate * mixed, rtol=0, atol=1e-12)


def test_cyclic_blocks_take_the_scans_in_turn():
    blocks = [MDMBlock(make_config(scan_mode="cyclic"), index) for index in range(6)]
    assert [block.mixer.scan.scans for block in blocks] == [(0,), (1,), (2,), (3,), (0,), (1,)]
    block = MDMBlock(make_config(scan_mode="parallel"), 5)
    assert block.mixer.scan.scans == (0, 1, 2, 3)
    order = random_order(1, 4, 6)
    third = randomise(blocks[2].double()).eval()
    x, modulation = torch.randn(1, 6, HIDDEN).double(), torch.randn(1, 3, 3, HIDDEN).double()
    others = order.clone()
    others[:, [0, 1, 3]] = random_order(1, 3, 6)
    first, second = (third(x, modulation, ordered_sequence(o)) for o in (order, others))
    assert torch.equal(first, second)
