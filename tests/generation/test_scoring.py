# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`score()`: what is scored and how it is put together, its inputs, and as a ranker."""

import math
from itertools import pairwise

import pytest
import torch
from PIL import Image
from shipped import PICTURES, ROOT, load_shipped
from tiny_model import MIXERS, PATCHES, SIDE, VOCABULARY, WORDS, make_model, mixed_batch
from tiny_vq import EMU3
from tiny_vq import make_model as make_vq_model
from torch.distributions import Normal, kl_divergence

from modeling_mdm import MDMConfig, scoring
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.decoder import DecoderInputs
from modeling_mdm.diffusion import MAX_LOG_SNR
from modeling_mdm.generation_regions import open_content
from modeling_mdm.likelihood import (
    LAST_LOG_SNR,
    Posterior,
    time_of,
)
from modeling_mdm.scoring import first_log_snr
from modeling_mdm.sequence import take_part, whole

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- what is scored, and how it is put together ---


def test_only_noisy_positions_count_and_the_parts_add_up():
    model, batch = make_model(), mixed_batch()
    out = model.score(**batch, num_evaluations=3, generator=seeded())
    noisy = {g: part.noisy for g, part in model.encode_inputs(**batch).content.items()}
    assert set(out.position_log_likelihood) == {"text", "image"}
    for g, mask in noisy.items():
        assert not out.position_log_likelihood[g][~mask].any()
        assert (out.position_log_likelihood[g][mask] < 0).all()
        assert (out.position_score_entropy[g][mask] > 0).all()
    whole = sum(part.sum(-1) for part in out.position_log_likelihood.values())
    torch.testing.assert_close(out.log_likelihood, whole)
    torch.testing.assert_close(
        out.log_likelihood, -(out.reconstruction + out.diffusion + out.prior)
    )
    entropy = sum(part.sum(-1) for part in out.position_score_entropy.values())
    torch.testing.assert_close(out.score_entropy, entropy)
    assert out.num_evaluations == 3


@pytest.mark.parametrize("levels", ["random", "grid"])
def test_an_item_is_scored_alike_alone_and_in_a_batch(levels):
    model, batch = make_model(), mixed_batch()
    whole = model.score(**batch, num_evaluations=2, levels=levels, generator=seeded(3))
    for item in (2, 7):  # joint, from nothing and from a prompt and a class
        alone = {name: value[item : item + 1] for name, value in batch.items()}
        one = model.score(**alone, num_evaluations=2, levels=levels, generator=seeded(3))
        torch.testing.assert_close(one.log_likelihood[0], whole.log_likelihood[item])


def test_shared_noise_scores_equal_items_alike_and_own_noise_does_not():
    model = make_model()
    words = torch.randint(4, VOCABULARY, (1, WORDS), generator=seeded()).repeat(3, 1)
    shared = model.score(words, num_evaluations=2, generator=seeded())
    torch.testing.assert_close(shared.log_likelihood, shared.log_likelihood[:1].expand(3))
    again = model.score(words, num_evaluations=2, generator=seeded())
    torch.testing.assert_close(shared.log_likelihood, again.log_likelihood, rtol=0, atol=0)
    own = model.score(words, num_evaluations=2, generator=seeded(), shared_noise=False)
    assert own.log_likelihood.unique().numel() == 3


def test_codes_of_a_vq_vae_are_scored_as_symbols():
    model = make_vq_model(EMU3).eval()
    pixels = torch.rand(2, 3, 8, 8, generator=seeded()) * 2 - 1
    out = model.score(pixel_values=pixels, num_evaluations=2, generator=seeded(), pixel_std=1e3)
    # Wide enough, every code is as likely as any other.
    codes = model.vq.codebook.shape[0]
    torch.testing.assert_close(
        out.reconstruction, torch.full((2,), 16 * math.log(codes)), rtol=1e-3, atol=1e-3
    )


def test_bfloat16_scores_as_float32_does():
    """A model whose weights are bfloat16: the bound itself is summed in float32."""
    model = make_model(torch.float32)
    batch = mixed_batch(torch.float32)
    expected = model.score(**batch, num_evaluations=2, generator=seeded()).log_likelihood
    found = model.to(torch.bfloat16).score(**batch, num_evaluations=2, generator=seeded())
    assert found.log_likelihood.dtype == torch.float32
    torch.testing.assert_close(found.log_likelihood, expected, rtol=0.1, atol=1.0)


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_is_given_is_read_once_and_changes_no_score(mixer, monkeypatch):
    """Against evaluations of the whole sequence, nothing kept between them."""
    model = make_model(**MIXERS[mixer])
    options = {"num_evaluations": 3, "levels": "grid"}
    lengths, original = [], model.decoder.layers[0].forward

    def forward(hidden_states, *args, **kwargs):
        lengths.append(hidden_states.shape[1])
        return original(hidden_states, *args, **kwargs)

    monkeypatch.setattr(model.decoder.layers[0], "forward", forward)
    found = model.score(**mixed_batch(), generator=seeded(), **options)
    given, *noisy = lengths
    assert given == 1 + 1 + 4 + 1 + PATCHES  # class and start tokens, at most four words
    assert noisy == [1 + WORDS + 1 + PATCHES] * 3  # time tokens
    lengths.clear()
    monkeypatch.setattr(model, "read", lambda *_: None)

    def everything(sequence, content, given):
        return take_part(sequence, content, given) if given else whole(sequence, content)

    monkeypatch.setattr(scoring, "take_part", everything)
    expected = model.score(**mixed_batch(), generator=seeded(), **options)
    assert lengths == [1 + 2 + WORDS + 2 + PATCHES] * 3  # class, start and time tokens
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
    for g, value in expected.position_score_entropy.items():
        torch.testing.assert_close(found.position_score_entropy[g], value, rtol=1e-10, atol=1e-10)


# --- content: what the masks need not say ---


def test_content_text_is_a_region_as_it_is_written():
    model = make_model()
    words = torch.tensor([[7, 8, 3, 0], [7, 9, 10, 3]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    opened = open_content({"input_ids": words, "attention_mask": mask}, "text", model.config)
    assert opened["input_ids"].tolist() == [[7, 8, 3, 0, 0, 0], [7, 9, 10, 3, 0, 0]]
    assert opened["attention_mask"].all() and not opened["text_given"].any()
    found = model.score(
        words, content="text", attention_mask=mask, num_evaluations=2, generator=seeded()
    )
    by_masks = model.score(
        opened["input_ids"],
        text_given=torch.zeros(2, 6).bool(),
        num_evaluations=2,
        generator=seeded(),
    )
    torch.testing.assert_close(found.log_likelihood, by_masks.log_likelihood)


def test_content_text_after_a_prompt_leaves_the_prompt_given():
    config = make_model().config
    inputs = {
        "input_ids": torch.tensor([[7, 3, 8, 9, 3], [5, 6, 3, 4, 0], [0, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 1, 0], [0] * 5]),
        "turn_ids": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0], [0] * 5]),
    }
    opened = open_content(inputs, "text", config)
    # WORDS places from the first of the answer; a row without words stays without.
    assert opened["text_given"][:2].sum(-1).tolist() == [2, 3]
    assert opened["text_given"][0, :2].all() and opened["text_given"][1, :3].all()
    assert opened["attention_mask"].tolist() == [[1] * 8 + [0], [1] * 9, [0] * 9]
    assert opened["turn_ids"][:2].tolist() == [[0, 0] + [1] * 6 + [0], [0, 0, 0] + [1] * 6]


def test_content_image_is_the_pictures_of_the_last_turn():
    config = make_model().config
    pixels = torch.zeros(2, 3, 1, SIDE, SIDE)
    inputs = {
        "pixel_values": pixels,
        "image_given": torch.ones(2, 3, SIDE, SIDE).bool(),
        "image_turn_ids": torch.tensor([[0, 1, 2], [0, 1, 1]]),
        "pixel_attention_mask": torch.ones(2, 3, SIDE, SIDE).long(),
    }
    inputs["pixel_attention_mask"][0, 2] = 0
    scored = ~open_content(inputs, "image", config)["image_given"][..., 0, 0]
    assert scored[0, :2].tolist() == [False, True] and scored[1].tolist() == [False, True, True]
    one = {"pixel_values": pixels[:, 0], "image_given": torch.ones(2, SIDE, SIDE).bool()}
    assert not open_content(one, "image", config)["image_given"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_evaluations": 0}, r"`num_evaluations` is 0"),
        ({"levels": "even"}, r"`levels` is 'even': choose one of random, grid"),
        ({"num_evaluations": 2.5}, r"`num_evaluations` is 2\.5: use an integer of at least 1"),
        ({"pixel_std": 0.0}, r"`pixel_std` is 0\.0: use a positive number"),
        ({"shared_noise": "no"}, r"`shared_noise` is 'no'"),
        ({"generator": 7}, r"`generator` is 7: pass torch\.Generator"),
        ({"content": "sound"}, r"`content` is 'sound': choose None or one of text"),
        ({"content": "joint"}, r"`content` is 'joint', but `pixel_values` is None"),
        ({"text_given": torch.ones(1, 3).bool()}, r"Nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_model().score(torch.tensor([[5, 6, 7]]), **options)


def test_shipped_checkpoint_prefers_the_right_caption():
    model, processor = load_shipped()
    names = {"3_dress": 0, "9_ankle_boot": 1, "8_bag": 2, "1_trousers": 3}
    captions = [f"a photo of {name}" for name in ("a dress", "an ankle boot", "a bag")]
    captions.append("a photo of a pair of trousers")
    images = [Image.open(PICTURES / f"{name}.png") for name in names for _ in captions]
    inputs = processor(images=images, text=captions * len(names), return_tensors="pt")
    out = model.score(**inputs, content="text", num_evaluations=8, generator=seeded())
    right = torch.tensor(list(names.values()))
    assert out.score_entropy.view(4, 4).argmin(-1).tolist() == right.tolist()
    assert out.log_likelihood.view(4, 4).argmax(-1).tolist() == right.tolist()


@pytest.mark.slow
def test_the_bounds_of_all_captions_of_a_picture_are_those_of_a_distribution():
    """Probabilities of different captions cannot sum to more than 1, and most of it is theirs."""
    model, processor = load_shipped()
    captions = CaptionTable.from_json(ROOT / "examples" / "captions" / "fashion_mnist.json")
    captions = captions.all_captions()
    assert len(set(captions)) == len(captions) == 120
    images = [Image.open(PICTURES / "3_dress.png")] * len(captions)
    inputs = processor(images=images, text=captions, return_tensors="pt")
    options = {"content": "text", "num_evaluations": 32, "generator": seeded()}
    bounds = torch.stack([model.score(**inputs, **options).log_likelihood for _ in range(6)])

    def total(calls):
        return float(calls.double().mean(0).exp().sum())

    # The captions share their noise, so the error of the sum is told by leaving calls out of it.
    without = [total(torch.cat([bounds[:n], bounds[n + 1 :]])) for n in range(6)]
    error = math.sqrt(5 * torch.tensor(without).var(correction=0))
    assert error < 0.2
    assert 0.6 < total(bounds) < 1 + 3 * error


def standardised(model, g, mean, logvar):
    """q(z_0 | x) in the units of the latents that are diffused."""
    statistics = model.vae.statistics[g]
    factor = 1 / (statistics.variance + 1e-6).sqrt()
    return Posterior((mean - statistics.mean) * factor, logvar.exp() * factor.square())


def score_by_hand(model, batch, count, draw, pixel_std):
    """Nats and score entropy of every position and evaluation on a grid, and the prior's.

    Of one item that gives nothing: the network sees all of it.
    """
    encoded = model.encode_inputs(**batch)
    content, first = encoded.content, first_log_snr(model.config)
    edges = torch.linspace(first, LAST_LOG_SNR, count + 1, dtype=F64)
    sequence = model.decoder.lay_out(
        content, encoded.has_class, torch.zeros(1, dtype=torch.bool), encoded.grid
    )
    posteriors, candidates = {}, {}
    for g, part in encoded.modalities.items():
        posteriors[g] = standardised(model, g, part.posterior_mean, part.posterior_logvar)
    if "text" in content:
        words = model.vae.encode(torch.arange(model.config.vocab_size), "text")
        candidates["text"] = standardised(model, "text", *words)
    if model.vq is not None:
        codes = model.vae.encode(model.vq.codebook.double(), "image")
        candidates["image"] = standardised(model, "image", *codes)
    told = {name: {g: [] for g in content} for name in ("diffusion", "reconstruction", "entropy")}
    for log_snr_s, log_snr_t in pairwise(edges):
        abar, z_t, times, noise = torch.sigmoid(log_snr_t), {}, {}, {}
        for g, q in posteriors.items():
            noise[g] = torch.randn(q.mean.shape, generator=draw, dtype=F64)
            z_t[g] = abar.sqrt() * q.mean + (abar * q.variance + 1 - abar).sqrt() * noise[g]
            times[g] = time_of(model.schedules[g], log_snr_t)[None]
        inputs = DecoderInputs(sequence, content, z_t, times, encoded.class_labels)
        denoised = model.denoise(inputs, model.candidate_latents(content))
        step = 1 / (log_snr_s.exp() - log_snr_t.exp())  # variance with which z_s tells of z_0
        for g, q in posteriors.items():
            part = encoded.modalities[g]
            mean, variance = q.given(z_t[g], log_snr_t)
            if g in candidates:
                belief = candidates[g].mixture(denoised.logits[g], z_t[g], log_snr_t)
                log_shares = denoised.logits[g].log_softmax(-1)
                entropy = -log_shares.gather(-1, part.symbols[..., None])[..., 0]
            else:
                belief = denoised.clean[g], torch.zeros_like(z_t[g])
                gap = (denoised.clean[g] - q.mean).square().sum(-1) / 2
                entropy = gap * min(1 / (1 - float(abar)), model.config.denoising_weight_max)
            diffusion = kl_divergence(
                Normal(mean, (step + variance).sqrt()),
                Normal(belief[0], (step + belief[1]).sqrt()),
            ).sum(-1)
            z_0 = q.mean + (q.variance + math.exp(-first)).sqrt() * noise[g]
            decoded = model.vae.decode(z_0, g)
            if g == "text":
                log_shares = decoded.log_softmax(-1)
            elif model.vq is not None:
                gaps = decoded[:, :, None] - model.vq.codebook.double()
                log_shares = (-gaps.square().sum(-1) / (2 * pixel_std**2)).log_softmax(-1)
            if part.symbols is None:
                surprise = -Normal(decoded, pixel_std).log_prob(part.target).sum(-1)
            else:
                surprise = -log_shares.gather(-1, part.symbols[..., None])[..., 0]
            told["diffusion"][g].append(diffusion)
            told["reconstruction"][g].append(surprise / count)
            told["entropy"][g].append(entropy / count)
    last = torch.sigmoid(edges[-1])
    prior = {
        g: kl_divergence(
            Normal(last.sqrt() * q.mean, (last * q.variance + 1 - last).sqrt()),
            Normal(torch.zeros((), dtype=F64), 1.0),
        ).sum(-1)
        for g, q in posteriors.items()
    }
    return told, prior


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", ["words-and-pixels", "codes"])
def test_parts_of_the_bound_are_what_the_parts_of_the_model_say(kind, count):
    """On a grid of steps, every term written out."""
    if kind == "codes":
        model = make_vq_model(EMU3).double().eval()
        batch = {"pixel_values": torch.rand(1, 3, 8, 8, generator=seeded(), dtype=F64) * 2 - 1}
    else:
        model = make_model(latent_noise=0.4, denoising_weight_max=1.2)
        batch = {name: value[2:3] for name, value in mixed_batch().items()}  # joint, from nothing
    out = model.score(
        **batch, num_evaluations=count, levels="grid", generator=seeded(4), pixel_std=0.3
    )
    with torch.no_grad():
        told, prior = score_by_hand(model, batch, count, seeded(4), pixel_std=0.3)
    for g, at_last in prior.items():
        expected = -sum(told["diffusion"][g]) - sum(told["reconstruction"][g]) - at_last
        torch.testing.assert_close(out.position_log_likelihood[g], expected)
        torch.testing.assert_close(out.position_score_entropy[g], sum(told["entropy"][g]))
    for name in ("diffusion", "reconstruction"):
        total = sum(sum(parts).sum(-1) for parts in told[name].values())
        torch.testing.assert_close(out[name], total)
    torch.testing.assert_close(out.prior, sum(part.sum(-1) for part in prior.values()))
    each = [
        sum(
            (told[name][g][index]).sum(-1)
            for name in ("diffusion", "reconstruction")
            for g in prior
        )
        for index in range(count)
    ]
    if count == 1:
        assert out.standard_error.isnan().all()
    else:  # 4 / 2 times the mean of two bends' squares / 6
        bends = [each[i] - 2 * each[i + 1] + each[i + 2] for i in range(2)]
        error = (2 * (bends[0] ** 2 + bends[1] ** 2) / 6).sqrt()
        torch.testing.assert_close(out.standard_error, error)


@pytest.mark.parametrize(
    ("latent_noise", "log_snr"),
    [(0.0, MAX_LOG_SNR), (1e-9, MAX_LOG_SNR), (0.4, -2 * math.log(0.4)), (1e4, LAST_LOG_SNR + 1)],
)
def test_the_first_state_has_the_noise_that_the_decoder_learned_with(latent_noise, log_snr):
    found = first_log_snr(MDMConfig(latent_noise=latent_noise))
    assert found == pytest.approx(log_snr)


def test_a_score_asks_whether_its_type_is_emulated_and_needs_no_generator(monkeypatch):
    asked, model = [], make_model(torch.float32)
    monkeypatch.setattr(scoring, "warn_if_computes_emulated", lambda *about: asked.append(about))
    words = torch.tensor([[5, 6, 7]])
    first, second = (model.score(words, num_evaluations=1).log_likelihood for _ in range(2))
    assert asked == [(torch.float32, model.device)] * 2
    assert first != second and first.dtype == torch.float32
