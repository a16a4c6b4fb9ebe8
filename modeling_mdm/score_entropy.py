# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Score entropy: one objective, two sets of candidates.  Eq. 4-8 and 14.

Words are scored against the vocabulary, continuous latents against their own former states. Ratios
of densities span tens of nats, so they stay logarithms (`log_ratio`, `log_score`) to the last line.

Axes: b batch, l length, d latent_dim, v vocabulary, K former states. An alpha_bar always ends in
an axis of size 1 (or is 0-dimensional): it broadcasts over latents.
"""

import math

import torch
from torch import Tensor

from .diffusion import noise_variance, reverse_step


def score_entropy(
    log_score: Tensor, log_ratio: Tensor, weight: Tensor | None = None, dim: int = -1
) -> Tensor:
    """Sum over candidates of weight (s - r log s + K(r)), K(r) = r (log r - 1).  Eq. 4.

    It is never negative, and zero with zero gradient exactly at s = r (Theorem 3, Eq. 8). A
    candidate with log_ratio = -inf contributes s. With both sides normalised (see
    `normalised_score_entropy`) and equal weights it is KL(r || s).

    Args:
        log_score: log s, the model's ratios.
        log_ratio: log r, the true ratios, broadcastable with `log_score`.
        weight: omega, broadcastable with both; None is 1.
        dim: the axis of the candidates, which the sum removes.
    """
    score, ratio = log_score.exp(), log_ratio.exp()
    # -r log s + r log r = r (log r - log s); where r = 0 its limit is 0, where 0 * inf is not.
    gap = torch.where(ratio > 0, log_ratio - log_score, 0.0)
    # (s - r) and the gap are each exactly 0 at equality, which the order of Eq. 4 would not give.
    terms = (score - ratio) + ratio * gap
    # Rounding can leave -1e-17 for a true 1e-20: the value becomes 0, the gradient stays s - r.
    terms = torch.where(terms < 0, terms - terms.detach(), terms)
    if weight is not None:
        terms = weight * terms
    return terms.sum(dim)


def normalised_score_entropy(
    pair_logits: Tensor, log_ratio: Tensor, weight: Tensor | None = None, dim: int = -1
) -> Tensor:
    """Score entropy after a softmax over the candidates on both sides.  Eq. 7 (Theorem 2) in Eq. 4.

    Any finite `pair_logits` and any log ratio (one-hot targets, -inf elsewhere, included) give a
    finite value and gradient. Half-precision input is computed in float32.

    Args:
        pair_logits: f_theta(z_t, y) of each candidate.
        log_ratio: of each candidate, any constant common to all of them left in or out.
        weight: omega, broadcastable with both; None is 1.
        dim: the axis of the candidates, which the sum removes.
    """
    log_score = torch.log_softmax(_at_least_float32(pair_logits), dim)
    log_target = torch.log_softmax(_at_least_float32(log_ratio), dim)
    return score_entropy(log_score, log_target, weight, dim)


# --- Candidates: the vocabulary (text, VQ codes)


def vocabulary_score_entropy(pair_logits: Tensor, target: Tensor) -> Tensor:
    """Score entropy over the vocabulary where the true word has all the probability.  Eq. 4, 7, 14.

    Here sum(s) = sum(r) = 1, r log r = 0 and only the target's -log s is left: cross-entropy. It is
    computed as such, because the literal sum needs several more tensors of shape (b, l, v).

    Args:
        pair_logits: f_theta(z_t, y_v), (b, l, v), half precision computed in float32.
        target: long ids of the true words, (b, l); -100 gives 0.

    Returns:
        (b, l).
    """
    rows = _at_least_float32(pair_logits).flatten(0, -2)  # (b * l, v)
    loss = torch.nn.functional.cross_entropy(
        rows, target.reshape(-1), ignore_index=-100, reduction="none"
    )
    return loss.reshape(target.shape)


# --- Candidates: former states (continuous latents)


def gaussian_score_entropy(z0_pred: Tensor, z_0: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Score entropy over former states in closed form, weight |z0_pred - z_0|^2 / 2.  Eq. 4, 14.

    Eq. 4 with weight 1 / r, averaged over y ~ p(z_s | z_t, z_0), where s_theta is the true ratio
    with z0_pred in the place of z_0, is KL(p(z_s | z_t, z_0) || p(z_s | z_t, z0_pred)): this, with
    `snr_difference` as the weight. Training replaces it by `denoising_weight`, because the
    difference vanishes at high noise.

    Args:
        z0_pred: the model's clean latents, (b, l, d).
        z_0: the true ones, (b, l, d).
        weight: a number, or a tensor that broadcasts with (b, l).

    Returns:
        (b, l).
    """
    return weight * (z0_pred - z_0).square().sum(-1) / 2


def snr_difference(alpha_bar_s: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """SNR(s) - SNR(t), SNR = abar / (1 - abar); positive where s is the earlier time."""
    snr_s = alpha_bar_s / noise_variance(alpha_bar_s)
    return snr_s - alpha_bar_t / noise_variance(alpha_bar_t)


def denoising_weight(alpha_bar_t: Tensor, maximum: float = 5.0) -> Tensor:
    """Weight over time of the continuous score entropy in training, min(1 / (1 - abar), maximum).

    Raises:
        ValueError: `maximum` is not positive.
    """
    if not maximum > 0:
        raise ValueError(f"maximum={maximum} must be positive: 5.0 is the default.")
    return noise_variance(alpha_bar_t).reciprocal().clamp(max=maximum)


def former_states(
    z_t: Tensor, z_0: Tensor, alpha_bar_t: Tensor, alpha_bar_s: Tensor, noise: Tensor
) -> Tensor:
    """Samples z_s ~ p(z_s | z_t, z_0), the candidates y of Eq. 4, shaped like `noise`.

    Args:
        z_t: noisy latents, (..., d).
        z_0: clean latents, (..., d).
        alpha_bar_t: at the time of z_t, broadcasts over the latents.
        alpha_bar_s: at the former times, broadcasts over the latents.
        noise: standard normal, (..., d); the other arguments broadcast with it.
    """
    mean, variance = reverse_step(z_t, z_0, alpha_bar_t, alpha_bar_s)
    return mean + variance.sqrt() * noise


def transition_log_ratio(
    y: Tensor, z_t: Tensor, z_0: Tensor, alpha_bar_s: Tensor, alpha_bar_t: Tensor
) -> Tensor:
    """log p(z_s = y | z_0) - log p(z_t | z_0), constants kept.  Eq. 4's p(y) / p(z_t).

    By Bayes' rule it is also log p(z_s = y | z_t, z_0) - log p(z_t | z_s = y).

    Args:
        y: former states, (..., d).
        z_t: noisy latents, (..., d).
        z_0: clean latents, or the model's estimate of them for its own log_score, (..., d).
        alpha_bar_s: at the time of y, broadcasts over the latents.
        alpha_bar_t: at the time of z_t, broadcasts over the latents.

    Returns:
        (...), the latent axis summed.
    """
    return (_log_density(y, z_0, alpha_bar_s) - _log_density(z_t, z_0, alpha_bar_t)).sum(-1)


def trajectory_score_entropy(
    z0_pred: Tensor,
    z_0: Tensor,
    z_t: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_s: Tensor,
    noise: Tensor,
) -> Tensor:
    """Score entropy over K sampled former states, softmax on both sides.  Eq. 4 and 7, literally.

    Args:
        z0_pred: the model's clean latents, (b, l, d).
        z_0: the true ones, (b, l, d).
        z_t: noisy latents, (b, l, d).
        alpha_bar_t: (b, l, 1) or (b, 1, 1).
        alpha_bar_s: at each former time, (b, l, K, 1) or what broadcasts with it, as (K, 1) does.
        noise: standard normal, (b, l, K, d).

    Returns:
        (b, l).

    Raises:
        ValueError: `noise` is not (b, l, K, d) with the b, l and d of `z_t`.
    """
    batch, length, latent_dim = z_t.shape
    if noise.dim() != 4 or noise.shape[:2] != z_t.shape[:2] or noise.shape[-1] != latent_dim:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}: give ({batch}, {length}, K, {latent_dim}), "
            "one sample for each of the K former times."
        )
    z_t, z_0, z0_pred = z_t.unsqueeze(-2), z_0.unsqueeze(-2), z0_pred.unsqueeze(-2)
    if alpha_bar_t.dim():
        alpha_bar_t = alpha_bar_t.unsqueeze(-2)  # (b, l, 1, 1)
    y = former_states(z_t, z_0, alpha_bar_t, alpha_bar_s, noise)  # (b, l, K, d)
    log_ratio = transition_log_ratio(y, z_t, z_0, alpha_bar_s, alpha_bar_t)  # (b, l, K)
    pair_logits = transition_log_ratio(y, z_t, z0_pred, alpha_bar_s, alpha_bar_t)  # (b, l, K)
    return normalised_score_entropy(pair_logits, log_ratio)


def _log_density(z: Tensor, z_0: Tensor, alpha_bar: Tensor) -> Tensor:
    """log N(z; sqrt(abar) z_0, (1 - abar) I) of each coordinate.  Eq. 2."""
    variance = noise_variance(alpha_bar)
    squared = (z - alpha_bar.sqrt() * z_0).square()
    return -(squared / variance + torch.log(2 * math.pi * variance)) / 2


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
