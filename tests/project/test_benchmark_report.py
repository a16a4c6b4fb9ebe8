# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' tables and plots."""

import pytest
from benchmark_record import sample_record

from benchmarks.report import FIGURES, crossing, main, write_report
from benchmarks.report import ReportArguments as Reported
from benchmarks.targets import TARGETS, growth_exponent, roofline_fraction


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
