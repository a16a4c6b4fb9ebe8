# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings that all tests share."""

import os
import random
import resource
import signal

# Before transformers or datasets is imported: no test may depend on a server's answer.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# No test's numbers may depend on the processor: `bf16: auto` is float32 here, as it would be under
# `accelerate launch --mixed_precision no`.
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from transformers.utils import logging

# Always the same examples, half of the usual number: `explore` looks for others.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True, max_examples=50)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
# One failure is all that a mutant needs: neither the smallest nor its cause is looked for.
settings.register_profile(
    "mutants", derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


SLOW_SECONDS = 1800.0


def pytest_collection_modifyitems(config, items):
    """Give slow tests half an hour, or as long as `--timeout` says, whoever runs them."""
    seconds = max(SLOW_SECONDS, float(config.getoption("timeout") or 0))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(seconds))


@pytest.fixture(autouse=True)
def seed_generators():
    """Seed the global generators, so that a test's numbers do not depend on its neighbours."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def shared_state():
    """What all tests of a process share beside the generators."""
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "working directory": os.getcwd(),
        "umask": oct(umask),
        "limit of a file's size": resource.getrlimit(resource.RLIMIT_FSIZE),
        "limit of open files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "signal handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "threads of torch": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "precision of products": torch.get_float32_matmul_precision(),
        "verbosity of transformers": logging.get_verbosity(),
        "offline": (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]),
    }


@pytest.fixture(autouse=True)
def shared_state_stays():
    """Fail a test that leaves behind what would change its neighbours."""
    before = shared_state()
    yield
    after = shared_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"left changed, (before, after): {changed}"


@pytest.fixture(params=["scans at once", "scans one by one"])
def scan_passes(request, monkeypatch):
    """Run a block's scans in one pass; each in its own."""
    numbers = 2**40 if request.param == "scans at once" else 1
    monkeypatch.setattr("modeling_mdm.scan_pass.PASS_NUMBERS", numbers)
