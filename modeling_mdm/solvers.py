# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Samplers from noise to latents, each of which knows nothing of the network.  Eq. 9.

A solver is a generator function: it yields an `Evaluation` (a state and its time), is sent the
clean estimate there, and returns the final state. Whoever drives it decides how an estimate is
made, so several modalities, each with its own solver and number of steps, can share network calls.
`solve` drives one solver with a plain function.

In every solver a step that ends at t = 0 goes to the clean estimate.

Axes: b batch, l length, d latent_dim.
Symbols: z = alpha z_0 + sigma noise, lambda = log(alpha / sigma), half of the log-SNR.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion import NoiseSchedule, reverse_step


class Evaluation(NamedTuple):
    """A request for the clean estimate of the state `z` (b, l, d) at the time `t` (0-dimensional).

    `is_correction` marks the second request of a step, at a provisional state.
    """

    z: Tensor
    t: Tensor
    is_correction: bool = False


Solver = Callable[
    [NoiseSchedule, Tensor, Tensor, Callable[[], Tensor]], Generator[Evaluation, Tensor, Tensor]
]


def drift(schedule: NoiseSchedule, z: Tensor, z0: Tensor, t: Tensor) -> Tensor:
    """dz/dt of the probability-flow ODE, given the clean estimate z0 of z at t.  Eq. 9's f_theta.

    d(alpha)/dt z0 + d(sigma)/dt (z - alpha z0) / sigma, which for alpha^2 + sigma^2 = 1 is
    d(lambda)/dt alpha (z0 - alpha z).

    Args:
        schedule: of the modality.
        z: state, (b, l, d).
        z0: clean estimate at that state, (b, l, d).
        t: 0-dimensional, or what broadcasts with z.
    """
    alpha = schedule.alpha(t)
    rate = schedule.log_snr_derivative(t) / 2 * alpha
    return rate * (z0 - alpha * z)


def heun(
    schedule: NoiseSchedule, z: Tensor, times: Tensor, draw_noise: Callable[[], Tensor]
) -> Generator[Evaluation, Tensor, Tensor]:
    """Trapezoid rule on the probability-flow ODE, second order, two evaluations a step.  Eq. 9.

    Paper: f_theta(z_{t - Delta t}) makes Eq. 9 implicit. Here: that state is predicted by an Euler
    step, then the step is made again with the mean of both drifts.
    """
    for t, s, is_final in _steps(times):
        z0 = yield Evaluation(z, t)
        if is_final:
            return z0
        start = drift(schedule, z, z0, t)
        predicted = z + (s - t) * start
        z0 = yield Evaluation(predicted, s, is_correction=True)
        z = z + (s - t) / 2 * (start + drift(schedule, predicted, z0, s))
    return z


def dpm_solver_2m(
    schedule: NoiseSchedule, z: Tensor, times: Tensor, draw_noise: Callable[[], Tensor]
) -> Generator[Evaluation, Tensor, Tensor]:
    """Multistep DPM-Solver++ on clean estimates, second order, one evaluation a step.

    The ODE's linear part is solved exactly in lambda; the clean estimate is extrapolated linearly
    from this step and the last. The first step has no last one and is of first order.
    """
    previous_z0: Tensor | None = None
    previous_gap = torch.zeros_like(times[0])
    for t, s, is_final in _steps(times):
        z0 = yield Evaluation(z, t)
        if is_final:
            return z0
        gap = (schedule.log_snr(s) - schedule.log_snr(t)) / 2  # lambda_s - lambda_t > 0
        estimate = z0
        if previous_z0 is not None:
            estimate = z0 + gap / (2 * previous_gap) * (z0 - previous_z0)  # at the step's middle
        shrink = schedule.sigma(s) / schedule.sigma(t)
        z = shrink * z - schedule.alpha(s) * torch.expm1(-gap) * estimate
        previous_z0, previous_gap = z0, gap
    return z


def ddim(
    schedule: NoiseSchedule, z: Tensor, times: Tensor, draw_noise: Callable[[], Tensor]
) -> Generator[Evaluation, Tensor, Tensor]:
    """Deterministic DDIM, first order: the clean estimate and the noise in a new mixture."""
    for t, s, is_final in _steps(times):
        z0 = yield Evaluation(z, t)
        if is_final:
            return z0
        noise = (z - schedule.alpha(t) * z0) / schedule.sigma(t)
        z = schedule.alpha(s) * z0 + schedule.sigma(s) * noise
    return z


def ddpm(
    schedule: NoiseSchedule, z: Tensor, times: Tensor, draw_noise: Callable[[], Tensor]
) -> Generator[Evaluation, Tensor, Tensor]:
    """Ancestral sampling: z_s ~ p(z_s | z_t, z0) with the posterior's own variance.  Eq. 3."""
    for t, s, is_final in _steps(times):
        z0 = yield Evaluation(z, t)
        if is_final:
            return z0
        mean, variance = reverse_step(z, z0, schedule.alpha_bar(t), schedule.alpha_bar(s))
        z = mean + variance.sqrt() * draw_noise()
    return z


SOLVERS: dict[str, Solver] = {
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "ddim": ddim,
    "ddpm": ddpm,
}


def with_restarts(
    solver: Solver,
    schedule: NoiseSchedule,
    z: Tensor,
    passes: Sequence[Tensor],
    draw_noise: Callable[[], Tensor],
) -> Generator[Evaluation, Tensor, Tensor]:
    """Run a solver over the times of every pass, the state noised again before all but the first.

    What a pass ends at is clean: alpha z_0 + sigma noise, with fresh noise, is where the next
    begins.  Eq. 1.

    Args:
        solver: one of `SOLVERS`. schedule: of the modality. z: state at the first time, (b, l, d).
        passes: descending times (n + 1,), which end at 0. draw_noise: standard normal, like z.
    """
    for index, times in enumerate(passes):
        if index:
            z = schedule.alpha(times[0]) * z + schedule.sigma(times[0]) * draw_noise()
        z = yield from solver(schedule, z, times, draw_noise)
    return z


def sampling_times(
    num_steps: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    start: float = 1.0,
) -> Tensor:
    """Times of `num_steps` equal steps from `start` to 0, (num_steps + 1,), in float32 at least.

    A shorter `dtype`, of the latents, could not tell the times of many steps apart.

    Raises:
        ValueError: `num_steps` is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1: 30 is a good start.")
    dtype = torch.promote_types(dtype, torch.float32)
    return torch.linspace(start, 0, num_steps + 1, device=device, dtype=dtype)


def solve(
    solver_name: str,
    schedule: NoiseSchedule,
    z: Tensor,
    times: Tensor,
    denoise: Callable[[Tensor, Tensor], Tensor],
    draw_noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Final state of one solver driven by `denoise(z, t)`, which gives clean estimates.

    Args:
        solver_name: a key of `SOLVERS`.
        schedule: of the modality.
        z: state at `times[0]`, (b, l, d).
        times: descending, (n + 1,).
        denoise: from a state (b, l, d) and a 0-dimensional time to a clean estimate (b, l, d).
        draw_noise: standard normal noise shaped like z, for `ddpm`; None draws from torch's default
            generator.

    Raises:
        ValueError: an unknown `solver_name`, or `times` that do not descend within [0, 1].
    """
    if solver_name not in SOLVERS:
        raise ValueError(f"solver={solver_name!r} is unknown: use one of {tuple(SOLVERS)}.")
    steps = SOLVERS[solver_name](schedule, z, times, draw_noise or (lambda: torch.randn_like(z)))
    request = next(steps)
    while True:
        try:
            request = steps.send(denoise(request.z, request.t))
        except StopIteration as stop:
            final: Tensor = stop.value
            return final


def _steps(times: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Start and end of every step, and whether it ends at t = 0."""
    values = times.tolist() if times.dim() == 1 else []
    falls = all(later < earlier for earlier, later in pairwise(values))
    if len(values) < 2 or not falls or values[0] > 1 or values[-1] < 0:
        raise ValueError(
            f"times={times.tolist()} must be a 1-dimensional tensor of at least 2 values that "
            "descend strictly within [0, 1]: see sampling_times."
        )
    for index, end in enumerate(values[1:]):
        yield times[index], times[index + 1], end == 0
