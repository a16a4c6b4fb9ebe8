# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the machine can do, what a step should take by it, and the command for a GPU."""

from dataclasses import replace

import pytest
import torch
from benchmark_record import CPU, DRY, PEAKS, sample_record
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, roofline, run
from benchmarks.machine import GIVEN, describe_machine, device_slug, measure_peaks
from benchmarks.plans import PLANS, plan_for
from benchmarks.roofline import Step
from benchmarks.steps import (
    evaluation_call,
    make_config,
    make_model,
)
from modeling_mdm import MDMConfig
from modeling_mdm.planning.operations import linear

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
    one = linear("product", rows=10, inputs=100, outputs=200, size=4)
    assert one.matmul_flops == 2 * 10 * 100 * 200
    assert one.bytes == 4 * (10 * 100 + 10 * 200 + 100 * 200) and one.weight_bytes == 80000
    assert roofline.least_seconds(one, PEAKS, "float32") == max(400000 / 100e9, 92000 / 10e9)
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
