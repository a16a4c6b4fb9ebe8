# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of whole models, every row on tiny sizes, and its record."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from benchmark_record import CPU, DRY

from benchmarks import gpu, run, training_step, whole_step
from benchmarks.generation import KEEPS, cache_rows, past_rows, selection_rows
from benchmarks.plans import PLANS
from benchmarks.report import markdown
from benchmarks.results import Contender, NotAvailable, Record, Row
from benchmarks.steps import (
    Generation,
    TokenByToken,
    evaluation_call,
    image_inputs,
    make_config,
    make_model,
    scan_clock,
)
from modeling_mdm.matmul import takes_onednn

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


def test_gpu_topics_exist():
    assert set(gpu.TOPICS) <= set(run.TOPICS)
    assert "tests/project/test_benchmark_rows.py" in gpu.test_files("mark.gpu")


def test_a_training_step_stands_beside_its_plan(tmp_path):
    arguments = run.BenchmarkArguments(
        plan="dry", topics=["training"], output=str(tmp_path / "record.json")
    )
    record, _, whole = run.run(arguments)
    assert whole
    step = record.find("training", "step of mdm-1b")
    for one in step.contenders.values():
        assert one.details["planned_bytes"] == pytest.approx(one.peak_bytes, rel=0.1)
        assert one.details["mfu"] > 0
    plain, again = (step.contenders[name].details for name in ("mdm", "mdm_checkpointed"))
    assert again["total_flops"] > plain["total_flops"] == plain["model_flops"]
    most = record.find("training", "most items of a block of mdm-7b").contenders["mdm"]
    assert 1 <= most.details["items"] <= training_step.DRY_ITEMS
    assert "items fit, planned" in markdown(record, [])


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 16, 33, 100, 1000])
@pytest.mark.parametrize("first", [1, 3, 64])
def test_the_most_that_fit_are_found(limit, first):
    found = training_step.most_that_fit(lambda n: n <= limit, first)
    assert found <= limit <= found + max(1, found // 16)


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
