# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Noise schedules and the forward process (Eq. 1-3) against their formulas in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from modeling_mdm.diffusion import (
    MAX_LOG_SNR,
    SCHEDULES,
    NoiseSchedule,
    add_noise,
    noise_variance,
    reverse_step,
)

ALL = [NoiseSchedule("cosine"), NoiseSchedule("linear"), NoiseSchedule("tan")]
ALL += [NoiseSchedule("tan", scale=0.5), NoiseSchedule("tan", scale=10.0)]
every_schedule = pytest.mark.parametrize("schedule", ALL, ids=lambda s: f"{s.name}-{s.scale:g}")
float64 = torch.float64


def alpha_bar_by_hand(schedule, t):
    """The schedule's formula, directly, at one Python float t."""
    if schedule.name == "tan":
        return 1 / (1 + schedule.scale**2 * math.tan(math.pi * t / 2) ** 2)
    if schedule.name == "cosine":
        start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / start
    product = 1.0
    for k in range(round(t * 1000)):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
    return product


@every_schedule
def test_alpha_bar_equals_its_formula(schedule):
    t = torch.linspace(0, 1, 1001, dtype=float64)[1:-1]
    expected = torch.tensor([alpha_bar_by_hand(schedule, x) for x in t.tolist()], dtype=float64)
    torch.testing.assert_close(schedule.alpha_bar(t), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.alpha(t) ** 2, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - expected, rtol=1e-9, atol=0)
    log_snr = torch.log(expected) - torch.log1p(-expected)
    torch.testing.assert_close(schedule.log_snr(t), log_snr, rtol=1e-9, atol=1e-9)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_endpoints_are_clean_and_noise(schedule, dtype):
    start, end = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=dtype)).tolist()
    assert start == MAX_LOG_SNR
    if schedule.name == "linear":  # DDPM's grid stops short of pure noise
        assert end == pytest.approx(math.log(alpha_bar_by_hand(schedule, 1.0)), abs=1e-4)
    else:
        assert end == -MAX_LOG_SNR


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_log_snr_falls_with_time_and_stays_within_its_clip(schedule, dtype):
    near = torch.logspace(-40, -3, 500, dtype=dtype)
    t = torch.cat([torch.zeros(1, dtype=dtype), near, torch.linspace(0, 1, 20001, dtype=dtype)])
    t = torch.cat([t, 1 - near]).sort().values
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() <= 0).all()
    assert log_snr.abs().max() <= MAX_LOG_SNR
    inside = (t >= 0.01) & (t <= 0.99) & (t.diff(prepend=t[:1]) > 1e-5)
    assert (log_snr.diff(prepend=log_snr[:1])[inside] < 0).all()


@every_schedule
def test_float32_is_accurate_at_both_ends(schedule):
    near = torch.logspace(-5, -1, 200)
    for t in (near, 1 - near):
        exact = NoiseSchedule.log_snr(schedule, t.double())
        torch.testing.assert_close(schedule.log_snr(t).double(), exact, rtol=3e-6, atol=3e-6)
        for factor in (schedule.alpha, schedule.sigma):
            torch.testing.assert_close(factor(t).double(), factor(t.double()), rtol=1e-5, atol=0)


@every_schedule
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_products_of_one_minus_beta_are_alpha_bar(schedule, num_steps):
    betas = schedule.betas(num_steps)
    assert betas.shape == (num_steps,) and ((betas > 0) & (betas < 1)).all()
    t = torch.arange(1, num_steps + 1, dtype=float64) / num_steps
    product = 1.0
    for beta, expected in zip(betas.tolist(), schedule.alpha_bar(t).tolist(), strict=True):
        product *= 1 - beta
        assert product == pytest.approx(expected, rel=1e-11)


def test_linear_has_the_betas_of_ddpm():
    expected = torch.linspace(1e-4, 0.02, 1000, dtype=float64)
    torch.testing.assert_close(NoiseSchedule("linear").betas(1000), expected, rtol=1e-9, atol=0)


@every_schedule
def test_derivative_is_the_slope_of_log_snr(schedule):
    t = (torch.arange(10, 990, dtype=float64) + 0.5) / 1000  # in the middle of linear's intervals
    step = 1e-6
    slope = (schedule.log_snr(t + step) - schedule.log_snr(t - step)) / (2 * step)
    torch.testing.assert_close(schedule.log_snr_derivative(t), slope, rtol=1e-6, atol=0)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_derivative_does_not_jump_where_the_clip_begins(schedule, dtype):
    if schedule.name == "linear":
        first, last = 0.0005, 0.9995
    else:  # bisect for the times at which the log-SNR meets its clip
        first, last = (clip_time(schedule, sign) for sign in (1, -1))
    t = torch.tensor([0.0, first, last, 1.0], dtype=dtype)
    slope = schedule.log_snr_derivative(t)
    assert (slope < 0).all() and slope.isfinite().all()
    assert slope[0] == pytest.approx(slope[1].item(), rel=1e-2)
    assert slope[3] == pytest.approx(slope[2].item(), rel=1e-2)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_derivative_at_the_ends_is_that_where_the_clip_begins(scale):
    """In closed form: at t_0 with tan(pi t_0 / 2) = e^-10 / s, t_1 alike, and cos^2(a) known."""
    ends, edge = torch.tensor([0.0, 1.0], dtype=float64), math.exp(-10)
    first, last = math.atan(edge / scale), math.atan(1 / (edge * scale))  # of pi t / 2
    expected = [-2 * math.pi / math.sin(2 * angle) for angle in (first, last)]
    found = NoiseSchedule("tan", scale).log_snr_derivative(ends)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    start, rate = 0.008 / 1.008 * math.pi / 2, math.pi / 2 / 1.008
    little, expected = 1 / (1 + math.exp(20)), []
    for abar, noise in ((1 - little, little), (little, 1 - little)):
        angle = math.acos(math.cos(start) * math.sqrt(abar))
        expected.append(-2 * rate * math.tan(angle) / noise)
    found = NoiseSchedule("cosine").log_snr_derivative(ends)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def clip_time(schedule, sign):
    low, high = (0.0, 0.5) if sign > 0 else (0.5, 1.0)
    for _ in range(60):
        middle = (low + high) / 2
        value = schedule.log_snr(torch.tensor(middle, dtype=float64)).item()
        clipped_here = abs(value) == MAX_LOG_SNR
        if clipped_here == (sign > 0):
            low = middle
        else:
            high = middle
    return (low + high) / 2


@given(
    name=st.sampled_from(SCHEDULES),
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, float64]),
)
def test_shape_and_dtype_are_kept(name, shape, dtype):
    schedule = NoiseSchedule(name)
    t = torch.rand(shape).to(dtype)
    exact = schedule.log_snr(t.double())
    for method in ("log_snr", "alpha_bar", "alpha", "sigma", "log_snr_derivative"):
        value = getattr(schedule, method)(t)
        assert value.shape == t.shape and value.dtype == dtype
    assert (schedule.log_snr(t).double() - exact).abs().lt(0.1).all()


@every_schedule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_times_of_half_precision_are_computed_in_float32(schedule, dtype):
    """Only the times and the answer are rounded, nothing between."""
    t = torch.linspace(0, 1, 101).to(dtype)
    for name in ("log_snr", "alpha_bar", "alpha", "sigma", "log_snr_derivative"):
        method = getattr(schedule, name)
        found = method(t)
        assert found.dtype == dtype
        assert torch.equal(found, method(t.float()).to(dtype)), name


@every_schedule
def test_time_of_a_log_snr_is_when_the_formula_has_it(schedule):
    steps = [0.001 * k for k in range(15, 990, 13)] + [0.003, 0.991, 0.999]
    shares = [alpha_bar_by_hand(schedule, t) for t in steps]
    log_snr = torch.tensor([math.log(share / (1 - share)) for share in shares], dtype=float64)
    expected = torch.tensor(steps, dtype=float64)
    torch.testing.assert_close(schedule.time_of(log_snr), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(
        schedule.time_of(log_snr.float().view(2, -1)),
        expected.float().view(2, -1),
        rtol=3e-5,
        atol=0,
    )


@every_schedule
def test_time_of_a_log_snr_that_is_not_reached_is_the_nearer_end(schedule):
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=float64))
    beyond = torch.tensor([1e3, 20.0, -20.0, -1e3], dtype=float64)
    found = schedule.log_snr(schedule.time_of(beyond))
    torch.testing.assert_close(found, ends[[0, 0, 1, 1]], rtol=1e-6, atol=0)


@every_schedule
def test_times_beyond_the_ends_saturate(schedule):
    t = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=float64)
    for method in (schedule.log_snr, schedule.alpha_bar, schedule.log_snr_derivative):
        before, start, end, after = method(t).tolist()
        assert (before, after) == (start, end)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"name='quadratic'.*cosine.*linear.*tan"):
        NoiseSchedule("quadratic")
    assert NoiseSchedule("tan", scale=0.25).scale == 0.25
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"scale=.* must be a positive number"):
            NoiseSchedule("tan", scale=scale)
    with pytest.raises(ValueError, match=r"t has dtype torch.int64: give float times"):
        NoiseSchedule("tan").alpha_bar(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"num_steps=0 must be at least 1"):
        NoiseSchedule("tan").betas(0)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 1\) and z_0 \(2, 2\)"):
        add_noise(torch.zeros(2, 2), torch.zeros(2, 1), torch.tensor(0.5))


@given(batch=st.integers(1, 3), length=st.integers(1, 4), per_position=st.booleans())
def test_add_noise_is_equation_1_at_every_position(batch, length, per_position):
    z_0, noise = torch.randn(2, batch, length, 3, dtype=float64)
    alpha_bar_t = torch.rand(batch, length if per_position else 1, 1, dtype=float64)
    z_t = add_noise(z_0, noise, alpha_bar_t)
    for b in range(batch):
        for n in range(length):
            abar = alpha_bar_t[b, n if per_position else 0, 0].item()
            for c in range(3):
                expected = math.sqrt(abar) * z_0[b, n, c] + math.sqrt(1 - abar) * noise[b, n, c]
                assert z_t[b, n, c].item() == pytest.approx(expected.item(), abs=1e-14)


@pytest.mark.parametrize("abar", [0.9, 0.5, 0.02])
def test_noisy_latents_have_the_moments_of_equation_2(abar):
    z_0 = torch.tensor([0.7, -2.0], dtype=float64)
    noise = torch.randn(200_000, 2, dtype=float64)
    z_t = add_noise(z_0.expand_as(noise), noise, torch.tensor(abar, dtype=float64))
    standard_error = math.sqrt((1 - abar) / len(noise))
    assert (z_t.mean(0) - math.sqrt(abar) * z_0).abs().max() < 4 * standard_error
    torch.testing.assert_close(z_t.T.cov(), (1 - abar) * torch.eye(2).double(), rtol=0, atol=0.01)


@given(
    abar_t=st.floats(1e-4, 0.98),
    earlier=st.floats(0.01, 0.99),
    z_t=st.floats(-3, 3),
    z_0=st.floats(-3, 3),
)
def test_reverse_step_is_the_posterior_of_bayes(abar_t, earlier, z_t, z_0):
    abar_s = abar_t + earlier * (1 - abar_t)
    mean, variance = reverse_step(*torch.tensor([z_t, z_0, abar_t, abar_s], dtype=float64))
    # p(z_s | z_0) p(z_t | z_s), both Gaussian in z_s: precisions add, means add by precision.
    kept = abar_t / abar_s
    prior, likelihood = 1 / (1 - abar_s), kept / (1 - kept)
    expected_variance = 1 / (prior + likelihood)
    expected_mean = expected_variance * (
        prior * math.sqrt(abar_s) * z_0 + likelihood * z_t / math.sqrt(kept)
    )
    assert variance.item() == pytest.approx(expected_variance, rel=1e-9)
    assert mean.item() == pytest.approx(expected_mean, rel=1e-9, abs=1e-9)


def test_reverse_step_ends_at_the_clean_latent_and_stands_still_in_no_time():
    z_t, z_0 = torch.randn(2, 5, dtype=float64)
    one, half = torch.tensor([1.0, 0.5], dtype=float64)
    mean, variance = reverse_step(z_t, z_0, half, one)
    torch.testing.assert_close(mean, z_0, rtol=1e-7, atol=1e-7)
    assert variance < 1e-8
    mean, variance = reverse_step(z_t, z_0, half, half)
    torch.testing.assert_close(mean, z_t, rtol=0, atol=0)
    assert variance == 0
    mean, variance = reverse_step(z_t.float(), z_0.float(), one.float(), one.float())
    assert mean.isfinite().all() and variance.isfinite()


def test_noise_variance_can_be_divided_by():
    clip = 1 / (1 + math.exp(MAX_LOG_SNR))
    assert noise_variance(torch.tensor(1.0)).item() == pytest.approx(clip)
    assert noise_variance(torch.tensor(0.25)).item() == 0.75


def test_gradients():
    z_t, z_0 = torch.randn(2, 2, 3, dtype=float64, requires_grad=True)
    abar_t = torch.tensor([[0.3], [0.4]], dtype=float64, requires_grad=True)
    abar_s = torch.tensor([[0.6], [0.9]], dtype=float64, requires_grad=True)
    assert gradcheck(add_noise, (z_0, z_t, abar_t))
    assert gradcheck(reverse_step, (z_t, z_0, abar_t, abar_s))
    for schedule in (NoiseSchedule("cosine"), NoiseSchedule("tan")):
        t = torch.tensor([0.1, 0.45, 0.55, 0.9], dtype=float64, requires_grad=True)
        assert gradcheck(schedule.log_snr, (t,))
