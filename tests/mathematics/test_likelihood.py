# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The terms of the bound on the likelihood, each against its definition."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from modeling_mdm.diffusion import MAX_LOG_SNR, SCHEDULES, NoiseSchedule
from modeling_mdm.likelihood import (
    LAST_LOG_SNR,
    NoiseLevels,
    Posterior,
    time_of,
)

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
    upwards = posterior.diffuse(torch.ones(1, 1, 1, dtype=F64), log_snr)
    assert upwards.item() == pytest.approx(math.sqrt(abar) * 0.7 + math.sqrt(abar * 0.4 + 1 - abar))
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
