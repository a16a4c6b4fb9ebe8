# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks, on tiny sizes: every row runs, what is compared is equal, figures add up."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, layers, roofline, run, timing, whole_step
from benchmarks.generation import KEEPS, cache_rows, past_rows, selection_rows
from benchmarks.machine import GIVEN, Peaks, describe_machine, device_slug, measure_peaks
from benchmarks.plans import PLANS, plan_for
from benchmarks.report import FIGURES, crossing, main, markdown, write_report
from benchmarks.report import ReportArguments as Reported
from benchmarks.results import Contender, NotAvailable, Record, Row
from benchmarks.roofline import Step
from benchmarks.steps import (
    Generation,
    TokenByToken,
    evaluation_call,
    grid_of,
    image_inputs,
    make_config,
    make_model,
    scan_clock,
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
from benchmarks.targets import TARGETS, growth_exponent, roofline_fraction
from modeling_mdm import MDMConfig
from modeling_mdm.matmul import takes_onednn

CPU = torch.device("cpu")
DRY = PLANS["dry"]
PEAKS = Peaks({"float32": 100e9, "bfloat16": 200e9}, 10e9, 1e9, "made up")


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


# --- whole models ---


@pytest.fixture(scope="module")
def model():
    return make_model(make_config(DRY), CPU, torch.float32)


def test_latency_is_setup_and_steps(model, monkeypatch):
    clock = iter([0.0, 3.0, 4.0, 5.5, 6.5, 7.0])  # start, the ends of four steps, the end
    monkeypatch.setattr("benchmarks.steps.time.perf_counter", lambda: next(clock))
    options = {"generation_mode": "image", "image_size": 32, "guidance_scale": 2.0}
    one = Generation(model, image_inputs(CPU), options, num_steps=4)
    found = one.run()
    assert found.steps == [1.0, 1.5, 1.0] and found.step == 1.0
    assert found.setup == 3.0 - 1.0 + 0.5
    assert found.latency(30) == 32.5
    details = one.details(30, branches=2)
    assert details["sampler_steps"] == 30 and details["scans_a_block"] == 4
    assert details["evaluations_a_step"] >= 1 and details["blocks"] == DRY.layers


def test_tokens_are_timed_at_contexts_whose_mean_is_that_of_all(model, monkeypatch):
    attention = make_model(make_config(DRY, mixer="attention"), CPU, torch.float32)
    writer = TokenByToken(attention, length=100, prompt=20, batch=2)
    monkeypatch.setattr(writer, "_token", lambda context: 5.0 + 0.1 * context)
    monkeypatch.setattr("benchmarks.steps.stopwatch", lambda *_: 7.0)
    all_tokens = sum(5.0 + 0.1 * context for context in range(20, 120))
    assert writer.seconds() == pytest.approx(7.0 + all_tokens, rel=5e-3)


def test_tokens_really_read_the_cache(model):
    attention = make_model(make_config(DRY, mixer="attention"), CPU, torch.float32)
    writer, seen = TokenByToken(attention, length=8, prompt=4, batch=2), []
    hook = writer.model.register_forward_hook(
        lambda *call: seen.append(call[-1].to_tuple()[1].get_seq_length()), always_call=True
    )
    assert writer.seconds() > 0 and writer.peak_bytes() > 0
    hook.remove()
    # A quarter and three quarters of the way: one to warm up, eight timed; then the prompt at once.
    assert seen[:19] == [*range(4 + 2 + 1, 4 + 2 + 10), *range(4 + 6 + 1, 4 + 6 + 10), 4]


def test_clock_of_scans_counts_every_call(model):
    call = evaluation_call(model, 1, 16)
    with scan_clock(model, CPU) as taken:
        call()
        call()
    assert len(taken) == 2 * DRY.layers and all(seconds > 0 for seconds in taken)
    with scan_clock(model, CPU) as taken:
        pass
    call()
    assert not taken


def test_hard_selection_is_measured_at_every_share():
    step, scan = selection_rows(DRY, CPU)
    names = [f"keep {keep:.0%}" for keep in KEEPS]
    assert list(step.contenders) == list(scan.contenders) == names
    assert all(one.backend for one in (*step.contenders.values(), *scan.contenders.values()))


def test_going_on_reads_the_new_turn_alone():
    (row,) = past_rows(DRY, CPU)
    read = {name: one.details["positions_read"] for name, one in row.contenders.items()}
    (length,) = DRY.past_lengths
    # Special tokens are read with the first turn.
    assert read["going on"] == DRY.noisy and read["anew"] >= length + DRY.noisy


def test_prompt_cache_that_is_not_there_is_reported(monkeypatch):
    monkeypatch.setattr("benchmarks.generation.DEFAULTS", {})
    for row in cache_rows(DRY, CPU):
        assert not row.contenders and len(row.missing) == 4
        assert set(row.missing.values()) == {"this version of `generate` has no prompt cache"}


# --- every row, and its record ---


PRODUCTS = {"float32", "bfloat16"}
with torch.no_grad():
    if takes_onednn(torch.zeros(1, 1), torch.zeros(1, 1)):
        PRODUCTS.add("float32 by oneDNN")


def check_schema(document):
    assert document["schema"] == 1
    peaks = document["machine"]["peaks"]
    assert peaks["bandwidth"] > 0 and set(peaks["matmul"]) == PRODUCTS
    assert document["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert document["machine"]["bfloat16"] in ("in hardware", "emulated")
    assert document["versions"]["torch"] == torch.__version__.split("+")[0]
    for row in document["rows"]:
        assert set(row) == {"topic", "name", "parameters", "contenders", "missing"}
        assert row["contenders"] or row["missing"]
        assert all(isinstance(reason, str) and reason for reason in row["missing"].values())
        rounds = {len(one["seconds"]) for one in row["contenders"].values()}
        assert len(rounds) <= 1  # alternately: as many of each
        for one in row["contenders"].values():
            assert set(one) == {"seconds", "peak_bytes", "backend", "details"}
            assert all(seconds > 0 for seconds in one["seconds"])


IN_FAST_LANE = ("scan", "attention", "prompt_cache", "growth", "selection")


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param(topic, marks=[] if topic in IN_FAST_LANE else pytest.mark.slow)
        for topic in run.TOPICS
    ],
)
def test_every_topic_runs_and_is_recorded(topic, tmp_path):
    path = tmp_path / "record.json"
    arguments = run.BenchmarkArguments(plan="dry", topics=[topic], output=str(path))
    record, written, whole = run.run(arguments)
    assert whole and written == path and record.rows
    check_schema(json.loads(path.read_text()))
    again = tmp_path / "again.json"
    Record.load(path).save(again)
    assert again.read_bytes() == path.read_bytes()
    names = [(row.topic, row.name) for row in record.rows]
    assert len(set(names)) == len(names)
    assert "## Targets\n\n| target | floor | stretch | measured" in markdown(record, [])


@pytest.mark.parametrize("topic", ["pair", "block", "step"])
def test_gpu_rows_run_in_bfloat16(topic, tmp_path):
    arguments = run.BenchmarkArguments(
        plan="dry-bfloat16", topics=[topic], output=str(tmp_path / "record.json")
    )
    record, _, whole = run.run(arguments)
    assert whole and all(row.parameters["dtype"] == "bfloat16" for row in record.rows)


def test_a_row_that_fails_takes_no_other_with_it(tmp_path, monkeypatch, capsys):
    def broken(plan, device, peaks):
        yield Row("scan", "good", {}, {"mdm": Contender([1.0])})
        raise RuntimeError("a bug")

    monkeypatch.setitem(run.TOPICS, "scan", broken)
    monkeypatch.setitem(run.TOPICS, "step", lambda *_: iter([Row("step", "too", {})]))
    arguments = run.BenchmarkArguments(
        plan="dry", topics=["scan", "step"], output=str(tmp_path / "record.json")
    )
    record, _, whole = run.run(arguments)
    assert not whole
    assert [row.name for row in record.rows] == ["good", "failed", "too"]
    assert record.rows[1].missing == {"all": "RuntimeError: a bug"}
    assert "FAILED" in capsys.readouterr().err


def test_no_row_begins_when_the_time_is_up(tmp_path):
    arguments = run.BenchmarkArguments(
        plan="dry", topics=["block"], minutes=0.0, output=str(tmp_path / "record.json")
    )
    record, _, _ = run.run(arguments)
    assert [row.missing for row in record.rows] == [{"all": "the time was up"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": "huge"}, "`plan` is 'huge': choose one of full"),
        ({"topics": ["speed"]}, r"`topics` holds \['speed'\]: choose out of scan"),
        ({"device": "tpu"}, "`device` is 'tpu': use cpu or cuda"),
        ({"threads": 0}, "`threads` is 0: use at least 1"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run.main(run.BenchmarkArguments(**changes))


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no CUDA device: use cpu"):
        run.main(run.BenchmarkArguments(device="cuda"))


def test_a_file_that_is_no_record_is_refused(tmp_path):
    for number, text in enumerate(("{}", '{"schema": 99}', '{"schema": 1, "rows": 3}', "[", "[]")):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(ValueError, match="is no record of schema 1: make one"):
            Record.load(path)


# --- tables and plots ---


def sample_record(device="cpu"):
    """A record whose figures are known."""

    def row(topic, name, parameters, **contenders):
        return Row(topic, name, parameters, contenders, {"mamba_ssm": "no CUDA device"})

    def one(*seconds, memory=2**20, **details):
        return Contender(list(seconds), memory, "torch", details)

    machine = {
        "device": device, "name": "a machine", "cores": 2, "threads": 1, "load_before": 0.1,
        "cpu_capability": "AVX2", "bfloat16": "emulated",
        "peaks": {"matmul": {"float32": 100e9}, "bandwidth": 10e9, "exponentials": 1e9,
                  "source": "made up"},
    }  # fmt: skip
    rows = [
        row("scan", "forward 1024", {"length": 1024, "dtype": "float32"},
            mdm=one(0.010, 0.011, matmul_flops=0.7e9),
            transformers=one(0.080, 0.088), transformers_best_chunk=one(0.02, 0.022)),
        row("block", "training 4 scans 4096", {"length": 4096},
            mdm=one(1.0), transformers=one(5.0, memory=7 * 2**20)),
        row("selection", "scan", {}, **{"keep 100%": one(1.0), "keep 25%": one(0.3)}),
        row("pair", "forward 4096", {}, mdm=one(1.0), mamba_ssm=one(2.0)),
        row("step", "1 x 256", {"patches": 256}, eager=one(3.0), cuda_graph=one(1.0)),
        row("step", "2 x 4096", {"patches": 4096},
            eager=one(4.0, bound_seconds=1.0, predicted_seconds=2.0),
            cuda_graph=one(2.5, bound_seconds=1.0, predicted_seconds=2.0)),
    ]  # fmt: skip
    for size in (1024, 4096, 16384):
        rows.append(
            row("growth", f"step {size}", {"patches": size},
                mdm=one(1e-3 * size**1.05, memory=100 * size), transformer=one(1e-6 * size**2))
        )  # fmt: skip
        for kind, unit in (("image", "patches"), ("text", "words")):
            counts = {"sampler_steps": 30, "evaluations_a_step": 1.0, "branches": 2, "blocks": 4}
            rows.append(
                row("figure_5", f"{kind} {size}", {unit: size},
                    mdm=one(4e-3 * size, scans_a_block=4, **counts),
                    transformer=one(1e-6 * size**2, scans_a_block=0, **counts),
                    one_scan_mamba=one(1e-3 * size, scans_a_block=1, **counts),
                    autoregressive=one(1e-9 * size**2))
            )  # fmt: skip
    settings = {"plan": {"name": "full"}}
    return Record(machine, {"torch": "2.14.1", "mamba-ssm": None}, settings, rows)


def test_targets_are_read_from_the_record():
    values = {target.text: target.value(sample_record()) for target in TARGETS}
    measured = {text: value for text, value in values.items() if value is not None}
    assert measured == {
        "SSD forward against transformers' default chunk, L=1024 N=128": pytest.approx(8.0),
        "SSD forward against transformers' best chunk, L=1024 N=128": pytest.approx(2.0),
        "peak memory of that block (forward + backward), L=4096": 7.0,
        "share of the peak of float32 torch.mm, SSD forward L=1024": pytest.approx(2 / 3),
        "growth of one step's time from L=1024 to 16384, exponent": pytest.approx(1.05),
        "hard selection: scan time at keep 25 % against keep 100 %": pytest.approx(0.3),
    }
    reached = {t.text: t.reached(values[t.text]) for t in TARGETS if values[t.text] is not None}
    assert list(reached.values()) == ["floor", "no", "floor", "floor", "floor", "floor"]


def test_targets_of_a_gpu_are_read_from_a_gpus_record_alone():
    values = [target.value(sample_record("cuda")) for target in TARGETS]
    assert [value for value in values if value is not None] == [2.0, 3.0, 0.4]
    assert roofline_fraction(sample_record()) == 0.4  # the faster way: 1.0 / 2.5


def test_growth_needs_both_ends():
    record = sample_record()
    record.rows = [row for row in record.rows if row.name != "step 16384"]
    assert growth_exponent(record) is None


def test_crossing_is_where_it_stays_faster():
    sizes = [128, 256, 512, 1024, 2048]
    ours, theirs = [(x, 1000.0 * x) for x in sizes], [(x, x**2.0) for x in sizes]
    assert crossing(ours, theirs) == pytest.approx(1000)
    assert crossing(ours, [(x, 2000.0 * x) for x in sizes]) == 128
    assert crossing(theirs, ours) is None
    dips = [(128, 1.0), (256, 3.0), (512, 1.0)]
    level = [(128, 2.0), (256, 2.0), (512, 2.0)]
    assert 256 < crossing(dips, level) < 512  # faster once before does not count
    assert crossing([], level) is None


def test_report_states_counts_crossings_and_leaves_blanks(tmp_path):
    path = tmp_path / "cpu.json"
    record = sample_record()
    record.tests = {"command": "pytest -m gpu", "summary": "3 passed"}
    record.save(path)
    written = main(Reported([str(path)]))
    assert [file.name for file in written] == [
        "cpu.md", "cpu-images.png", "cpu-text.png", "cpu-growth.png"
    ]  # fmt: skip
    for file in written[1:]:
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000
    text = written[0].read_text()
    assert "| 6.00x | 10.00x | 8.00x | floor |" in text
    assert "| 1.70x | 3.00x |  |  |" in text  # of a GPU: not measured, so empty
    assert "30 steps x 1 evaluations x 2 branches x 4 blocks x 4 scans" in text
    assert "30 steps x 1 evaluations x 2 branches x 4 blocks of attention" in text
    assert "time grows as L^1.05, memory as L^1.00, fitted from 1024 to 16384" in text
    assert "MDM, 4 scans is faster than Transformer (diffusion) from 4000 (the paper: 1280)" in text
    assert "MDM, 4 scans is faster than Transformer (autoregressive, KV cache) not up to" in text
    assert "67% of torch.mm's peak" in text
    assert "| scan | mamba_ssm |  |  |  |  | no CUDA device |" in text
    assert "pytest -m gpu`: 3 passed" in text
    assert "* a machine, 2 cores, 1 threads used, AVX2, bfloat16 emulated, load" in text
    assert "1.25 x predicted, 2.50 x bound" in text


def test_report_without_matplotlib_has_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    written = write_report(sample_record(), tmp_path / "cpu.json")
    assert [file.name for file in written] == ["cpu.md"]


def test_figures_draw_contenders_of_their_topic():
    for figure in FIGURES:
        assert set(figure.against) < set(figure.contenders)


# --- the machine and the roofline ---


def test_peaks_are_measured():
    peaks = measure_peaks(CPU, small=True)
    assert min(*peaks.matmul.values(), peaks.bandwidth, peaks.exponentials) > 1e6
    assert device_slug(CPU) == "cpu"


@pytest.mark.parametrize("has", [True, False])
def test_large_products_in_bfloat16_are_timed_only_where_the_processor_has_it(has, monkeypatch):
    sides, product = set(), torch.mm

    def mm(a, b, out):
        sides.add((a.dtype, len(a)))
        return product(a[:8, :8], b[:8, :8])

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr("benchmarks.machine.has_bfloat16", lambda device="cpu": has)
    monkeypatch.setattr("benchmarks.machine._onednn_peak", lambda *_: {})
    monkeypatch.setattr("benchmarks.machine._best", lambda call, *_: call() is None or 1.0)
    monkeypatch.setattr(torch, "randn", torch.zeros)
    peaks = measure_peaks(CPU)
    assert sides == {(torch.float32, 2048), (torch.bfloat16, 2048 if has else 256)}
    assert peaks.matmul["bfloat16"] == 2 * (2048 if has else 256) ** 3
    described = describe_machine(CPU, peaks)
    assert described["bfloat16"] == ("in hardware" if has else "emulated")


@pytest.mark.parametrize("vectors", ["AVX512", "AVX2", "DEFAULT"])
def test_the_quick_plan_is_shorter_without_avx512(vectors, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    plan = plan_for("quick", CPU)
    assert plan.name == ("quick" if vectors == "AVX512" else "short") and plan.minutes < 3
    for name in ("kernel_lengths", "growth_lengths", "text_lengths", "resolutions"):
        assert max(getattr(plan, name)) <= max(getattr(PLANS["quick"], name))
    assert plan_for("full", CPU) is PLANS["full"]
    assert plan_for("quick", torch.device("cuda")) is PLANS["quick"]


def test_the_plan_says_when_no_row_begins_any_more(tmp_path, monkeypatch):
    monkeypatch.setitem(PLANS, "dry", replace(PLANS["dry"], minutes=0.0))
    output = str(tmp_path / "record.json")
    record, _, _ = run.run(run.BenchmarkArguments(plan="dry", topics=["pair"], output=output))
    assert [row.missing for row in record.rows] == [{"all": "the time was up"}]


@pytest.mark.parametrize(
    "changes",
    [
        {"mixer": "attention"},
        {"kernel_backend": "torch"},
        {"kernel_backend": "torch", "scan_mode": "cyclic"},
        {"kernel_backend": "torch", "scan_projections": "separate"},
    ],
)
def test_flop_count_is_torchs(changes, monkeypatch):
    config = make_config(DRY, hidden_size=64, state_size=16, num_hidden_layers=2, **changes)
    model, patches, words = make_model(config, CPU, torch.float32), 256, 59
    call = evaluation_call(model, 2, patches, words)
    # torch counts attention where it is written as products, and no product by oneDNN.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    operations = roofline.step_operations(config, Step(2, words, patches))
    counted = sum(one.matmul_flops for one in operations)
    # Five special tokens, here the rest of a chunk, and what embeds the times are left out.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_prediction_takes_the_slower_of_work_and_traffic():
    one = roofline.linear("product", rows=10, inputs=100, outputs=200, size=4)
    assert one.matmul_flops == 2 * 10 * 100 * 200
    assert one.bytes == 4 * (10 * 100 + 10 * 200 + 100 * 200) and one.weight_bytes == 80000
    assert one.seconds(PEAKS, "float32") == max(400000 / 100e9, 92000 / 10e9)
    assert (one * 3).bytes == 3 * one.bytes
    config = make_config(DRY)
    for step in (Step(1, 0, 16), Step(2, 8, 4096)):
        assert roofline.bound(config, step, PEAKS, "float32") <= roofline.predict(
            config, step, PEAKS, "float32"
        )


def test_more_positions_scans_and_weights_cost_more():
    small, large = Step(1, 0, 1024, 2), Step(1, 0, 4096, 2)
    shared, separate = roofline.load_config("mdm-1b"), roofline.load_config("mdm-7b")

    def seconds(config, step):
        return roofline.predict(config, step, GIVEN["h100"], "bfloat16")

    assert 3.5 < seconds(shared, large) / seconds(shared, small) < 4.0
    assert seconds(separate, small) > 1.5 * seconds(shared, small)
    cyclic = MDMConfig(**{**shared.to_dict(), "scan_mode": "cyclic"})
    assert seconds(cyclic, large) < seconds(shared, large)
    attention = MDMConfig(**{**shared.to_dict(), "mixer": "attention"})
    ends = [seconds(attention, Step(1, 0, length, 2)) for length in (16384, 65536)]
    assert ends[1] > 6 * ends[0]  # quadratic


def test_roofline_prints_every_preset(capsys):
    for preset in ("mdm-1b", "mdm-7b", "mdm-digits", "mdm-fashion"):
        found = roofline.main(roofline.RooflineArguments(preset=preset, lengths=[256, 1024]))
        assert 0 < found[256]["bound"] <= found[256]["predicted"] < found[1024]["predicted"]
    assert "input projection" in capsys.readouterr().out


def test_roofline_measures_on_request(tmp_path, capsys):
    make_config(DRY).to_json_file(tmp_path / "config.json")
    record = sample_record()
    record.save(tmp_path / "record.json")
    arguments = roofline.RooflineArguments(
        preset=str(tmp_path), machine=str(tmp_path / "record.json"), lengths=[16],
        dtype="float32", measure=True,
    )  # fmt: skip
    found = roofline.main(arguments)[16]
    assert found["measured"] > 0
    ratio = found["measured"] / found["predicted"]
    assert f"{ratio:.2f} x predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "mdm-2b"}, "`preset` is 'mdm-2b': name one of mdm-1b"),
        ({"machine": "abacus"}, "`machine` is 'abacus': name one of h100"),
        ({"dtype": "int4"}, "`dtype` is 'int4': choose one of float32"),
    ],
)
def test_roofline_refuses_what_it_does_not_know(changes, message):
    with pytest.raises(ValueError, match=message):
        roofline.main(roofline.RooflineArguments(**changes))


# --- the GPU's command ---


def test_without_a_gpu_everything_is_tried_and_said(capsys):
    assert gpu.try_without_gpu(gpu.GpuArguments(topics=["pair"], tests=False)) == 0
    said = capsys.readouterr().out
    assert "Not run here" in said and "mamba-ssm's kernels need a CUDA device" in said


def test_without_a_gpu_a_broken_row_is_an_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("a typo")
        yield

    monkeypatch.setitem(run.TOPICS, "pair", broken)
    assert gpu.try_without_gpu(gpu.GpuArguments(topics=["pair"], tests=False)) == 1


def test_outcome_of_tests_is_taken_from_pytest(tmp_path, capsys):
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_it():\n    assert True\n")
    bad.write_text("def test_it():\n    assert False\n")
    passed = gpu.run_tests([str(good)], [], 1.0)
    assert passed["passed"] and "1 passed" in passed["summary"]
    failed = gpu.run_tests([str(bad)], [], 1.0)
    assert not failed["passed"] and "assert False" in capsys.readouterr().out
    assert gpu.run_tests([], [], 1.0)["passed"]


def test_gpu_topics_exist():
    assert set(gpu.TOPICS) <= set(run.TOPICS)
    assert "tests/project/test_benchmarks.py" in gpu.test_files("mark.gpu")


def test_graphs_need_a_gpu():
    with pytest.raises(NotAvailable, match="CUDA graphs need a CUDA device"):
        whole_step.graphed(lambda: None, CPU)


@pytest.mark.gpu
def test_step_in_a_graph_is_the_step():
    device = torch.device("cuda")
    model = make_model(make_config(replace(DRY, width=64)), device, torch.float32)
    eager = evaluation_call(model, 1, 16)
    truth, outputs = eager()["image"].clone(), []
    replay = whole_step.graphed(lambda: outputs.append(eager()["image"]), device)
    outputs[-1].zero_()
    replay()
    torch.testing.assert_close(outputs[-1], truth)
    assert not F.relu(truth).isnan().any()


def test_lengths_of_a_plan_grow():
    for plan in PLANS.values():
        for name in ("kernel_lengths", "growth_lengths", "text_lengths", "resolutions"):
            assert all(a < b for a, b in pairwise(getattr(plan, name)))
        assert plan.given % 1 == 0 and math.isfinite(plan.effort.seconds)
