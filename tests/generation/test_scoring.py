# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`score()`: the bound where the likelihood is known, its parts, its inputs, and as a ranker.

Axes: b batch, n positions, d latent_dim.
"""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_vq import EMU3
from test_vq import make_model as make_vq_model
from tiny_model import MIXERS, PATCHES, SIDE, VOCABULARY, WORDS, make_model, mixed_batch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMProcessor, scoring
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.decoder import DecoderInputs
from modeling_mdm.diffusion import MAX_LOG_SNR, SCHEDULES, NoiseSchedule
from modeling_mdm.generation_regions import open_content
from modeling_mdm.likelihood import (
    LAST_LOG_SNR,
    NoiseLevels,
    Posterior,
    standard_error,
    time_of,
)
from modeling_mdm.network import Denoised
from modeling_mdm.scoring import first_log_snr
from modeling_mdm.sequence import take_part, whole

ROOT = Path(__file__).resolve().parents[2]
F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the terms of the bound ---


def gaussian_step(z_t, posterior, log_snr_t, log_snr_s):
    """q(z_s | z_t, x) of each coordinate by conditioning the joint Gaussian of (z_s, z_t)."""
    abar_t, abar_s = torch.sigmoid(log_snr_t), torch.sigmoid(log_snr_s)
    alpha_t, alpha_s = abar_t.sqrt(), abar_s.sqrt()
    variance_s = abar_s * posterior.variance + 1 - abar_s
    variance_t = abar_t * posterior.variance + 1 - abar_t
    # z_t = (alpha_t / alpha_s) z_s + fresh noise
    covariance = alpha_t / alpha_s * variance_s
    mean = alpha_s * posterior.mean + covariance / variance_t * (z_t - alpha_t * posterior.mean)
    return Normal(mean, (variance_s - covariance.square() / variance_t).sqrt())


def draw_posterior(*shape, seed=0):
    draw = seeded(seed)
    mean = torch.randn(*shape, generator=draw, dtype=F64)
    return Posterior(mean, torch.rand(*shape, generator=draw, dtype=F64) + 0.05)


def test_a_step_is_the_kl_divergence_of_two_gaussian_steps():
    truth, belief = draw_posterior(3, 4, 2), draw_posterior(3, 4, 2, seed=1)
    walk = NoiseLevels.draw(4.0, 5, on_grid=True)
    edges = [walk.first, *walk.log_snrs]
    z_t = torch.randn(3, 4, 2, generator=seeded(2), dtype=F64)
    for index, (log_snr_s, log_snr_t) in enumerate(pairwise(edges)):
        expected = kl_divergence(
            gaussian_step(z_t, truth, log_snr_t, log_snr_s),
            gaussian_step(z_t, belief, log_snr_t, log_snr_s),
        ).sum(-1)
        found = walk.divergence(index, truth.given(z_t, log_snr_t), belief.given(z_t, log_snr_t))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(walk.log_snrs[-1], torch.tensor(LAST_LOG_SNR, dtype=F64))


def test_prior_is_the_kl_divergence_from_a_standard_normal():
    posterior = draw_posterior(2, 3, 4)
    log_snr = torch.tensor(-1.5, dtype=F64)
    abar = torch.sigmoid(log_snr)
    state = Normal(abar.sqrt() * posterior.mean, (abar * posterior.variance + 1 - abar).sqrt())
    expected = kl_divergence(state, Normal(torch.zeros((), dtype=F64), 1.0)).sum(-1)
    torch.testing.assert_close(posterior.prior(log_snr), expected)


def test_diffused_states_have_the_moments_of_the_posterior():
    posterior = Posterior(torch.tensor([[[0.7]]], dtype=F64), torch.tensor([[[0.4]]], dtype=F64))
    log_snr = torch.tensor(0.3, dtype=F64)
    noise = torch.randn(200_000, 1, 1, generator=seeded(), dtype=F64)
    z_t, abar = posterior.diffuse(noise, log_snr), torch.sigmoid(log_snr)
    assert abs(float(z_t.mean() - abar.sqrt() * 0.7)) < 0.01
    assert abs(float(z_t.var() - (abar * 0.4 + 1 - abar))) < 0.01
    # Regression of z_0 on z_t, and what is left over.
    mean, variance = posterior.given(z_t, log_snr)
    covariance = abar.sqrt() * 0.4
    slope = covariance / (abar * 0.4 + 1 - abar)
    torch.testing.assert_close(mean, 0.7 + slope * (z_t - abar.sqrt() * 0.7))
    torch.testing.assert_close(variance[0, 0, 0], 0.4 - slope * covariance)


def test_mixture_has_the_moments_of_the_words_posteriors():
    words = draw_posterior(5, 3)
    log_snr = torch.tensor(-0.4, dtype=F64)
    z_t = torch.randn(2, 4, 3, generator=seeded(3), dtype=F64)
    logits = torch.randn(2, 4, 5, generator=seeded(4), dtype=F64)
    mean, variance = words.mixture(logits, z_t, log_snr)
    for item in range(2):
        for place in range(4):
            state, shares = z_t[item, place], logits[item, place].softmax(-1)
            first = torch.zeros(3, dtype=F64)
            second = torch.zeros(3, dtype=F64)
            for word, share in enumerate(shares):
                one = Posterior(words.mean[word], words.variance[word])
                centre, spread = one.given(state, log_snr)
                first += share * centre
                second += share * (spread + centre.square())
            torch.testing.assert_close(mean[item, place], first)
            torch.testing.assert_close(variance[item, place], second - first.square())


def test_mixture_takes_logits_of_any_type():
    words, log_snr = draw_posterior(5, 3), torch.tensor(-0.4, dtype=F64)
    words = Posterior(words.mean.float(), words.variance.float())
    z_t = torch.randn(2, 4, 3, generator=seeded(3))
    logits = torch.randn(2, 4, 5, generator=seeded(4)).bfloat16()
    found = words.mixture(logits, z_t, log_snr)
    torch.testing.assert_close(found, words.mixture(logits.float(), z_t, log_snr))
    assert [part.dtype for part in found] == [torch.float32] * 2


def test_posteriors_in_float32_stay_so_at_levels_in_float64():
    """And say what they say in float64."""
    exact, log_snr = draw_posterior(2, 3, 4), torch.tensor(0.3, dtype=F64)
    short = Posterior(exact.mean.float(), exact.variance.float())
    z_t = torch.randn(2, 3, 4, generator=seeded(3), dtype=F64)
    walk = NoiseLevels.draw(3.0, 4, on_grid=True)
    found, expected = (
        [
            q.diffuse(state, log_snr),
            *q.given(state, log_snr),
            q.prior(log_snr),
            walk.divergence(1, q.given(state, log_snr), (state, state.square())),
        ]
        for q, state in ((short, z_t.float()), (exact, z_t))
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)


def test_a_random_level_stands_for_its_part_of_the_integral():
    """P |z0_pred - E[z_0 | z_t]|^2 / 2, whatever the variances; without a generator too."""
    walk = NoiseLevels.draw(4.0, 5, on_grid=False)
    edges = torch.linspace(4.0, LAST_LOG_SNR, 6, dtype=F64)
    assert walk.first == 4 and walk.last == LAST_LOG_SNR
    assert (walk.log_snrs <= edges[:-1]).all() and (walk.log_snrs >= edges[1:]).all()
    true, believed = torch.randn(2, 2, 3, 4, generator=seeded(1), dtype=F64)
    variances = torch.rand(2, 2, 3, 4, generator=seeded(2), dtype=F64)
    width = (4.0 - LAST_LOG_SNR) / 5
    for index, log_snr in enumerate(walk.log_snrs):
        found = walk.divergence(index, (true, variances[0]), (believed, variances[1]))
        expected = width * log_snr.exp() * (believed - true).square().sum(-1) / 2
        torch.testing.assert_close(found, expected)


def test_random_levels_integrate_over_the_snr_without_bias():
    """Of 1 / (1 + SNR), whose integral is a logarithm."""
    draw = seeded()
    found = [
        ((walk := NoiseLevels.draw(4.0, 3, False, draw)).precisions / (1 + walk.log_snrs.exp()))
        .sum()
        .item()
        for _ in range(4000)
    ]
    expected = math.log1p(math.exp(4.0)) - math.log1p(math.exp(LAST_LOG_SNR))
    error = torch.tensor(found).std() / math.sqrt(len(found))
    assert abs(sum(found) / len(found) - expected) < 4 * float(error)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_of_inverts_the_schedule(name):
    schedule = NoiseSchedule(name)
    wanted = torch.tensor([LAST_LOG_SNR, -1.0, 0.0, 4.6], dtype=F64)
    torch.testing.assert_close(schedule.log_snr(time_of(schedule, wanted)), wanted)
    # Float64 whatever it is asked in, and where a level is kept for a while the end of it.
    assert torch.equal(time_of(schedule, wanted[1:3].float()), time_of(schedule, wanted[1:3]))
    last = time_of(schedule, torch.tensor(MAX_LOG_SNR))
    assert last.dtype == F64
    around = schedule.log_snr(torch.stack([(last - 1e-9).clamp(min=0), last + 1e-6]))
    assert around[0] == MAX_LOG_SNR > around[1]


# --- the whole bound, where log p(x) is known ---


def linear_gaussian_model(latent_noise, factor, pixel_noise):
    """x = factor Q z + noise with z ~ N(0, I): encoder, denoiser and decoder are all exact."""
    width = 16  # of a patch of 4 x 4, and of the latent: then x's covariance stays isotropic
    model = make_model(latent_dim=width, latent_noise=latent_noise)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=seeded(5), dtype=F64)).Q
    statistics = model.vae.statistics["image"]
    scale = (statistics.variance + 1e-6).sqrt()
    variance = pixel_noise**2 / (pixel_noise**2 + factor**2)
    snr = math.exp(first_log_snr(model.config))

    def encode(patches, modality):
        mean = factor / (factor**2 + pixel_noise**2) * patches @ rotation
        logvar = (variance * scale.square()).log()
        return statistics.mean + scale * mean, logvar.expand_as(mean)

    def decode(latents, modality):
        return factor * snr / (1 + snr) * latents @ rotation.T

    def denoise(inputs, candidates):
        signal = model.schedules["image"].alpha(inputs.times["image"])[:, None, None]
        return Denoised({"image": signal * inputs.z_t["image"]}, {}, {})

    model.vae.encode, model.vae.decode, model.denoise = encode, decode, denoise
    # What z_1 leaves open of z_0 is noise of the pixels too.
    return model, math.sqrt(pixel_noise**2 + factor**2 / (1 + snr))


def known_log_likelihood(pixels, factor, pixel_noise):
    """log N(x; 0, (factor^2 + noise^2) I), (b,)."""
    width = pixels[0].numel()
    covariance = (factor**2 + pixel_noise**2) * torch.eye(width, dtype=F64)
    return MultivariateNormal(torch.zeros(width, dtype=F64), covariance).log_prob(pixels.flatten(1))


@pytest.mark.parametrize("latent_noise", [0.0, 0.3])
def test_bound_equals_the_log_likelihood_of_a_linear_gaussian_model(latent_noise):
    factor, pixel_noise = 0.3, 0.2
    model, pixel_std = linear_gaussian_model(latent_noise, factor, pixel_noise)
    draw = seeded(7)
    pixels = (0.3 * torch.randn(2, 1, SIDE, SIDE, generator=draw, dtype=F64)).clamp(-1, 1)
    exact = known_log_likelihood(pixels, factor, pixel_noise)
    many = pixels.repeat_interleave(20, dim=0)

    def bounds(calls, **options):
        """Means of `calls` calls, (2, calls): the items of one call share its noise levels."""
        options |= {"pixel_std": pixel_std, "shared_noise": False, "generator": draw}
        found = [model.score(pixel_values=many, **options).log_likelihood for _ in range(calls)]
        return torch.stack(found, -1).view(2, 20, calls).mean(1)

    found = bounds(60, num_evaluations=24)
    error = found.std(1) / math.sqrt(60)
    assert float(error.max()) < 0.4  # of about 20 nats
    assert ((found.mean(1) - exact).abs() < 4 * error).all()
    # As many steps as a sampler takes give less, and ever closer.
    coarse, fine = (bounds(1, num_evaluations=n, levels="grid")[:, 0] for n in (40, 160))
    assert (coarse < fine - 1).all()
    assert (exact - fine < 0.5 * (exact - coarse)).all()


def words_drawn_independently():
    """A model whose denoiser and decoder are the exact posterior over words; their log shares."""
    model = make_model(latent_noise=0.5)
    shares = torch.rand(VOCABULARY, generator=seeded(8), dtype=F64) + 0.1
    log_shares = (shares / shares.sum()).log()
    words = model._posterior("text", *model.vae.encode(torch.arange(VOCABULARY), "text"))
    words.mean.mul_(2)  # closer words than a trained model's: nothing is certain at any level

    def log_odds(z_t, log_snr):
        abar = torch.sigmoid(log_snr)
        states = Normal(abar.sqrt() * words.mean, (abar * words.variance + 1 - abar).sqrt())
        return log_shares + states.log_prob(z_t[:, :, None]).sum(-1)

    def denoise(inputs, candidates):
        log_snr = model.schedules["text"].log_snr(inputs.times["text"])[0]
        return Denoised({}, {"text": log_odds(inputs.z_t["text"], log_snr)}, {})

    def decode(latents, modality):
        log_snr = torch.tensor(first_log_snr(model.config), dtype=F64)
        return log_odds(latents * torch.sigmoid(log_snr).sqrt(), log_snr)

    model.denoise, model.vae.decode = denoise, decode
    model._posterior = lambda g, mean, logvar: Posterior(
        2 * model.vae.statistics[g].standardize(mean),
        logvar.exp() / (model.vae.statistics[g].variance + 1e-6),
    )
    return model, log_shares


def test_bound_of_words_equals_their_log_probability():
    model, log_shares = words_drawn_independently()
    input_ids = torch.tensor([[5, 9, 20, 4, 11, 17]]).repeat(1500, 1)
    found = model.score(
        input_ids, num_evaluations=6, shared_noise=False, generator=seeded(9)
    ).log_likelihood
    error = float(found.std()) / math.sqrt(len(found))
    exact = float(log_shares[input_ids[0]].sum())
    assert error < 0.1 and abs(float(found.mean()) - exact) < 4 * error


@pytest.mark.parametrize("is_exact", [True, False])
def test_the_bounds_of_all_words_are_those_of_a_distribution(is_exact):
    """Their exponentials sum to no more than 1: to 1 where the denoiser is exact."""
    model = words_drawn_independently()[0] if is_exact else make_model()
    repeats = 30 if is_exact else 1
    words = torch.arange(VOCABULARY).repeat_interleave(repeats)[:, None]
    options = {"num_evaluations": 8, "shared_noise": False, "generator": seeded(11)}
    calls = [model.score(words, **options) for _ in range(5)]
    bounds = torch.stack([out.log_likelihood.view(VOCABULARY, repeats).mean(1) for out in calls])
    mean, error = bounds.mean(0), bounds.std(0) / math.sqrt(5)
    total = float(mean.exp().sum())
    margin = 4 * float((mean.exp() * error).square().sum().sqrt())
    if is_exact:
        assert margin < 0.2 and abs(total - 1) < margin
    else:
        assert 0 < total < 1 + margin


# --- how far off the bound may be


@pytest.mark.parametrize("count", [3, 4, 9, 40])
def test_standard_error_of_a_sum_is_told_from_second_differences(count):
    """Of terms whose means change evenly its square has the true variance for expectation."""
    places = torch.arange(count, dtype=F64)
    means, deviation = 5 - 3 * places, 0.7
    terms = means[:, None] + deviation * torch.randn(count, 20_000, generator=seeded(), dtype=F64)
    squares = standard_error(terms).square()
    assert abs(float(squares.mean()) / (count * deviation**2) - 1) < 0.05
    spread = float(terms.sum(0).std())
    assert abs(float(squares.mean().sqrt()) / spread - 1) < 0.05
    # By hand, of three: one second difference stands for the variance of all.
    a, b, c = torch.tensor([1.0, 2.5, 3.0], dtype=F64)
    found = standard_error(torch.stack([a, b, c])[:, None])
    torch.testing.assert_close(found[0], (3 * (a - 2 * b + c) ** 2 / 6).sqrt())


def test_a_bent_mean_makes_the_standard_error_too_large():
    places = torch.linspace(0, 1, 20, dtype=F64)[:, None]
    noise = torch.randn(20, 5000, generator=seeded(), dtype=F64)
    straight = standard_error(noise).square().mean()
    assert standard_error(20 * places**2 + noise).square().mean() > straight
    assert standard_error(900 * places**2 + noise).square().mean() > 3 * straight


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_evaluations_have_no_standard_error(count):
    out = make_model().score(**mixed_batch(), num_evaluations=count, generator=seeded())
    assert out.standard_error.shape == (8,) and out.standard_error.isnan().all()
    assert out.log_likelihood.isfinite().all()


def share_of_the_spread(score, calls=200):
    """What is stated as the standard error, by the spread of the bound over many calls."""
    outs = [score() for _ in range(calls)]
    spread = torch.stack([out.log_likelihood for out in outs]).std(0)
    return torch.stack([out.standard_error for out in outs]).square().mean(0).sqrt() / spread


def test_standard_error_is_the_spread_over_seeds():
    """With a denoiser that costs nothing."""
    model, _ = words_drawn_independently()
    words = torch.tensor([[5, 9, 20, 4, 11, 17]])
    options = {"num_evaluations": 5, "generator": seeded(12)}
    share = share_of_the_spread(lambda: model.score(words, **options), calls=100)
    assert abs(float(share) - 1) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("levels", ["random", "grid"])
def test_standard_error_of_words_pictures_and_both_is_the_spread_over_seeds(levels):
    model, batch = make_model(torch.float32), mixed_batch(torch.float32)
    options = {"num_evaluations": 8, "levels": levels, "generator": seeded(12)}
    share = share_of_the_spread(lambda: model.score(**batch, **options))
    assert ((share - 1).abs() < 0.25).all(), share


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


# --- the shipped checkpoint as a ranker ---


PICTURES = ROOT / "examples" / "pictures" / "fashion_mnist"


def load_shipped():
    path = ROOT / "examples" / "checkpoints" / "mdm-fashion"
    return MDMForJointGeneration.from_pretrained(path).eval(), MDMProcessor.from_pretrained(path)


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
@pytest.mark.parametrize("content", ["text", "image"])
def test_standard_error_of_the_shipped_checkpoint_is_the_spread_over_seeds(content):
    model, processor = load_shipped()
    image = Image.open(PICTURES / "3_dress.png")
    inputs = processor(images=[image], text=["a photo of a dress"], return_tensors="pt")
    options = {"content": content, "num_evaluations": 32, "generator": seeded(13)}
    share = share_of_the_spread(lambda: model.score(**inputs, **options))
    assert abs(float(share) - 1) < 0.25


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
