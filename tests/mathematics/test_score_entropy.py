# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Score entropy (Eq. 4-8, 14) against sums over candidates and densities written by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from modeling_mdm.score_entropy import (
    denoising_weight,
    former_states,
    gaussian_score_entropy,
    normalised_score_entropy,
    score_entropy,
    snr_difference,
    trajectory_score_entropy,
    transition_log_ratio,
    vocabulary_score_entropy,
)

float64 = torch.float64
logs = st.lists(st.floats(-30, 5), min_size=1, max_size=6)


def log_gaussian(z, mean, variance):
    """log N(z; mean, variance I) of one vector, coordinate by coordinate."""
    total = 0.0
    for x, m in zip(z.tolist(), mean.tolist(), strict=True):
        total += -0.5 * math.log(2 * math.pi * variance) - (x - m) ** 2 / (2 * variance)
    return total


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


# --- Eq. 4


@given(log_score=logs, log_ratio=logs, weight=st.floats(0, 10))
def test_equals_equation_4_term_by_term(log_score, log_ratio, weight):
    pairs = list(zip(log_score, log_ratio, strict=False))
    expected = 0.0
    for log_s, log_r in pairs:
        s, r = math.exp(log_s), math.exp(log_r)
        normaliser = r * (math.log(r) - 1)
        expected += weight * (s - r * math.log(s) + normaliser)
    log_s, log_r = torch.tensor(pairs, dtype=float64).unbind(1)
    value = score_entropy(log_s, log_r, torch.tensor(weight, dtype=float64))
    assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(pair=st.tuples(st.floats(-100, 50), st.floats(-100, 50)))
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_is_never_negative(dtype, pair):
    log_s, log_r = torch.tensor(pair, dtype=dtype)
    assert score_entropy(log_s[None], log_r[None]).item() >= 0
    for gap in (1e-3, 1e-6, 1e-9, 1e-12, 1e-15):  # where rounding is larger than the value
        assert score_entropy(log_r[None] + gap, log_r[None]).item() >= 0
        assert score_entropy(log_r[None] - gap, log_r[None]).item() >= 0


@given(log_ratio=logs)
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_value_and_gradient_are_exactly_zero_at_equality(dtype, log_ratio):
    log_ratio = torch.tensor(log_ratio, dtype=dtype)
    log_score = log_ratio.clone().requires_grad_()
    value = score_entropy(log_score, log_ratio)
    value.backward()
    assert value.item() == 0
    assert (log_score.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_what_rounding_takes_below_zero_is_zero_and_still_descends(dtype):
    """Where s and r are so close that (s - r) + r log(r / s) comes out below 0."""
    log_ratio = torch.linspace(-3, 3, 4000, dtype=dtype)
    step = 3 * torch.finfo(dtype).eps
    log_score = (log_ratio * (1 + step) + step).requires_grad_()
    s, r = log_score.detach().exp(), log_ratio.exp()
    below = (s - r) + r * (log_ratio - log_score.detach()) < 0
    assert below.sum() > 100
    value = score_entropy(log_score[:, None], log_ratio[:, None])
    assert (value >= 0).all() and (value[below] == 0).all()
    value.sum().backward()
    torch.testing.assert_close(log_score.grad[below], (s - r)[below], rtol=0, atol=1e-30)


@given(log_ratio=logs, gap=st.floats(0.01, 3), sign=st.sampled_from([-1, 1]))
def test_is_positive_away_from_equality_and_descends_towards_it(log_ratio, gap, sign):
    log_ratio = torch.tensor(log_ratio, dtype=float64)
    log_score = (log_ratio + sign * gap).requires_grad_()
    value = score_entropy(log_score, log_ratio)
    value.backward()
    assert value.item() > 0
    assert (log_score.grad * sign > 0).all()  # d/d(log s) = s - r


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_candidate_of_ratio_zero_contributes_its_score(dtype):
    log_score = torch.tensor([-3.0, 0.5, -1e4, -math.inf], dtype=dtype, requires_grad=True)
    log_ratio = torch.full((4,), -math.inf, dtype=dtype, requires_grad=True)
    value = score_entropy(log_score, log_ratio)
    value.backward()
    assert value.item() == pytest.approx(math.exp(-3) + math.exp(0.5))
    torch.testing.assert_close(log_score.grad, log_score.detach().exp())
    assert log_ratio.grad.isfinite().all()


def test_score_zero_against_a_real_ratio_is_infinite_and_not_nan():
    log_score = torch.tensor([-math.inf], requires_grad=True)
    value = score_entropy(log_score, torch.tensor([0.0]))
    value.backward()
    assert value.item() == math.inf
    assert log_score.grad.item() == -1


@given(batch=st.integers(1, 3), length=st.integers(0, 3), candidates=st.integers(0, 4))
def test_sums_the_chosen_axis_and_broadcasts_the_weight(batch, length, candidates):
    log_score, log_ratio = torch.randn(2, batch, candidates, length, dtype=float64)
    weight = torch.rand(batch, 1, length, dtype=float64)
    value = score_entropy(log_score, log_ratio, weight, dim=1)
    assert value.shape == (batch, length)
    expected = score_entropy(log_score.transpose(1, 2), log_ratio.transpose(1, 2))
    torch.testing.assert_close(value, weight[:, 0] * expected)


# --- Eq. 7: softmax over the candidates on both sides


@given(
    logits=st.lists(st.floats(-8, 8), min_size=5, max_size=5),
    log_ratio=st.lists(st.floats(-8, 8), min_size=5, max_size=5),
)
def test_normalised_is_the_kl_divergence_of_two_softmaxes(logits, log_ratio):
    s, r = softmax(logits), softmax(log_ratio)
    expected = sum(q * (math.log(q) - math.log(p)) for p, q in zip(s, r, strict=True))
    logits, log_ratio = torch.tensor([logits, log_ratio], dtype=float64)
    value = normalised_score_entropy(logits, log_ratio)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    shifted = normalised_score_entropy(logits + 5, log_ratio - 700)  # constants do not count
    assert shifted.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, float64])
@pytest.mark.parametrize("logits", [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize(
    "log_ratio",
    [[1e4, -1e4, 0.0], [-1e4, 1e4, 9.9e3], [0.0, -math.inf, -math.inf], [-math.inf, 0.0, 0.0]],
)
def test_is_finite_after_softmax_at_extreme_ratios_and_one_hot_targets(dtype, logits, log_ratio):
    pair_logits = torch.tensor(logits, dtype=dtype, requires_grad=True)
    value = normalised_score_entropy(pair_logits, torch.tensor(log_ratio, dtype=dtype))
    value.backward()
    assert value.isfinite() and value >= 0
    assert pair_logits.grad.isfinite().all()


def test_normalised_gradient_is_the_difference_of_the_softmaxes():
    logits = torch.randn(4, 6, dtype=float64, requires_grad=True)
    log_ratio = torch.randn(4, 6, dtype=float64)
    normalised_score_entropy(logits, log_ratio).sum().backward()
    for row in range(4):
        s, r = softmax(logits[row].tolist()), softmax(log_ratio[row].tolist())
        expected = torch.tensor([p - q for p, q in zip(s, r, strict=True)], dtype=float64)
        torch.testing.assert_close(logits.grad[row], expected, rtol=0, atol=1e-12)


# --- Eq. 5: words


@given(batch=st.integers(1, 3), length=st.integers(0, 4), words=st.integers(1, 7))
def test_vocabulary_score_entropy_is_equation_4_with_a_one_hot_target(batch, length, words):
    logits = (4 * torch.randn(batch, length, words, dtype=float64)).requires_grad_()
    target = torch.randint(words, (batch, length))
    one_hot = torch.full((batch, length, words), -math.inf, dtype=float64)
    one_hot.scatter_(-1, target[..., None], 0.0)
    literal = score_entropy(torch.log_softmax(logits, -1), one_hot)
    value = vocabulary_score_entropy(logits, target)
    torch.testing.assert_close(value, literal, rtol=1e-12, atol=1e-12)
    upstream = torch.rand(batch, length, dtype=float64)
    got, expected = (torch.autograd.grad(x, logits, upstream)[0] for x in (value, literal))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_vocabulary_score_entropy_of_half_precision_and_ignored_targets():
    logits = torch.randn(2, 3, 5).bfloat16()
    target = torch.tensor([[0, 1, -100], [4, -100, 2]])
    value = vocabulary_score_entropy(logits, target)
    assert value.dtype == torch.float32
    assert (value[target == -100] == 0).all() and (value[target != -100] > 0).all()


# --- Section 3.1's former states


def draw_problem(latent_dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_0, z_t, z0_pred, y = torch.randn(4, latent_dim, generator=generator, dtype=float64)
    return z_0, z_t, z0_pred, y


def as_scalars(*values):
    return tuple(torch.tensor(v, dtype=float64) for v in values)


@pytest.mark.parametrize("abar_s, abar_t", [(0.9, 0.5), (0.99, 0.98), (0.3, 0.001)])
def test_transition_log_ratio_is_the_quotient_of_densities_and_obeys_bayes(abar_s, abar_t):
    z_0, z_t, _, y = draw_problem()
    value = transition_log_ratio(y, z_t, z_0, *as_scalars(abar_s, abar_t)).item()
    quotient = log_gaussian(y, math.sqrt(abar_s) * z_0, 1 - abar_s)
    quotient -= log_gaussian(z_t, math.sqrt(abar_t) * z_0, 1 - abar_t)
    assert value == pytest.approx(quotient, rel=1e-12)
    # p(z_s | z_t, z_0) / p(z_t | z_s), the first from the precisions of its two factors.
    kept = abar_t / abar_s
    variance = 1 / (1 / (1 - abar_s) + kept / (1 - kept))
    mean = variance * (math.sqrt(abar_s) * z_0 / (1 - abar_s) + math.sqrt(kept) * z_t / (1 - kept))
    bayes = log_gaussian(y, mean, variance) - log_gaussian(z_t, math.sqrt(kept) * y, 1 - kept)
    assert value == pytest.approx(bayes, rel=1e-10)


def test_former_states_lead_to_z_t_as_the_forward_process_does():
    """Joint moments of (z_s, z_t): z_s drawn from z_t must equal z_s drawn forwards."""
    count, abar_s, abar_t, z_0 = 400_000, 0.8, 0.3, 1.5
    noise = torch.randn(2, count, 1, dtype=float64)
    z_t = math.sqrt(abar_t) * z_0 + math.sqrt(1 - abar_t) * noise[0]
    clean = torch.full_like(z_t, z_0)
    z_s = former_states(z_t, clean, *as_scalars(abar_t, abar_s), noise[1])
    moments = torch.cat([z_s, z_t], 1)
    mean = torch.tensor([math.sqrt(abar_s) * z_0, math.sqrt(abar_t) * z_0], dtype=float64)
    shared = math.sqrt(abar_t / abar_s) * (1 - abar_s)
    covariance = torch.tensor([[1 - abar_s, shared], [shared, 1 - abar_t]], dtype=float64)
    torch.testing.assert_close(moments.mean(0), mean, rtol=0, atol=0.006)
    torch.testing.assert_close(moments.T.cov(), covariance, rtol=0, atol=0.006)


@pytest.mark.parametrize("abar_s, abar_t", [(0.9, 0.5), (0.97, 0.96), (0.3, 0.001)])
def test_gaussian_score_entropy_is_the_kl_divergence_of_the_two_posteriors(abar_s, abar_t):
    z_0, _, z0_pred, _ = draw_problem(seed=1)
    kept = abar_t / abar_s
    variance = 1 / (1 / (1 - abar_s) + kept / (1 - kept))
    pull = variance * math.sqrt(abar_s) / (1 - abar_s)  # of z_0 on the posterior's mean
    expected = ((pull * (z0_pred - z_0)) ** 2).sum().item() / (2 * variance)
    weight = snr_difference(*as_scalars(abar_s, abar_t))
    assert weight.item() == pytest.approx(abar_s / (1 - abar_s) - abar_t / (1 - abar_t))
    assert gaussian_score_entropy(z0_pred, z_0, weight).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("abar_s, abar_t", [(0.6, 0.5), (0.9, 0.88), (0.4, 0.001)])
def test_monte_carlo_score_entropy_converges_to_the_closed_form(abar_s, abar_t):
    """Eq. 4 with weight 1/r over y ~ p(z_s | z_t, z_0), more and more of them."""
    z_0, z_t, direction, _ = draw_problem(seed=2)
    z0_pred = z_0 + 0.5 * direction / direction.norm()
    abar_s, abar_t = as_scalars(abar_s, abar_t)
    closed = gaussian_score_entropy(z0_pred, z_0, snr_difference(abar_s, abar_t)).item()
    errors = []
    for count in (1_000, 400_000):
        y = former_states(z_t, z_0, abar_t, abar_s, torch.randn(count, 3, dtype=float64))
        log_ratio = transition_log_ratio(y, z_t, z_0, abar_s, abar_t)
        log_score = transition_log_ratio(y, z_t, z0_pred, abar_s, abar_t)
        each = score_entropy(log_score[:, None], log_ratio[:, None], (-log_ratio).exp()[:, None])
        standard_error = each.std().item() / math.sqrt(count)
        assert abs(each.mean().item() - closed) < 4 * standard_error
        errors.append(standard_error)
    assert errors[-1] < 0.01 * closed  # the bound is tight enough to tell the closed form
    assert errors[0] / errors[-1] == pytest.approx(math.sqrt(400), rel=0.3)


@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 3),
    count=st.integers(1, 4),
    dim=st.integers(1, 3),
)
def test_trajectory_score_entropy_equals_loops(batch, length, count, dim):
    z0_pred, z_0, z_t = torch.randn(3, batch, length, dim, dtype=float64)
    abar_t = 0.1 + 0.3 * torch.rand(batch, length, 1, dtype=float64)
    abar_s = 0.5 + 0.4 * torch.rand(batch, length, count, 1, dtype=float64)
    noise = torch.randn(batch, length, count, dim, dtype=float64)
    value = trajectory_score_entropy(z0_pred, z_0, z_t, abar_t, abar_s, noise)
    assert value.shape == (batch, length)
    for b in range(batch):
        for n in range(length):
            a_t, log_r, log_s = abar_t[b, n, 0].item(), [], []
            for k in range(count):
                a_s = abar_s[b, n, k, 0].item()
                kept = a_t / a_s
                variance = 1 / (1 / (1 - a_s) + kept / (1 - kept))
                mean = math.sqrt(a_s) * z_0[b, n] / (1 - a_s)
                mean = variance * (mean + math.sqrt(kept) * z_t[b, n] / (1 - kept))
                y = mean + math.sqrt(variance) * noise[b, n, k]
                for clean, out in ((z_0, log_r), (z0_pred, log_s)):
                    out.append(
                        log_gaussian(y, math.sqrt(a_s) * clean[b, n], 1 - a_s)
                        - log_gaussian(z_t[b, n], math.sqrt(a_t) * clean[b, n], 1 - a_t)
                    )
            s, r = softmax(log_s), softmax(log_r)
            expected = sum(q * (math.log(q) - math.log(p)) for p, q in zip(s, r, strict=True))
            assert value[b, n].item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_trajectory_score_entropy_is_zero_at_the_true_latent_and_positive_elsewhere():
    z_0, z_t = torch.randn(2, 2, 3, 4)
    noise = torch.randn(2, 3, 5, 4)
    abar_t, abar_s = torch.tensor(0.2), torch.linspace(0.3, 0.9, 5)[:, None]
    z0_pred = z_0.clone().requires_grad_()
    value = trajectory_score_entropy(z0_pred, z_0, z_t, abar_t, abar_s, noise)
    value.sum().backward()
    assert (value == 0).all() and z0_pred.grad.abs().max() < 1e-5
    other = trajectory_score_entropy(z_0 + 1, z_0, z_t, torch.full((2, 1, 1), 0.2), abar_s, noise)
    assert (other > 0).all()


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 4), (2, 1, 5, 4), (1, 3, 5, 4), (2, 3, 5, 1)])
def test_trajectory_names_a_wrong_noise_shape(shape):
    z = torch.zeros(2, 3, 4)
    named = r"noise has shape \(" + ", ".join(map(str, shape)) + r"\): give \(2, 3, K, 4\)"
    with pytest.raises(ValueError, match=named):
        trajectory_score_entropy(z, z, z, torch.tensor(0.2), torch.tensor(0.5), z.new_zeros(shape))


def test_denoising_weight_is_capped_and_does_not_vanish_at_high_noise():
    alpha_bar = torch.tensor([0.0, 0.5, 0.75, 0.9, 1.0])
    expected = torch.tensor([1.0, 2.0, 4.0, 5.0, 5.0])
    torch.testing.assert_close(denoising_weight(alpha_bar), expected)
    for maximum in (3.0, 0.5):
        assert denoising_weight(alpha_bar, maximum=maximum).max() == maximum
    with pytest.raises(ValueError, match=r"maximum=0 must be positive"):
        denoising_weight(alpha_bar, maximum=0)


def test_gaussian_score_entropy_sums_the_latent_and_broadcasts_the_weight():
    z0_pred, z_0 = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    weight = torch.tensor([[1.0], [2.0]])
    expected = torch.tensor([[2.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    torch.testing.assert_close(gaussian_score_entropy(z0_pred, z_0, weight), expected)


def test_gradients():
    log_score, log_ratio, weight = torch.randn(3, 2, 4, dtype=float64)
    log_score.requires_grad_(), log_ratio.requires_grad_()
    weight = weight.exp().requires_grad_()
    assert gradcheck(score_entropy, (log_score, log_ratio, weight))
    assert gradcheck(normalised_score_entropy, (log_score, log_ratio, weight))
    target = torch.tensor([1, 3])
    assert gradcheck(lambda x: vocabulary_score_entropy(x, target), (log_score,))
    z0_pred, z_0, z_t = torch.randn(3, 1, 2, 3, dtype=float64).requires_grad_()
    assert gradcheck(gaussian_score_entropy, (z0_pred, z_0, weight[:1, :2]))
    abar_t, abar_s = as_scalars(0.2, 0.6)
    noise = torch.randn(1, 2, 4, 3, dtype=float64)
    assert gradcheck(trajectory_score_entropy, (z0_pred, z_0, z_t, abar_t, abar_s, noise))


def test_normalised_sums_the_chosen_axis_and_takes_the_weight():
    logits, log_ratio = torch.randn(2, 2, 5, 3, dtype=float64)
    weight = torch.rand(2, 5, 3, dtype=float64)
    r, s = log_ratio.softmax(1), logits.softmax(1)
    expected = (weight * (s - r - r * s.log() + r * r.log())).sum(1)
    found = normalised_score_entropy(logits, log_ratio, weight, dim=1)
    torch.testing.assert_close(found, expected)


def test_gaussian_score_entropy_of_weight_one_is_half_the_squared_distance():
    z_0, z0_pred = torch.randn(2, 2, 3, 4, dtype=float64)
    expected = ((z_0 - z0_pred) ** 2).sum(-1) / 2
    torch.testing.assert_close(gaussian_score_entropy(z0_pred, z_0), expected)
