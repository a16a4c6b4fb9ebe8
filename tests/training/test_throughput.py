# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Words, patches, pictures and flops that training counts while it runs."""

import pytest
import torch
from tiny_model import PATCHES, WORDS, make_model, mixed_batch
from torch import nn

from modeling_mdm.planning.flops import Batch, step_flops
from modeling_mdm.training import throughput
from modeling_mdm.training.throughput import Throughput

CPU = torch.device("cpu")
# Of the mixed batch: real words of each of its tasks, and seven items with a picture.
REAL_WORDS, PICTURES = 4 + 5 + 6 + 6 + 0 + 3 + 6 + 6, 7


def told_of(model, batches=1, seconds=1.0):
    counts = Throughput(model, CPU, "float32")
    for _ in range(batches):
        counts.add(mixed_batch(torch.float32))
    return counts, counts.pop(lambda mine: mine, seconds)


def test_tokens_and_pictures_are_real_ones():
    _, told = told_of(make_model(torch.float32), batches=4, seconds=2.0)
    assert told["tokens_per_second"] == 2 * (REAL_WORDS + PICTURES * PATCHES)
    assert told["pictures_per_second"] == 2 * PICTURES
    assert told["resident_peak_bytes"] > 1e7
    assert "mfu" not in told  # nobody knows a CPU's peak


def test_all_processes_are_counted_and_a_log_begins_anew():
    model = make_model(torch.float32)
    counts, once = told_of(model)
    counts.add(mixed_batch(torch.float32))
    both = counts.pop(lambda mine: torch.cat([mine, mine]), 1.0)
    assert both["tokens_per_second"] == 2 * once["tokens_per_second"]
    assert "tokens_per_second" not in counts.pop(lambda mine: mine, 1.0)


def test_mfu_is_the_share_of_a_known_peak(monkeypatch):
    monkeypatch.setattr(throughput, "device_peak", lambda device, dtype: 1e9)
    model = make_model(torch.float32)
    _, told = told_of(model, batches=3, seconds=2.0)
    flops = step_flops(model.config, Batch(8, WORDS, PATCHES)).model
    assert told["mfu"] == pytest.approx(3 * flops / 2.0 / 1e9)
    model.decoder.requires_grad_(False)
    assert "mfu" not in told_of(model)[1]  # gradients cost less there than is counted


def test_other_models_tell_memory_alone():
    counts = Throughput(nn.Linear(2, 2), CPU, "float32")
    counts.add({"x": torch.zeros(2)})
    assert set(counts.pop(lambda mine: mine, 1.0)) == {"resident_peak_bytes"}
