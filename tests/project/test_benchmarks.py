# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' clock, and that what they compare is equal."""

import pytest
import torch
from benchmark_record import CPU

from benchmarks import layers, timing
from benchmarks.results import NotAvailable, Row
from benchmarks.steps import (
    grid_of,
)
from benchmarks.subjects import (
    OurLayer,
    StackedMixers,
    Task,
    flipped_pair,
    our_pair,
    our_scan,
    place,
    scan_inputs,
    scan_orders,
    transformers_layer,
    transformers_scan,
)


def tiny_task(length=24, scans=1, batch=2, dtype=torch.float32):
    return Task(batch, length, 32, 8, 16, scans, dtype, CPU)


# --- timing ---


def test_power_law_is_found_through_noise():
    sizes = [1024, 2048, 4096, 8192, 16384]
    exponent, factor = timing.fit_power(sizes, [3e-6 * size**1.07 for size in sizes])
    assert exponent == pytest.approx(1.07, abs=1e-9)
    assert factor == pytest.approx(3e-6, rel=1e-9)
    noise = [1.05, 0.96, 1.03, 0.98, 1.01]
    noisy = [3e-6 * size**1.07 * n for size, n in zip(sizes, noise, strict=True)]
    assert timing.fit_power(sizes, noisy)[0] == pytest.approx(1.07, abs=0.03)


def test_contenders_take_turns_and_every_second_round_is_reversed():
    turns = []
    samplers = {name: lambda name=name: turns.append(name) or len(turns) for name in "abc"}
    samples = timing.sample_alternately(samplers, 4)
    assert "".join(turns) == "abccbaabccba"
    assert samples["a"] == [1, 6, 7, 12] and samples["b"] == [2, 5, 8, 11]


def test_short_calls_are_repeated_and_counted_once(monkeypatch):
    calls = {"slow": 0, "fast": 0}

    def call(name):
        calls[name] += 1

    def stopwatch(function, device, repeats=1):
        name = function()
        for _ in range(repeats - 1):
            function()
        return {"slow": 0.01, "fast": 0.001}[name]

    monkeypatch.setattr(timing, "stopwatch", stopwatch)
    both = {name: lambda name=name: call(name) or name for name in calls}
    samples = timing.time_alternately(both, CPU, timing.Effort(0.0, 3, 3))
    assert samples == {"slow": [0.01] * 3, "fast": [0.001] * 3}
    assert calls == {"slow": 2 + 3, "fast": 2 + 3 * 4}  # warm-up and look, then 4 ms a sample


def test_effort_bounds_the_rounds():
    effort = timing.Effort(seconds=10, min_rounds=3, max_rounds=20)
    assert [effort.rounds(seconds) for seconds in (100, 2, 0.001)] == [3, 5, 20]


def test_ratio_is_taken_round_by_round():
    slow, fast = [2.0, 20.0, 4.0], [1.0, 10.0, 1.0]  # the second round was disturbed for both
    assert timing.paired_ratio(slow, fast) == 2.0
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert timing.spread([7.0]) == (7.0, 7.0)


def test_stopwatch_times_all_repeats_and_divides(monkeypatch):
    now = iter([10.0, 16.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    done = []
    assert timing.stopwatch(lambda: done.append(1), CPU, repeats=3) == 2.0
    assert len(done) == 3


def test_peak_memory_is_what_was_held_at_once():
    kept = torch.ones(1 << 18)  # held before: not counted

    def call():
        a = torch.ones(1 << 20)  # 4 MiB
        b = a + 1  # 8 MiB
        del a
        c = b.double()  # 12 MiB
        return c.sum() + kept[0]

    peak = timing.peak_memory(call, CPU)
    assert 12 * 2**20 <= peak < 12 * 2**20 + 1000


def test_peak_memory_counts_what_backward_needs():
    x = torch.ones(1 << 18, requires_grad=True)
    forward = timing.peak_memory(lambda: torch.no_grad()(lambda: x.exp().exp().exp())(), CPU)
    training = timing.peak_memory(lambda: x.exp().exp().exp(), CPU)
    assert training >= forward + 2**20 - 100 and forward >= 2 * 2**20


# --- what is compared ---


def true_scan(given, reverse=False):
    """Stock Mamba-2's recurrence position by position, in float64."""
    x, delta, A, B, C = (given[name].double() for name in ("x", "delta", "A", "B", "C"))
    state = torch.zeros(*x[:, 0].shape, B.shape[-1], dtype=torch.float64)
    y = torch.zeros_like(x)
    steps = range(x.shape[1])
    for n in reversed(steps) if reverse else steps:
        decay = torch.exp(delta[:, n] * A)[..., None, None]
        update = (delta[:, n, :, None] * x[:, n])[..., None] * B[:, n, None, None]
        state = decay * state + update
        y[:, n] = (state * C[:, n, None, None]).sum(-1)
    return y


@pytest.mark.parametrize("length", [24, 37])
def test_scans_that_are_timed_are_the_recurrence(length):
    task = tiny_task(length)
    given = scan_inputs(task)
    truth = true_scan(given)
    for scan in (our_scan(task), transformers_scan(16)):
        assert layers.relative_difference(scan(given), truth) < 1e-5
    both = truth + true_scan(given, reverse=True)
    for pair in (our_pair(task), flipped_pair(transformers_scan(16))):
        assert layers.relative_difference(pair(given), both) < 1e-5


def test_what_differs_is_not_timed():
    truth = torch.ones(8)
    layers.require_equal({"a": truth, "b": truth * 1.0001}, torch.float32)
    for wrong in (truth * 1.1, truth * float("nan")):
        with pytest.raises(RuntimeError, match="`b` differs from `a`"):
            layers.require_equal({"a": truth, "b": wrong}, torch.float32)


def run_out():
    raise torch.OutOfMemoryError("no memory")


def test_what_does_not_fit_the_memory_is_left_out_and_said():
    row = Row("scan", "forward", {})
    differences = layers.compare(row, {"a": lambda: torch.ones(2), "b": run_out}, torch.float32)
    assert differences == {"a": 0.0}
    assert row.missing == {"b": layers.OUT_OF_MEMORY}


def test_a_chunk_that_does_not_fit_is_not_the_best():
    def make(chunk):
        return run_out if chunk > 16 else lambda: None

    assert layers.best_chunk(tiny_task(64), (64, 32, 16), make) == 16


def test_our_layer_of_one_scan_is_transformers_mixer():
    task = tiny_task()
    theirs = place(transformers_layer(task, chunk_size=16), task)
    ours, mixer = place(OurLayer(task), task), theirs.mixers[0]
    with torch.no_grad():
        for target, source in (
            (ours.mixer.in_proj.weight, mixer.in_proj.weight),
            (ours.mixer.out_proj.weight, mixer.out_proj.weight),
            (ours.mixer.norm.weight, mixer.norm.weight),
            (ours.mixer.scan.conv_weight[0], mixer.conv1d.weight[:, 0]),
            (ours.mixer.scan.conv_bias[0], mixer.conv1d.bias),
            (ours.mixer.scan.A_log[0], mixer.A_log),
            (ours.mixer.scan.delta_bias[0], mixer.dt_bias),
            (ours.mixer.scan.D[0], mixer.D),
        ):
            target.copy_(source)
        x = layers.draw_input(task)
        # Our layer's class token is absent: it reads what stands after it.
        result, truth = ours(x)[:, 1:], theirs(x[:, 1:])
    assert layers.relative_difference(result, truth) < 1e-5


def test_stacked_mixers_read_rows_and_columns_both_ways():
    task = tiny_task(length=6, scans=4)  # a grid of 2 x 3
    orders = scan_orders(task).tolist()
    assert orders[0] == [0, 1, 2, 3, 4, 5] and orders[1] == [5, 4, 3, 2, 1, 0]
    assert orders[2] == [0, 3, 1, 4, 2, 5] and orders[3] == orders[2][::-1]

    class Running(torch.nn.Module):
        def forward(self, x):
            return x.cumsum(1)

    x = torch.tensor([[[1.0], [10.0], [100.0], [1e3], [1e4], [1e5]]])
    stacked = StackedMixers([Running() for _ in range(4)], scan_orders(task))
    # The first patch is read first by two scans and last by the other two.
    assert stacked(x)[0, 0, 0] == 1 + 111111 + 1 + 111111
    assert stacked(x)[0, 3, 0] == 1111 + 111000 + 1001 + 111110


def test_picture_has_as_many_patches_as_asked():
    for patches in (16, 128, 2048, 8192, 7):
        height, width = grid_of(patches, 16)
        assert height * width == patches * 256 and height <= width


def test_task_names_its_backend_and_refuses_what_cannot_run():
    assert tiny_task().backend("torch") == "torch"
    with pytest.raises(NotAvailable):
        tiny_task().backend("no such back-end")
