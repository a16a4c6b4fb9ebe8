# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How everything here is timed: contenders in turn, in one process, many short rounds.

A machine's speed drifts within seconds, so two calls are only comparable if they are timed
alternately; ratios are then taken round by round.
"""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch.profiler import ProfilerActivity, profile

SHORTEST_SAMPLE = 0.004  # seconds; a shorter call is repeated within a sample


@dataclass(frozen=True)
class Effort:
    """How long a comparison may take: seconds of timing, and bounds on its rounds."""

    seconds: float = 4.0
    min_rounds: int = 3
    max_rounds: int = 20

    def rounds(self, seconds_a_round: float) -> int:
        """Rounds that fit, within the bounds."""
        wanted = int(self.seconds / max(seconds_a_round, 1e-9))
        return max(self.min_rounds, min(self.max_rounds, wanted))


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stopwatch(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds a call, the device's work included."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - start) / repeats


def time_alternately(
    calls: dict[str, Callable[[], object]], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Time calls in turn, every second round in reverse order.

    Args:
        calls: by name; each is called twice beforehand, to compile, to fill caches and to see how
            long it takes.

    Returns:
        seconds of every round by name, all lists of one length.
    """
    repeats, expected = {}, 0.0
    for name, call in calls.items():
        call()
        once = stopwatch(call, device)
        repeats[name] = max(1, math.ceil(SHORTEST_SAMPLE / max(once, 1e-7)))
        expected += once * repeats[name]
    samplers = {
        name: lambda name=name: stopwatch(calls[name], device, repeats[name]) for name in calls
    }
    return sample_alternately(samplers, effort.rounds(expected))


def sample_alternately(
    samplers: dict[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Collect one number of each sampler a round, every second round in reverse order."""
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    gc.disable()  # a collection within one contender's turn would be charged to it
    try:
        for index in range(rounds):
            for name in names if index % 2 == 0 else reversed(names):
                samples[name].append(samplers[name]())
    finally:
        gc.enable()
    return samples


def spread(samples: list[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(samples) < 2:
        return samples[0], samples[0]
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return low, high


def paired_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of how many times longer one took than the other."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def fit_power(sizes: list[float], values: list[float]) -> tuple[float, float]:
    """Fit values = factor * sizes ** exponent by least squares of the logarithms.

    Returns:
        exponent and factor.
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    exponent = covariance / sum((a - mean_x) ** 2 for a in x)
    return exponent, math.exp(mean_y - exponent * mean_x)


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that one call held at once beyond what was held before it.

    On a GPU this is `torch.cuda.max_memory_allocated`. On a CPU it is the same account of torch's
    allocator, kept from the profiler's record of every allocation and release: unlike the
    process's size it does not depend on what malloc keeps, and like the GPU's figure it leaves out
    what libraries allocate for themselves.
    """
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    return peak
