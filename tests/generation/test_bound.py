# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The whole bound where log p(x) is known, and how far off it may be."""

import math

import pytest
import torch
from PIL import Image
from shipped import PICTURES, load_shipped
from tiny_model import SIDE, VOCABULARY, make_model, mixed_batch
from torch.distributions import MultivariateNormal, Normal

from modeling_mdm.likelihood import (
    Posterior,
    standard_error,
)
from modeling_mdm.network import Denoised
from modeling_mdm.scoring import first_log_snr

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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

    def decode(latents, modality, grid, valid):
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


@pytest.mark.parametrize("latent_noise", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
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

    def decode(latents, modality, grid, valid):
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


@pytest.mark.slow
@pytest.mark.parametrize("content", ["text", "image"])
def test_standard_error_of_the_shipped_checkpoint_is_the_spread_over_seeds(content):
    model, processor = load_shipped()
    image = Image.open(PICTURES / "3_dress.png")
    inputs = processor(images=[image], text=["a photo of a dress"], return_tensors="pt")
    options = {"content": content, "num_evaluations": 32, "generator": seeded(13)}
    share = share_of_the_spread(lambda: model.score(**inputs, **options))
    assert abs(float(share) - 1) < 0.25
