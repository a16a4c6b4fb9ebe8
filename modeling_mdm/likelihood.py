# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The terms of a variational lower bound on log p(x) of latent diffusion.  Eq. 3, 14.

The model draws z_T ~ N(0, I), then z_s ~ p_theta(z_s | z_t) (Eq. 3) down to a first state z_1, and
decodes x from z_1. The posterior is q(z_t | x), with z_0 ~ q(z_0 | x) integrated out. It is
Gaussian, and a chain from z_T down to z_1 like the model, so

    log p(x) >= - E[-log p(x | z_1)]                                             reconstruction
                - sum over (s, t) of E KL(q(z_s | z_t, x) || p_theta(z_s | z_t))    diffusion
                - KL(q(z_T | x) || N(0, I))                                      prior

Both steps of a KL are Eq. 3's with z_0 averaged out: over q(z_0 | z_t, x), or over what the model
believes of z_0, of mean z0_pred and variance v_p. In such a step z_s says as much of z_0 as an
observation of precision P = SNR_s - SNR_t, so each latent's KL is

    (P e^2 / (1 + P v_p) + r - 1 - log r) / 2,    r = (1 + P v_q) / (1 + P v_p),

with e = z0_pred - E[z_0 | z_t, x] and v_q = Var(z_0 | z_t, x). As steps become finer only P e^2 / 2
is left, the score entropy of Eq. 14. Where z_0 is kept instead of integrated out, the sum is over
P |z0_pred - z_0|^2 / 2 and E[log q(z_0 | x) - log q(z_0 | z_1, x)] stands beside it: in fine steps
they add up to the same.

Axes: b batch, l length, d latent_dim, v vocabulary, E evaluations. A log-SNR is 0-dimensional: in
float64 it leaves latents of any type and place as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .diffusion import NoiseSchedule

LAST_LOG_SNR = -8.0  # of z_T: what it still tells of z_0 costs 2e-4 nats for each latent


@dataclass
class Posterior:
    """q(z_0 | x): mean and variance of latents, (b, l, d) each, or (v, d) of all words."""

    mean: Tensor
    variance: Tensor

    def diffuse(self, noise: Tensor, log_snr: Tensor) -> Tensor:
        """Draw z_t from q(z_t | x) with standard normal noise that broadcasts with the mean."""
        return self._signal(log_snr) * self.mean + self._total(log_snr).sqrt() * noise

    def given(self, z_t: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z_0 | z_t, x), each (b, l, d)."""
        constant, gain, variance = self._gains(log_snr)
        return constant + gain * z_t, variance.expand_as(z_t)

    def mixture(self, logits: Tensor, z_t: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z_0 given z_t, over words whose posteriors these are.

        The mean of y_v alone would leave out the posterior's own noise.

        Args:
            logits: of the words (Eq. 7), (b, l, v).
            z_t: (b, l, d).
        """
        constant, gain, variance = self._gains(log_snr)  # (v, d) each
        probabilities = logits.to(z_t).softmax(-1)
        mean = probabilities @ constant + (probabilities @ gain) * z_t
        squares = probabilities @ (constant.square() + variance)
        squares += (probabilities @ (2 * constant * gain)) * z_t
        squares += (probabilities @ gain.square()) * z_t.square()
        return mean, (squares - mean.square()).clamp(min=0)

    def prior(self, log_snr: Tensor) -> Tensor:
        """KL(q(z_t | x) || N(0, I)) of every position, (b, l)."""
        mean, variance = self._signal(log_snr) * self.mean, self._total(log_snr)
        return (mean.square() + variance - 1 - variance.log()).sum(-1) / 2

    def _signal(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr).sqrt()

    def _total(self, log_snr: Tensor) -> Tensor:
        """Variance of q(z_t | x)."""
        return torch.sigmoid(log_snr) * self.variance + torch.sigmoid(-log_snr)

    def _gains(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(z_0 | z_t, x) = N(constant + gain z_t, variance)."""
        signal = self._signal(log_snr)
        gain = signal * self.variance / self._total(log_snr)
        variance = self.variance / (1 + log_snr.exp() * self.variance)
        return self.mean * (1 - signal * gain), gain, variance


@dataclass(frozen=True)
class NoiseLevels:
    """Where the diffusion term is evaluated: log-SNR of z_1, of z_T, and of the evaluations, (E,).

    precisions: SNR_s - SNR_t of every step, (E,). on_grid: whether these are a sampler's steps, or
    points that stand for infinitely many.
    """

    first: Tensor
    last: Tensor
    log_snrs: Tensor
    precisions: Tensor
    on_grid: bool

    @classmethod
    def draw(
        cls, first: float, count: int, on_grid: bool, generator: torch.Generator | None = None
    ) -> "NoiseLevels":
        """Cut what lies between z_1 and z_T into `count` parts of equal log-SNR.

        On the grid each part is a step, evaluated at its noisier end; otherwise each is evaluated
        at a random place, so that their sum is an unbiased estimate of the integral over SNR.
        """
        edges = torch.linspace(first, LAST_LOG_SNR, count + 1, dtype=torch.float64)
        if on_grid:
            log_snrs, precisions = edges[1:], -edges.exp().diff()
        else:
            device = "cpu" if generator is None else generator.device
            places = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
            log_snrs = torch.lerp(edges[:-1], edges[1:], places.cpu())
            precisions = -log_snrs.exp() * edges.diff()  # dSNR = SNR dlog(SNR)
        return cls(edges[0], edges[-1], log_snrs, precisions, on_grid)

    def divergence(
        self,
        index: int,
        true: tuple[Tensor, Tensor],
        predicted: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Diffusion term of one evaluation: nats of every position, (b, l).

        Args:
            index: which of the evaluations.
            true: mean and variance of q(z_0 | z_t, x), (b, l, d) each.
            predicted: those that the model believes.
        """
        precision = self.precisions[index]
        squares = precision * (predicted[0] - true[0]).square()
        if not self.on_grid:
            return squares.sum(-1) / 2
        widened = 1 + precision * predicted[1]
        ratio = (1 + precision * true[1]) / widened
        return (squares / widened + ratio - 1 - ratio.log()).sum(-1) / 2


def standard_error(terms: Tensor) -> Tensor:
    """Standard error of the sum of independent terms (E, ...) of equal parts of the log-SNR: (...).

    The means of the terms change from part to part and their variance about them is wanted, so it
    is taken from second differences, which a mean that changes evenly leaves at 0:
    (x_1 - 2 x_2 + x_3)^2 / 6 has the mean of the variances, 1/6, 4/6 and 1/6 of each. What is left
    of a bent mean makes the error too large, not too small. Fewer than three terms have none: nan.
    """
    count = len(terms)
    if count < 3:
        return terms.new_full(terms.shape[1:], float("nan"))
    bends = terms[:-2] - 2 * terms[1:-1] + terms[2:]
    return (count / (count - 2) * bends.square().sum(0) / 6).sqrt()


def time_of(schedule: NoiseSchedule, log_snr: Tensor) -> Tensor:
    """Latest times at which a schedule has these log-SNRs, float64 of any shape, by bisection."""
    earliest = torch.zeros_like(log_snr, dtype=torch.float64)
    latest = torch.ones_like(earliest)
    for _ in range(60):
        middle = (earliest + latest) / 2
        is_late = schedule.log_snr(middle) < log_snr
        earliest = torch.where(is_late, earliest, middle)
        latest = torch.where(is_late, middle, latest)
    return latest
