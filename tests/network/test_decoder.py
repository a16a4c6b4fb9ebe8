# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the decoder is given and what is made of its features, where no weight is zero.

Heads, gates and modulation start at zero (adaLN), so that a new model and a few steps of training
look the same with a wrong sign in what they add: here none of them is zero.

Axes: b batch, n positions of one modality, d latent_dim, v vocabulary.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_model import CLASSES, LATENT, make_model, mixed_batch
from tiny_vq import EMU3
from tiny_vq import make_model as make_vq_model

from modeling_mdm.attention import MDMAttentionBlock, MDMAttentionMixer
from modeling_mdm.decoder import DecoderInputs, ZeroLinear, recorded_states
from modeling_mdm.diffusion import SCHEDULES

F64 = torch.float64
BATCH, TAN_SCALE = 8, 3.0


def alpha_bar(schedule, t):
    """Eq. 1's alpha-bar at one time, within the clip."""
    if schedule == "cosine":
        start, rate = 0.008, math.pi / 2 / 1.008
        return (math.cos((t + start) * rate) / math.cos(start * rate)) ** 2
    if schedule == "tan":
        return 1 / (1 + (TAN_SCALE * math.tan(math.pi * t / 2)) ** 2)
    log_snrs = [20.0]
    product = 1.0
    for step in range(1000):  # DDPM's grid, between whose points the log-SNR is a line
        product *= 1 - (1e-4 + step / 999 * (0.02 - 1e-4))
        log_snrs.append(math.log(product / (1 - product)))
    index = min(int(t * 1000), 999)
    share = t * 1000 - index
    return 1 / (1 + math.exp(-(log_snrs[index] * (1 - share) + log_snrs[index + 1] * share)))


def test_a_model_for_these_tests_has_no_zero_weight():
    model = make_model(use_mode_head=True)
    assert sum(isinstance(module, ZeroLinear) for module in model.modules()) == 3
    for name, parameter in model.named_parameters():
        assert parameter.any(), name


def evaluate(model, t, estimates=None):
    """One evaluation of the network on a batch of every task, all items at times of their own."""
    encoded = model.encode_inputs(**mixed_batch())
    content = encoded.content
    dropped = torch.arange(BATCH) % 3 == 1
    sequence = model.decoder.lay_out(content, encoded.has_class, dropped, encoded.grid)
    z_t = {g: 2 * torch.randn_like(part.latents) for g, part in content.items()}
    inputs = DecoderInputs(sequence, content, z_t, t, encoded.class_labels, estimates)
    with torch.no_grad():
        candidates = model.candidate_latents(content)
        denoised = model.denoise(inputs, candidates)
        features = model.decoder(inputs)
    return encoded, sequence, z_t, candidates, denoised, features


def different_times(*times):
    times = torch.tensor(times, dtype=F64)
    return {"text": times, "image": times.flip(0)}


TIMES = different_times(0.001, 0.05, 0.2, 0.37, 0.5, 0.7, 0.93, 0.999)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_clean_estimate_of_a_picture_is_v_prediction(schedule):
    """sqrt(abar) z_t + sqrt(1 - abar) (W h + b), at each item's own time."""
    model = make_model(image_schedule=schedule, tan_scale=TAN_SCALE)
    _, _, z_t, _, denoised, features = evaluate(model, TIMES)
    weight, bias = model.image_head.weight, model.image_head.bias
    for item, t in enumerate(TIMES["image"].tolist()):
        added = features["image"][item] @ weight.T + bias
        assert added.abs().mean() > 0.1
        abar = alpha_bar(schedule, t)
        expected = math.sqrt(abar) * z_t["image"][item] + math.sqrt(1 - abar) * added
        torch.testing.assert_close(denoised.clean["image"][item], expected, rtol=0, atol=1e-9)
    assert "image" not in denoised.logits


def test_items_in_turn_may_share_a_time():
    model = make_model()
    few = different_times(0.2, 0.8)
    every = {g: t.repeat_interleave(BATCH // 2) for g, t in few.items()}
    torch.manual_seed(1)
    first = evaluate(model, few)[4]
    torch.manual_seed(1)  # for the same states
    second = evaluate(model, every)[4]
    for g, clean in first.clean.items():
        torch.testing.assert_close(clean, second.clean[g], rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_clean_estimate_of_a_word_is_the_mean_of_the_candidates(schedule):
    """y_v averaged with Eq. 7's softmax of W h + b."""
    model = make_model(text_schedule=schedule, tan_scale=TAN_SCALE)
    _, _, _, candidates, denoised, features = evaluate(model, TIMES)
    y = candidates["text"]  # (v, d)
    words, _ = model.vae.encode(torch.arange(len(y)), "text")
    statistics = model.vae.statistics["text"]
    torch.testing.assert_close(y, (words - statistics.mean) / (statistics.variance + 1e-6).sqrt())
    logits = features["text"] @ model.text_head.weight.T + model.text_head.bias
    assert logits.std() > 0.1
    for item, own in enumerate(logits):
        torch.testing.assert_close(denoised.logits["text"][item], own, rtol=1e-6, atol=1e-8)
        odds = (own - own.amax(-1, keepdim=True)).exp()
        shares = odds / odds.sum(-1, keepdim=True)
        mean = sum(shares[:, v, None] * y[v] for v in range(len(y)))
        torch.testing.assert_close(denoised.clean["text"][item], mean, rtol=1e-6, atol=1e-8)


def test_codes_of_a_vq_vae_are_candidates_as_words_are():
    model = make_vq_model(EMU3).double().eval()
    with torch.no_grad():
        model.image_head.weight.normal_()
        model.image_head.bias.normal_()
    pixels = torch.rand(2, 3, 8, 8, dtype=F64) * 2 - 1
    encoded = model.encode_inputs(pixel_values=pixels)
    absent = torch.zeros(2, dtype=torch.bool)
    sequence = model.decoder.lay_out(encoded.content, absent, absent, encoded.grid)
    z_t = {"image": torch.randn_like(encoded.content["image"].latents)}
    times = {"image": torch.tensor([0.3, 0.6], dtype=F64)}
    inputs = DecoderInputs(sequence, encoded.content, z_t, times, encoded.class_labels)
    with torch.no_grad():
        candidates = model.candidate_latents(encoded.content)
        denoised = model.denoise(inputs, candidates)
        features = model.decoder(inputs)["image"]
    logits = features @ model.image_head.weight.T + model.image_head.bias
    torch.testing.assert_close(denoised.logits["image"], logits)
    expected = torch.softmax(logits, -1) @ candidates["image"]
    torch.testing.assert_close(denoised.clean["image"], expected)


# --- What enters the blocks and what leaves them


def waves(value, size, longest=10000.0):
    """Sines, then cosines, of wavelengths from 2 pi to 2 pi `longest`."""
    half = size // 2
    angles = [value * longest ** (-i / (half - 1)) for i in range(half)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=F64)


def time_features(model, t_text, t_image=0.0):
    """Embeddings of 0 (of what is given), a time of words and a time of patches."""
    module = model.decoder.time_embedding
    rows = []
    for kind, t in enumerate((0.0, t_text, t_image)):
        inner = module.in_proj.weight @ waves(1000 * t, 256) + module.in_proj.bias
        inner = inner * torch.sigmoid(inner)
        rows.append(module.out_proj.weight @ inner + module.out_proj.bias + module.kind[kind])
    return rows


def place_features(model, g, place, turn):
    module = model.decoder.place_embedding[g]
    axes = torch.cat([waves(value, 64) for value in (*place, turn)])
    return module.proj.weight @ axes + module.proj.bias


@pytest.mark.parametrize("feeds_back", [False, True])
def test_what_enters_the_first_block(feeds_back):
    """Special tokens, latents or what is given, last estimates where noisy, places and turns."""
    model, decoder = make_model(), make_model().decoder
    draw = torch.Generator().manual_seed(5)
    estimates = None
    if feeds_back:
        shapes = {"text": (BATCH, 6, LATENT), "image": (BATCH, 4, LATENT)}
        estimates = {g: torch.randn(*s, generator=draw, dtype=F64) for g, s in shapes.items()}
    with recorded_states(model.decoder.layers) as states:
        encoded, sequence, z_t, *_ = evaluate(model, TIMES, estimates)
    entering, null = states[0], decoder.null_tokens
    times = zip(TIMES["text"].tolist(), TIMES["image"].tolist(), strict=True)
    for item, (t_text, t_image) in enumerate(times):
        _, at_text, at_image = time_features(model, t_text, t_image)
        label = max(0, int(encoded.class_labels[item]))
        row = [decoder.class_embedding.weight[label], *null]
        for g, at in (("text", at_text), ("image", at_image)):
            time_token, projection = decoder.time_token[g], decoder.latent_proj[g]
            row += [getattr(decoder.start_tokens, g), time_token.weight @ at + time_token.bias]
            part = encoded.content[g]
            for n in range(part.latents.shape[1]):
                noisy = bool(part.valid[item, n] and not part.given[item, n])
                latent = z_t[g][item, n] if noisy else part.latents[item, n]
                last = (
                    estimates[g][item, n] if feeds_back and noisy else torch.zeros(LATENT).double()
                )
                place = part.place[item, n].reshape(-1).tolist()
                row.append(
                    projection.weight @ torch.cat([latent, last])
                    + projection.bias
                    + place_features(model, g, place, int(part.turn[item, n]))
                )
        torch.testing.assert_close(entering[item], torch.stack(row), rtol=0, atol=1e-9)
    assert sequence.num_null == len(null) > 0 and CLASSES > 1


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_features_are_the_modulated_norm_of_what_leaves_the_last_block(mixer):
    """(1 + scale) norm(h) + shift, and every block is given the shared modulation of its time."""
    model = make_model(mixer=mixer)
    given = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    with recorded_states(model.decoder.layers) as states:
        _, sequence, _, _, _, features = evaluate(model, TIMES)
    decoder, leaving = model.decoder, states[-1]
    parts = 6 if mixer == "attention" else 3
    for item, times in enumerate(zip(TIMES["text"].tolist(), TIMES["image"].tolist(), strict=True)):
        rows = [F.silu(row) for row in time_features(model, *times)]
        shared = torch.stack(
            [decoder.modulation.weight @ r + decoder.modulation.bias for r in rows]
        )
        for modulation in given:
            torch.testing.assert_close(
                modulation[item], shared.view(3, parts, -1), rtol=0, atol=1e-9
            )
        final = torch.stack(
            [decoder.norm_modulation.weight @ r + decoder.norm_modulation.bias for r in rows]
        )
        shift, scale = final[sequence.time_index[item]].chunk(2, dim=-1)
        h = leaving[item]
        norm = h / (h.square().mean(-1, keepdim=True) + model.config.layer_norm_epsilon).sqrt()
        expected = (1 + scale) * norm * decoder.norm.weight + shift
        torch.testing.assert_close(
            features["text"][item], expected[sequence.words], atol=1e-9, rtol=0
        )
        torch.testing.assert_close(
            features["image"][item], expected[sequence.patches], atol=1e-9, rtol=0
        )


def test_a_block_of_attention_has_two_modulated_branches():
    """h + gate_1 mixer(mod(norm h)), then the same of the feed-forward with three more vectors."""
    model = make_model(mixer="attention")
    block = model.decoder.layers[1]
    assert isinstance(block, MDMAttentionBlock) and isinstance(block.mixer, MDMAttentionMixer)
    _, sequence, *_ = evaluate(model, TIMES)
    length, width = sequence.time_index.shape[1], model.config.hidden_size
    h = torch.randn(BATCH, length, width, dtype=F64)
    modulation = torch.randn(BATCH, 3, 6, width, dtype=F64)

    def norm(x, weight):
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    with torch.no_grad():
        rows = modulation + block.modulation_bias
        at = torch.stack([rows[b, sequence.time_index[b]] for b in range(BATCH)])  # (b, l, 6, w)
        shift, scale, gate, shift_2, scale_2, gate_2 = at.unbind(2)
        masks = sequence.given, sequence.valid, sequence.turn, None
        mixed = block.mixer((1 + scale) * norm(h, block.norm.weight) + shift, *masks)
        middle = h + gate * mixed
        normed = (1 + scale_2) * norm(middle, block.feed_forward_norm.weight) + shift_2
        expected = middle + gate_2 * block.feed_forward(normed)
        found = block(h, modulation, sequence)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
