# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings that all tests share."""

import os

# Before transformers or datasets is imported: no test may depend on a server's answer.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# No test's numbers may depend on the processor: `bf16: auto` is float32 here, as it would be under
# `accelerate launch --mixed_precision no`.
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seed_torch():
    """Seed torch's global generator, so that a test's numbers do not depend on its neighbours."""
    torch.manual_seed(0)


@pytest.fixture(params=["scans at once", "scans one by one", "scans in stretches"])
def scan_passes(request, monkeypatch):
    """Run a block's scans in one pass; each in its own; without gradients chunk by chunk."""
    numbers = 2**40 if request.param == "scans at once" else 1
    monkeypatch.setattr("modeling_mdm.scan_pass.PASS_NUMBERS", numbers)
    numbers = 1 if request.param == "scans in stretches" else 2**40
    monkeypatch.setattr("modeling_mdm.scan_pass.STRETCH_NUMBERS", numbers)
