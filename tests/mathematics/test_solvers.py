# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Solvers on a problem whose every state is known, and beside diffusers' schedulers."""

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_mdm.diffusion import SCHEDULES, NoiseSchedule
from modeling_mdm.solvers import SOLVERS, Evaluation, drift, sampling_times, solve

float64 = torch.float64
every_schedule = pytest.mark.parametrize(
    "schedule", [NoiseSchedule(name) for name in SCHEDULES], ids=lambda s: s.name
)


class GaussianProblem:
    """Data N(m, s^2) per coordinate: the ideal denoiser and every ODE path in closed form."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.mean = torch.tensor([0.7, -1.0, 2.0], dtype=float64)
        self.deviation = torch.tensor([0.3, 1.4, 0.05], dtype=float64)

    def factors(self, t):
        log_snr = self.schedule.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def denoise(self, z, t):
        """E[z_0 | z_t = z]."""
        alpha, sigma = self.factors(t)
        gain = alpha * self.deviation**2 / (alpha**2 * self.deviation**2 + sigma**2)
        return self.mean + gain * (z - alpha * self.mean)

    def path(self, start, t):
        """The ODE keeps each point's place, `start` standard deviations from the mean."""
        alpha, sigma = self.factors(t)
        return alpha * self.mean + (alpha**2 * self.deviation**2 + sigma**2).sqrt() * start


STARTS = torch.linspace(-2, 2, 9, dtype=float64)[None, :, None].expand(1, 9, 3)


def error_on_the_gaussian_problem(name, schedule, num_steps):
    problem = GaussianProblem(schedule)
    times = torch.linspace(0.95, 0.05, num_steps + 1, dtype=float64)
    end = solve(name, schedule, problem.path(STARTS, times[0]), times, problem.denoise)
    return (end - problem.path(STARTS, times[-1])).square().mean().sqrt().item()


@every_schedule
@pytest.mark.parametrize("name, order", [("heun", 2), ("dpm_solver_2m", 2), ("ddim", 1)])
def test_measured_order_of_convergence(schedule, name, order):
    counts = [80, 160, 320]
    errors = [error_on_the_gaussian_problem(name, schedule, count) for count in counts]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 0.02
    assert slopes == pytest.approx([order, order], abs=0.2)


@every_schedule
def test_drift_is_the_velocity_of_the_exact_path(schedule):
    """Eq. 9's f_theta: dz/dt by central differences along the known solution."""
    problem, step = GaussianProblem(schedule), 1e-6
    for t in (0.0135, 0.2505, 0.5005, 0.7775, 0.9875):  # in the middle of linear's intervals
        t = torch.tensor(t, dtype=float64)
        velocity = (problem.path(STARTS, t + step) - problem.path(STARTS, t - step)) / (2 * step)
        z = problem.path(STARTS, t)
        value = drift(schedule, z, problem.denoise(z, t), t)
        torch.testing.assert_close(value, velocity, rtol=1e-6, atol=1e-6)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_drift_at_pure_noise_is_that_just_before_it(schedule, dtype):
    """The clip of the log-SNR would make it 0 at t = 1, and every first step of Eq. 9 wrong."""
    z, z0 = torch.randn(2, 1, 4, 3, dtype=dtype)
    end, before = (drift(schedule, z, z0, torch.tensor(t, dtype=dtype)) for t in (1.0, 0.9995))
    assert end.abs().min() > 1e-4
    torch.testing.assert_close(end, before, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_samples_have_the_moments_of_the_data(name, schedule_name):
    schedule = NoiseSchedule(schedule_name)
    problem = GaussianProblem(schedule)
    noise = torch.randn(4000, 1, 3, dtype=float64)
    samples = solve(name, schedule, noise, sampling_times(200, dtype=float64), problem.denoise)
    spread = problem.deviation / math.sqrt(4000)
    assert ((samples.mean((0, 1)) - problem.mean).abs() < 5 * spread + 0.02).all()
    assert samples.std(0)[0, :2] == pytest.approx(problem.deviation[:2].numpy(), rel=0.08)


# --- Each step by hand


def test_heun_step_is_equation_9():
    schedule = NoiseSchedule("cosine")
    z, first, second = torch.randn(3, 1, 2, 3, dtype=float64)
    times = torch.tensor([0.8, 0.6], dtype=float64)
    steps = SOLVERS["heun"](schedule, z, times, lambda: None)
    request = next(steps)
    assert request.z is z and request.t == 0.8 and not request.is_correction
    correction = steps.send(first)
    assert correction.t == 0.6 and correction.is_correction
    velocity_t = velocity_by_hand(schedule, z, first, 0.8)
    predicted = z - 0.2 * velocity_t
    torch.testing.assert_close(correction.z, predicted, rtol=1e-6, atol=1e-6)
    velocity_s = velocity_by_hand(schedule, predicted, second, 0.6)
    with pytest.raises(StopIteration) as stop:
        steps.send(second)
    expected = z - 0.2 / 2 * (velocity_t + velocity_s)
    torch.testing.assert_close(stop.value.value, expected, rtol=1e-6, atol=1e-6)


def velocity_by_hand(schedule, z, z0, t):
    """d(alpha)/dt z0 + d(sigma)/dt noise, the derivatives by central differences."""
    step = 1e-6
    early, now, late = (
        schedule.alpha_bar(torch.tensor(x, dtype=float64)) for x in (t - step, t, t + step)
    )
    noise = (z - now.sqrt() * z0) / (1 - now).sqrt()
    signal = (late.sqrt() - early.sqrt()) / (2 * step)
    spread = ((1 - late).sqrt() - (1 - early).sqrt()) / (2 * step)
    return signal * z0 + spread * noise


@given(
    name=st.sampled_from(list(SOLVERS)),
    schedule_name=st.sampled_from(SCHEDULES),
    shape=st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 3)),
    num_steps=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, float64]),
)
def test_any_shape_ends_at_the_last_clean_estimate(name, schedule_name, shape, num_steps, dtype):
    seen = []

    def denoise(z, t):
        assert z.shape == shape and z.dtype == dtype and t.dim() == 0
        assert z.isfinite().all()
        seen.append(torch.tanh(z))
        return seen[-1]

    z = torch.randn(shape, dtype=dtype)
    end = solve(name, NoiseSchedule(schedule_name), z, sampling_times(num_steps), denoise)
    assert end is seen[-1]
    assert len(seen) == (2 * num_steps - 1 if name == "heun" else num_steps)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_requests_are_at_the_given_times(name):
    times = sampling_times(4)
    steps = SOLVERS[name](NoiseSchedule("tan"), torch.randn(1, 2, 3), times, torch.tensor)
    if name == "ddpm":
        steps = SOLVERS[name](
            NoiseSchedule("tan"), torch.randn(1, 2, 3), times, lambda: torch.zeros(1, 2, 3)
        )
    requests = [next(steps)]
    while True:
        try:
            requests.append(steps.send(torch.zeros(1, 2, 3)))
        except StopIteration:
            break
    assert all(isinstance(request, Evaluation) for request in requests)
    assert [r.t.item() for r in requests if not r.is_correction] == [1.0, 0.75, 0.5, 0.25]
    corrections = [r.t.item() for r in requests if r.is_correction]
    assert corrections == ([0.75, 0.5, 0.25] if name == "heun" else [])


def test_only_ddpm_draws_noise_and_not_in_the_final_step():
    for name in SOLVERS:
        draws = []

        def draw_noise(draws=draws):
            draws.append(torch.randn(1, 2, 3))
            return draws[-1]

        z = torch.randn(1, 2, 3)
        solve(name, NoiseSchedule("tan"), z, sampling_times(5), lambda z, t: z / 2, draw_noise)
        assert len(draws) == (4 if name == "ddpm" else 0)


def test_state_dtype_is_kept_when_the_times_are_more_precise():
    for name in SOLVERS:
        times = torch.linspace(1, 0.1, 4, dtype=float64)
        end = solve(name, NoiseSchedule("tan"), torch.randn(1, 2, 3), times, lambda z, t: z / 2)
        assert end.dtype == torch.float32


def test_sampling_times_are_uniform_from_one_to_zero():
    assert sampling_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert sampling_times(1, dtype=float64).dtype == float64
    for num_steps in (0, -3):
        with pytest.raises(ValueError, match=rf"num_steps={num_steps} must be at least 1"):
            sampling_times(num_steps)


@pytest.mark.parametrize(
    "times",
    [
        *([0.5], [0.5, 0.5], [0.2, 0.8], [1.5, 0.5], [0.5, -0.1], [0.5, 0.2, -0.1]),
        *([[1, 0]], [[0.9, 0.5], [0.5, 0.2]]),
    ],
)
def test_times_that_do_not_descend_are_refused(times):
    z = torch.zeros(1, 1, 1)
    for name in SOLVERS:
        with pytest.raises(ValueError, match=r"times=.* descend strictly within \[0, 1\]"):
            solve(name, NoiseSchedule("tan"), z, torch.tensor(times).float(), lambda z, t: z)


def test_unknown_solver_is_refused():
    z = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"solver='euler' is unknown: use one of .*heun"):
        solve("euler", NoiseSchedule("tan"), z, sampling_times(2), lambda z, t: z)


# --- diffusers' schedulers, given the same clean estimates

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm_solver_2m": "DPMSolverMultistepScheduler",
}


@dataclass(frozen=True)
class GridSchedule(NoiseSchedule):
    """A schedule that is known only at diffusers' 1000 training steps, t = (k + 1) / 1000."""

    grid: tuple[float, ...] = ()

    def log_snr(self, t):
        places = np.arange(1, 1001) / 1000
        return torch.as_tensor(np.interp(t.double().numpy(), places, self.grid), dtype=t.dtype)


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():  # of its own imports, none of them ours to mend
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers", reason="diffusers is not installed")
        for name in CLASSES.values():
            getattr(module, name)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("solver_name", list(CLASSES))
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("num_steps", [10, 25, 50])
def test_agrees_with_diffusers(diffusers, solver_name, betas, num_steps):
    options = {"clip_sample": False} if solver_name in ("ddim", "ddpm") else {}
    if solver_name == "dpm_solver_2m":
        options = {"solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}
    scheduler = getattr(diffusers, CLASSES[solver_name])(
        beta_schedule=betas,
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="sample",
        timestep_spacing="trailing",
        **options,
    )
    scheduler.set_timesteps(num_steps)
    schedule = NoiseSchedule("linear")
    if betas != "linear":
        abar = scheduler.alphas_cumprod.double()
        schedule = GridSchedule("cosine", grid=tuple((abar / (1 - abar)).log().tolist()))

    def denoise(z, t):
        return torch.tanh(1.3 * z + t) + 0.2 * z

    start = torch.randn(2, 3, 4, dtype=float64)
    theirs = start.clone()
    draw = torch.Generator().manual_seed(7)
    arguments = {"generator": draw} if solver_name == "ddpm" else {}
    for k in scheduler.timesteps:
        clean = denoise(theirs, (k.double() + 1) / 1000)
        theirs = scheduler.step(clean, k, theirs, **arguments).prev_sample

    draw = torch.Generator().manual_seed(7)
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=float64)])
    ours = solve(
        solver_name,
        schedule,
        start,
        times,
        denoise,
        lambda: torch.randn(start.shape, generator=draw, dtype=float64),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
