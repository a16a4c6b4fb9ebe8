# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Noise schedules and the forward process.  Eq. 1-3.

Time is a float in [0, 1]: 0 is clean, 1 is (almost) pure noise. A schedule is known by its log-SNR,
log(alpha_bar / (1 - alpha_bar)), because both alpha_bar and 1 - alpha_bar follow from it without
cancellation, however small either is.

Axes: b batch, l length (positions of one modality), d latent_dim.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SCHEDULES = ("cosine", "linear", "tan")

MAX_LOG_SNR = 20.0  # every schedule is clipped to |log-SNR| <= 20
MIN_NOISE_VARIANCE = 1.0 / (1.0 + math.exp(MAX_LOG_SNR))  # 1 - alpha_bar where log-SNR = 20

_COSINE_OFFSET = 0.008  # Nichol and Dhariwal's s
_LINEAR_STEPS = 1000  # DDPM's grid
_LINEAR_BETA_FIRST, _LINEAR_BETA_LAST = 1e-4, 0.02


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of the clean latent is left at each time, for one modality.

    Every method takes a float tensor of times in [0, 1] of any shape and returns the same shape and
    dtype; times outside [0, 1] saturate at the ends. Half-precision times are computed in float32.

    At t = 0 the clip leaves 1 - alpha_bar = 2e-9, not 0: positions that are given take their clean
    latents, they are not passed through `add_noise`.

    Args:
        name: `"cosine"` (Nichol and Dhariwal), `"linear"` (DDPM's 1000-step beta grid, interpolated
            in log-SNR) or `"tan"` (alpha_bar = 1 / (1 + scale^2 tan^2(pi t / 2))).
        scale: of `"tan"` only. A larger one gives more of the time to high noise.

    Raises:
        ValueError: an unknown `name`, or a `scale` that is not a positive finite number.
    """

    name: str
    scale: float = 3.0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"name={self.name!r} is not a schedule: use one of {SCHEDULES}.")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale={self.scale!r} must be a positive number: 3.0 is the default.")

    def log_snr(self, t: Tensor) -> Tensor:
        """Logarithm of the signal-to-noise ratio, clipped to [-20, 20] and falling with time."""
        t, dtype = _at_least_float32(t)
        if self.name == "tan":
            unclipped = -2 * (_log_tan_half_pi(t) + math.log(self.scale))
        elif self.name == "cosine":
            unclipped = _cosine_log_snr(t)
        else:
            unclipped = _linear_log_snr(t)
        return unclipped.clamp(-MAX_LOG_SNR, MAX_LOG_SNR).to(dtype)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Time at which the log-SNR has these values, the inverse of `log_snr`.

        What the schedule does not reach, and what is beyond the clip, gives the end that is nearer.
        """
        log_snr, dtype = _at_least_float32(log_snr)
        log_snr = log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR)
        if self.name == "tan":
            t = 2 / math.pi * torch.atan(torch.exp(-log_snr / 2) / self.scale)
        elif self.name == "cosine":
            t = _cosine_time(log_snr)
        else:
            t = _linear_time(log_snr)
        return t.clamp(0, 1).to(dtype)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        """Derivative of the log-SNR in time, always negative.

        Where the log-SNR is clipped this is the derivative where the clip begins, not 0: the drift
        of the probability-flow ODE is then continuous up to t = 1. For `"linear"` it is exact in
        the middle of the 1000 intervals and interpolated between.
        """
        t, dtype = _at_least_float32(t)
        if self.name == "tan":
            edge = math.exp(-MAX_LOG_SNR / 2)
            from_start = t.clamp(min=2 / math.pi * math.atan(edge / self.scale))
            from_end = (1 - t).clamp(min=2 / math.pi * math.atan(edge * self.scale))
            slope = -2 * math.pi / torch.sin(math.pi * torch.minimum(from_start, from_end))
        elif self.name == "cosine":
            slope = _cosine_slope(t)
        else:
            slope = _linear_slope(t)
        return slope.to(dtype)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Share of the clean latent in the variance at time t.  Eq. 1's alpha-bar."""
        t, dtype = _at_least_float32(t)
        return torch.sigmoid(self.log_snr(t)).to(dtype)

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the clean latent in Eq. 1, sqrt(alpha_bar)."""
        t, dtype = _at_least_float32(t)
        return torch.sigmoid(self.log_snr(t)).sqrt().to(dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise in Eq. 1, sqrt(1 - alpha_bar), accurate down to t = 0."""
        t, dtype = _at_least_float32(t)
        return torch.sigmoid(-self.log_snr(t)).sqrt().to(dtype)

    def betas(self, num_steps: int) -> Tensor:
        """Noise added by each of `num_steps` equal steps, (num_steps,) float64.  Eq. 1's beta_k.

        The product of 1 - beta over the first k steps is alpha_bar at t = k / num_steps.

        Raises:
            ValueError: `num_steps` is less than 1.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        log_alpha_bar = torch.nn.functional.logsigmoid(self.log_snr(t))
        log_alpha_bar[0] = 0.0  # the product over no steps is 1; the clip alone says 1 - 2e-9
        return -torch.expm1(log_alpha_bar[1:] - log_alpha_bar[:-1])


def add_noise(z_0: Tensor, noise: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Latents after t steps of noise, sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise.  Eq. 1-2.

    Args:
        z_0: clean latents, (b, l, d).
        noise: standard normal, (b, l, d).
        alpha_bar_t: broadcasts over the latents: (b, l, 1) for a time per position, or (b, 1, 1).

    Raises:
        ValueError: `noise` has another shape than `z_0`.
    """
    if noise.shape != z_0.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and z_0 {tuple(z_0.shape)}: give equal shapes."
        )
    return alpha_bar_t.sqrt() * z_0 + (1 - alpha_bar_t).sqrt() * noise


def noise_variance(alpha_bar: Tensor) -> Tensor:
    """1 - alpha_bar, kept at or above its value at the clip so that it can be divided by."""
    return (1 - alpha_bar).clamp(min=MIN_NOISE_VARIANCE)


def reverse_step(
    z_t: Tensor, z_0: Tensor, alpha_bar_t: Tensor, alpha_bar_s: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of p(z_s | z_t, z_0) for an earlier time s.  Eq. 3.

    Paper: sigma_theta is predicted. Here: the variance is this posterior's own, never learned.

    Args:
        z_t: noisy latents, (..., d).
        z_0: clean latents, or the model's estimate of them, (..., d).
        alpha_bar_t: at the time of z_t, broadcasts over the latents.
        alpha_bar_s: at the earlier time s <= t, broadcasts over the latents.

    Returns:
        The mean, shaped like the latents, and the variance, shaped like the broadcast alpha_bars.
    """
    variance_t, variance_s = noise_variance(alpha_bar_t), noise_variance(alpha_bar_s)
    kept = alpha_bar_t / alpha_bar_s  # the part of z_s that is still in z_t
    added = (alpha_bar_s - alpha_bar_t) / alpha_bar_s  # 1 - kept, without its cancellation
    from_noisy = kept.sqrt() * variance_s / variance_t
    from_clean = alpha_bar_s.sqrt() * added / variance_t
    return from_noisy * z_t + from_clean * z_0, variance_s * added / variance_t


def _at_least_float32(t: Tensor) -> tuple[Tensor, torch.dtype]:
    """The times in float32 or float64, and the dtype in which the answer is due."""
    if not t.is_floating_point():
        raise ValueError(f"t has dtype {t.dtype}: give float times in [0, 1].")
    return (t if t.dtype == torch.float64 else t.float()), t.dtype


def _log_tan_half_pi(t: Tensor) -> Tensor:
    """log tan(pi t / 2), exact at both ends: beyond 1/2 it is -log tan(pi (1 - t) / 2)."""
    is_late = t > 0.5
    nearer = torch.where(is_late, 1 - t, t).clamp(min=torch.finfo(t.dtype).tiny)
    log_tan = torch.log(torch.tan(math.pi / 2 * nearer))
    return torch.where(is_late, -log_tan, log_tan)


# The cosine schedule is alpha_bar = cos^2(a) / cos^2(a_0), a = (t + s) / (1 + s) pi / 2. With
# cos^2(a_0) - cos^2(a) = sin(a - a_0) sin(a + a_0) and cos(a) = sin(pi / 2 - a) no end cancels.
_COSINE_RATE = math.pi / 2 / (1 + _COSINE_OFFSET)  # da/dt
_COSINE_START = _COSINE_OFFSET * _COSINE_RATE  # a_0


def _cosine_log_snr(t: Tensor) -> Tensor:
    tiny = torch.finfo(t.dtype).tiny
    log_signal = 2 * torch.log(torch.sin(_COSINE_RATE * (1 - t).clamp(min=tiny)))
    since_start = _COSINE_RATE * t.clamp(min=tiny)
    log_noise = torch.log(torch.sin(since_start)) + torch.log(
        torch.sin(since_start + 2 * _COSINE_START)
    )
    return log_signal - log_noise


def _cosine_time(log_snr: Tensor) -> Tensor:
    # cos^2(a) = cos^2(a_0) alpha_bar and sin^2(a) = (sin^2(a_0) + e^-lambda) alpha_bar.
    noise_ratio = torch.exp(-log_snr) + math.sin(_COSINE_START) ** 2
    angle = torch.atan(noise_ratio.sqrt() / math.cos(_COSINE_START))
    return (angle - _COSINE_START) / _COSINE_RATE


def _cosine_slope(t: Tensor) -> Tensor:
    t = t.clamp(0, 1)
    # Where the clip begins: cos(a) = cos(a_0) sqrt(alpha_bar) with log-SNR = -20 and 20.
    last_left = math.asin(math.cos(_COSINE_START) * math.sqrt(MIN_NOISE_VARIANCE))
    left = (_COSINE_RATE * (1 - t)).clamp(min=last_left)  # pi / 2 - a
    first = MIN_NOISE_VARIANCE * math.cos(_COSINE_START) ** 2 / math.sin(2 * _COSINE_START)
    since_start = (_COSINE_RATE * t).clamp(min=first)  # a - a_0, and sin(a - a_0) = a - a_0 here
    signal_slope = 2 / torch.tan(left)
    noise_slope = 1 / torch.tan(since_start) + 1 / torch.tan(since_start + 2 * _COSINE_START)
    return -_COSINE_RATE * (signal_slope + noise_slope)


@lru_cache(maxsize=1)
def _linear_grid() -> tuple[float, ...]:
    """Log-SNR of DDPM's grid at t = 0, 1/1000, ..., 1; t = 0 is at the clip."""
    values, log_alpha_bar = [MAX_LOG_SNR], 0.0
    for step in range(_LINEAR_STEPS):
        share = step / (_LINEAR_STEPS - 1)
        log_alpha_bar += math.log1p(
            -(_LINEAR_BETA_FIRST + share * (_LINEAR_BETA_LAST - _LINEAR_BETA_FIRST))
        )
        values.append(log_alpha_bar - math.log(-math.expm1(log_alpha_bar)))
    return tuple(values)


def _between(points: Tensor, position: Tensor) -> Tensor:
    """The points, at 0, 1, 2, ..., interpolated linearly and constant beyond both ends."""
    position = position.clamp(0, len(points) - 1)
    index = position.detach().long().clamp(max=len(points) - 2)
    return torch.lerp(points[index], points[index + 1], position - index)


def _linear_log_snr(t: Tensor) -> Tensor:
    grid = torch.tensor(_linear_grid(), dtype=t.dtype, device=t.device)
    return _between(grid, t * _LINEAR_STEPS)


def _linear_time(log_snr: Tensor) -> Tensor:
    falling = torch.tensor(_linear_grid(), dtype=log_snr.dtype, device=log_snr.device)
    after = torch.searchsorted(-falling, -log_snr.contiguous()).clamp(1, len(falling) - 1)
    high, low = falling[after - 1], falling[after]
    return (after - 1 + (high - log_snr) / (high - low)) / _LINEAR_STEPS


def _linear_slope(t: Tensor) -> Tensor:
    # Exact in the middle of every interval and without jumps between: a step function's jumps would
    # cost a solver that evaluates the drift its second order.
    grid = torch.tensor(_linear_grid(), dtype=t.dtype, device=t.device)
    return _between(grid.diff(), t * _LINEAR_STEPS - 0.5) * _LINEAR_STEPS
